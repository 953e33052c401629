"""Smaller versions of a model that fails, for a fuzzer to try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from fuzz_corpus import reads
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, ValueInfoProto, helper


def reductions(data: bytes) -> list[bytes]:
    """Files of models smaller than the one in the file `data`; none if that cannot be read."""
    try:
        model = ModelProto.FromString(data)
    except DecodeError:
        return []
    return [smaller.SerializeToString() for smaller in _smaller(model)]


def _smaller(model: ModelProto) -> Iterator[ModelProto]:
    """Models with fewer outputs, fewer nodes or fewer constants, most promising first.

    A value inside becomes the only output, or a node goes and its results become inputs.
    """
    nodes = list(model.graph.node)
    kinds = _kinds(model)
    for value in model.graph.output if len(model.graph.output) > 1 else ():
        yield _pruned(model, nodes, [value])
    for index, node in enumerate(nodes[:-1]):
        for name in node.output:
            if name in kinds:
                yield _pruned(model, nodes[: index + 1], [kinds[name]])
    for index, node in enumerate(nodes):
        if all(not name or name in kinds for name in node.output) and len(nodes) > 1:
            rest = [*nodes[:index], *nodes[index + 1 :]]
            inputs = [kinds[name] for name in node.output if name]
            yield _pruned(model, rest, list(model.graph.output), inputs)


def _kinds(model: ModelProto) -> dict[str, ValueInfoProto]:
    """Values with known element type and static shape."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:
        graph = model.graph
    found = {}
    for value in (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        static = kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)
        if kind.elem_type and static:
            found[value.name] = value
    return found


def _pruned(
    model: ModelProto,
    nodes: Sequence[NodeProto],
    outputs: Sequence[ValueInfoProto],
    inputs: Sequence[ValueInfoProto] = (),
) -> ModelProto:
    """The part of the model that these outputs need."""
    needed = {value.name for value in outputs}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.insert(0, node)
            needed |= set(reads(node))
    graph = model.graph
    result = ModelProto()
    result.CopyFrom(model)
    body = helper.make_graph(
        kept,
        graph.name or "reduced",
        [value for value in (*graph.input, *inputs) if value.name in needed],
        outputs,
        [tensor for tensor in graph.initializer if tensor.name in needed],
    )
    body.value_info.extend(value for value in graph.value_info if value.name in needed)
    result.graph.CopyFrom(body)
    return result
