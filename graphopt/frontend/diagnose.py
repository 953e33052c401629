"""What a model contains and what of it would not compile: the data behind `graphopt inspect`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, helper

from graphopt.frontend.footprint import open_dimensions, packed_weight_bytes
from graphopt.frontend.host_nodes import is_data_dependent, is_stepwise
from graphopt.frontend.importer import UnsupportedNode, unsupported_nodes, without_converter
from graphopt.frontend.model import Array, OnnxModel, subgraphs
from graphopt.frontend.partition import needs_host, partition
from graphopt.frontend.prepare import prepare, prepare_segment
from graphopt.frontend.shapes import (
    Shape,
    dimensions,
    graph_inputs,
    static_shape,
    tensor_type,
    unbound_inputs,
)
from graphopt.frontend.specialise import value_inputs


@dataclass(frozen=True)
class Tensor:
    """An input or output: dtype by NumPy's name, None for an unbound dimension or rank."""

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True)
class Diagnosis:
    """What is known of a model without compiling it.

    Attributes:
        opsets: operator set version by domain.
        inputs, outputs: as the model has them after binding shapes.
        unbound: inputs whose shapes must be given (or are compiled per shape seen).
        values: inputs whose values must be given (or are compiled per value seen).
        nodes: number of nodes of the file's main graph, and after preparation.
        histogram: operators after preparation, most frequent first.
        unsupported: nodes that would not compile; while shapes or values of inputs are open,
            only nodes whose operator has no converter at all.
        doubtful: notes about nodes that compile but deserve a look.
        dimensions: open dimension → the places of inputs that have it, such as "x[2]".
        parameters, parameter_bytes: of all constants that are used.
        packed_bytes: upper bound of the constants' bytes as kernels read them, packed.
        flops: 2 per multiply-add of convolutions, matrix products and recurrent layers; None if a
            needed shape is unknown.
        activation_bytes: lower bound of the memory for activations: the largest sum of values
            that are alive together, in the order of the file; None if a shape is unknown.
    """

    opsets: Mapping[str, int]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    unbound: tuple[str, ...]
    values: tuple[str, ...]
    dimensions: Mapping[str, tuple[str, ...]]
    original_nodes: int
    nodes: int
    histogram: Mapping[str, int]
    unsupported: tuple[UnsupportedNode, ...]
    doubtful: tuple[str, ...]
    parameters: int
    parameter_bytes: int
    packed_bytes: int
    flops: int | None
    activation_bytes: int | None

    @property
    def compiles(self) -> bool:
        """Whether nothing stands in the way of compiling (for the given shapes)."""
        return not self.unsupported

    def to_dict(self) -> dict[str, Any]:
        """As plain dicts, lists and scalars, for JSON."""
        result: dict[str, Any] = dataclasses.asdict(self)
        result["compiles"] = self.compiles
        return result


def diagnose(
    model: OnnxModel,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, Array] | None = None,
    weight_limit: float = 2.0,
) -> Diagnosis:
    """Prepare a model and look at it. Raises as prepare() does.

    Args:
        weight_limit: packed weights may take this many times the bytes of the constants.
    """
    prepared = prepare(model, shapes, constants)
    graph = prepared.proto.graph
    types = {v.name: v.type for v in (*graph.value_info, *graph.input, *graph.output)}
    types.update({tensor.name: tensor_type(tensor) for tensor in graph.initializer})
    static = {name: static_shape(kind) for name, kind in types.items()}
    unbound = tuple(unbound_inputs(prepared))
    values = value_inputs(prepared)
    histogram = Counter(_label(node) for node in graph.node)
    return Diagnosis(
        opsets={opset.domain: opset.version for opset in prepared.proto.opset_import},
        inputs=tuple(_tensor(value) for value in graph_inputs(graph)),
        outputs=tuple(_tensor(value) for value in graph.output),
        unbound=unbound,
        values=tuple(values),
        dimensions=open_dimensions(graph),
        original_nodes=len(model.proto.graph.node),
        nodes=len(graph.node),
        histogram=dict(histogram.most_common()),
        unsupported=_unsupported(prepared, bool(unbound), set(values.values())),
        doubtful=_doubtful(prepared),
        parameters=sum(prod(tensor.dims) for tensor in graph.initializer),
        parameter_bytes=sum(_nbytes(types[tensor.name]) or 0 for tensor in graph.initializer),
        packed_bytes=packed_weight_bytes(graph, weight_limit),
        flops=_total([node_flops(node, static) for node in graph.node]),
        activation_bytes=_activation_bytes(prepared),
    )


