"""Refuses models whose graph does not hold together, naming the node: names, order, operator sets.

onnx.checker finds most of this too, but not who is at fault, and it takes any operator set. This
check goes over the main graph; those of subgraphs and functions are left to the checker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, ModelProto, defs

from graphopt.errors import ModelError
from graphopt.frontend.model import OnnxModel, captured_names, domain_of, is_standard, tensor_label

_MAX_RANK = 32  # NumPy's least limit, and more than any model needs
_MAX_DENSE = 1 << 27  # elements of a sparse tensor made dense


def check_structure(model: OnnxModel) -> None:
    """Refuse broken structure.

    Raises:
        ModelError: a name is computed twice, or by nobody; nodes form a cycle or are not in order;
            an operator set is unknown or imported twice; a tensor has too many dimensions, or
            sparse indices that do not fit.
    """
    _check_opsets(model.proto)
    _check_tensors(model)
    _check_names(model.proto.graph)


def _check_opsets(proto: ModelProto) -> None:
    newest = defs.onnx_opset_version()
    versions: dict[str, int] = {}
    for opset in proto.opset_import:
        domain = domain_of(opset)
        label = domain or "ai.onnx"
        if versions.setdefault(domain, opset.version) != opset.version:
            raise ModelError(
                "prepare",
                f"The model imports the operator sets {versions[domain]} and {opset.version} of "
                f"{label}.",
                hint="Export the model with one operator set version.",
            )
        if opset.version < 1 or (not domain and opset.version > newest):
            raise ModelError(
                "prepare",
                f"The model is in operator set {opset.version} of {label}, which is not known; "
                f"the newest is {newest if not domain else 'that of your exporter'}.",
                hint="Export the model with an older operator set.",
            )
    if "" in versions:
        return
    for i, node in enumerate(proto.graph.node):
        if is_standard(node):
            raise ModelError(
                "prepare",
                f"{node.op_type} is an operator of ai.onnx, of which the model imports no "
                "operator set.",
                node=node.name or f"{node.op_type}#{i}",
                hint="Export the model again.",
            )


def _check_tensors(model: OnnxModel) -> None:
    graph = model.proto.graph
    for tensor in graph.initializer:
        if len(tensor.dims) > _MAX_RANK:
            raise ModelError(
                "prepare",
                f"{tensor_label(tensor)} has {len(tensor.dims)} dimensions, more than {_MAX_RANK}.",
            )
    for value in graph.input:
        rank = len(value.type.tensor_type.shape.dim)
        if rank > _MAX_RANK:
            raise ModelError(
                "prepare", f"Input '{value.name}' has {rank} dimensions, more than {_MAX_RANK}."
            )
    for sparse in graph.sparse_initializer:
        label = f"sparse {tensor_label(sparse.values)}"
        shape = [int(dim) for dim in sparse.dims]
        size = int(np.prod(shape, dtype=object)) if shape else 1
        if len(shape) > _MAX_RANK or min(shape, default=0) < 0 or size > _MAX_DENSE:
            raise ModelError("prepare", f"{label} has the shape {shape[:8]}, which is too large.")
        indices = model.array(sparse.indices)
        limits = np.array([size] if indices.ndim == 1 else shape)
        if indices.ndim not in (1, 2) or (indices.ndim == 2 and indices.shape[1] != len(shape)):
            raise ModelError("prepare", f"{label} has indices of shape {indices.shape}.")
        if indices.size and ((indices < 0).any() or (indices >= limits).any()):
            raise ModelError("prepare", f"{label} has indices outside its shape {shape}.")


def _check_names(graph: GraphProto) -> None:
    ids = [node.name or f"{node.op_type}#{i}" for i, node in enumerate(graph.node)]
    for what, names in (
        ("input", [value.name for value in graph.input]),
        ("initializer", [tensor.name for tensor in graph.initializer]),
        ("output", [value.name for value in graph.output]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ModelError(
                "prepare", f"The {what} '{twice[0]}' is listed twice.", hint=_EXPORT_AGAIN
            )
    given = {value.name for value in graph.input}
    given |= {tensor.name for tensor in graph.initializer}
    given |= {sparse.values.name for sparse in graph.sparse_initializer}
    producers: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in node.output:
            if not name:
                continue
            if name in given or name in producers:
                other = "an input"
                if name in producers:
                    other = f"the result of node {ids[producers[name]]}"
                raise ModelError(
                    "prepare",
                    f"'{name}' is computed here and is {other} too.",
                    node=ids[i],
                    hint="Every value of a model needs a name of its own.",
                )
            producers[name] = i
    needs = [set(node.input) - {""} | captured_names(node) for node in graph.node]
    for i, read in enumerate(needs):
        for name in read:
            if name in given:
                continue
            if name not in producers:
                raise ModelError(
                    "prepare",
                    f"'{name}', which the node reads, is no input, no initializer and not the "
                    "result of any node.",
                    node=ids[i],
                    hint=_EXPORT_AGAIN,
                )
    known = given | set(producers)
    for value in graph.output:
        if value.name not in known:
            raise ModelError(
                "prepare", f"Nothing computes the output '{value.name}'.", hint=_EXPORT_AGAIN
            )
    late = next(
        (i for i, read in enumerate(needs) if any(producers.get(n, -1) >= i for n in read)), None
    )
    if late is not None:
        name = next(n for n in sorted(needs[late]) if producers.get(n, -1) >= late)
        loop = _in_cycle(late, needs, producers)
        reason = "the nodes form a cycle" if loop else "nodes must come in order"
        raise ModelError(
            "prepare",
            f"'{name}', which the node reads, is the result of node {ids[producers[name]]}, "
            f"which does not come before it: {reason}.",
            node=ids[late],
            hint=_EXPORT_AGAIN,
        )


_EXPORT_AGAIN = "Export the model again."


def _in_cycle(start: int, needs: list[set[str]], producers: dict[str, int]) -> bool:
    """Whether a node depends on its own results."""
    seen: set[int] = set()
    waiting = _sources(needs[start], producers)
    while waiting:
        node = waiting.pop()
        if node == start:
            return True
        if node not in seen:
            seen.add(node)
            waiting.extend(_sources(needs[node], producers))
    return False


def _sources(names: Iterable[str], producers: dict[str, int]) -> list[int]:
    return [producers[name] for name in names if name in producers]