def _label(node: NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _tensor(value: Any) -> Tensor:
    return Tensor(value.name, _dtype(value.type), dimensions(value.type))


def _dtype(kind: Any) -> str:
    try:
        return str(helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type).name)
    except KeyError:
        return "unknown"


def _nbytes(kind: Any) -> int | None:
    shape = static_shape(kind)
    if shape is None:
        return None
    try:
        dtype = helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type)
    except KeyError:
        return None
    return int(prod(shape) * dtype.itemsize)


def _total(parts: Sequence[int | None]) -> int | None:
    return None if any(part is None for part in parts) else sum(part or 0 for part in parts)


def _unsupported(model: OnnxModel, unbound: bool, waiting: set[str]) -> tuple[UnsupportedNode, ...]:
    """What would be refused; `waiting` nodes only lack the value of an input."""
    if unbound:
        return tuple(_unknown_nodes(model, model.proto.graph))
    if not needs_host(model):
        return tuple(item for item in unsupported_nodes(model) if item.node not in waiting)
    found: list[UnsupportedNode] = []
    for segment in partition(model).segments:
        if segment.static:
            found += unsupported_nodes(prepare_segment(segment.model, {}, {}))
        else:
            found += without_converter(segment.model)
    return tuple(found)


def _unknown_nodes(model: OnnxModel, graph: GraphProto) -> Iterator[UnsupportedNode]:
    """Nodes of a graph and the bodies in it whose operator has no converter at all."""
    plain = [node for node in graph.node if not is_stepwise(node) and not is_data_dependent(node)]
    shown = ModelProto(opset_import=model.proto.opset_import)
    shown.graph.node.extend(plain)
    yield from without_converter(OnnxModel(shown))
    for node in graph.node:
        for body in subgraphs(node):
            yield from _unknown_nodes(model, body)


def _doubtful(model: OnnxModel) -> tuple[str, ...]:
    notes = [
        f"{node}: is compiled for each value of input '{name}' (give one: --constant {name}=…)"
        for name, node in value_inputs(model).items()
    ]
    if unbound_inputs(model) or not needs_host(model):
        return tuple(notes)
    for segment in partition(model).segments:
        spec = segment.spec
        if spec.bound:
            notes.append(
                f"{spec.nodes[0]}: is compiled for each value of {', '.join(spec.bound)}, which "
                "is computed at run time"
            )
        elif not segment.static:
            notes.append(f"{spec.nodes[0]}: is compiled for each shape that comes at run time")
    return tuple(notes)


def node_flops(node: NodeProto, shapes: Mapping[str, tuple[int, ...] | None]) -> int | None:
    """2·multiply-adds of a convolution, matrix product or recurrent layer; 0 for other nodes.

    None if a shape that matters is unknown.
    """
    if node.op_type in ("If", "Loop", "Scan"):
        return None
    inputs = [shapes.get(name) for name in node.input if name]
    output = shapes.get(node.output[0]) if node.output else None
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        weight = shapes.get(node.input[3 if node.op_type == "QLinearConv" else 1])
        if output is None or weight is None:
            return None
        return 2 * prod(output) * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        x, weight = inputs[0], inputs[1]
        return None if x is None or weight is None else 2 * prod(x) * prod(weight[1:])
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"):
        a = inputs[0]
        if a is None or output is None:
            return None
        transposed = any(item.name == "transA" and item.i for item in node.attribute)
        return 2 * prod(output) * a[0 if transposed or len(a) == 1 else -1]
    if node.op_type in ("LSTM", "GRU", "RNN"):
        x, w, r = inputs[0], inputs[1], inputs[2]
        if x is None or w is None or r is None:
            return None
        return 2 * x[0] * x[1] * (prod(w) + prod(r))
    return 0


def _activation_bytes(model: OnnxModel) -> int | None:
    graph = model.proto.graph
    kinds = {v.name: v.type for v in (*graph.value_info, *graph.input, *graph.output)}
    last: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        last.update({name: i for name in node.input if name in kinds})
    for value in graph.output:
        last[value.name] = len(graph.node)
    alive: dict[str, int] = {}
    peak = 0
    for i, node in enumerate(graph.node):
        for name in node.output:
            if name not in last:
                continue
            size = _nbytes(kinds[name]) if name in kinds else None
            if size is None:
                return None
            alive[name] = size
        peak = max(peak, sum(alive.values()))
        for name in [name for name in alive if last[name] <= i]:
            del alive[name]
    return peak
