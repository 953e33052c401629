"""Finds inputs whose values, not only shapes, must be known to compile: sizes, scales, modes."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto, TensorProto, TypeProto

from graphopt.frontend.model import OnnxModel, subgraphs
from graphopt.frontend.shapes import dimensions, graph_inputs

# Operand positions that converters need as constants, by operator; None means all.
_VALUE_OPERANDS: Mapping[str, tuple[int, ...] | None] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "ConvTransposeWithDynamicPads": (2,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "ExpandDims": (1,),
    "GroupQueryAttention": (6,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": None,
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": None,
    "Reshape": (1,),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}

_DISCRETE = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.UINT8))
_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE))

# A vector of floats with more elements than this is data. Resize takes one scale per dimension.
_MAX_FLOATS = 16


def value_inputs(model: OnnxModel) -> dict[str, str]:
    """Inputs of a prepared model that must be bound to constants.

    Returns:
        input name → id of the first node that needs its value. Values are followed through
        tensors of integers, of booleans and of a few floats only: an index into a table is data,
        not a parameter.
    """
    graph = model.proto.graph
    types = {v.name: v.type for v in (*graph.value_info, *graph.output)}
    sources: dict[str, frozenset[str]] = {
        value.name: frozenset((value.name,))
        for value in graph_inputs(graph)
        if _may_steer(value.type)
    }
    # What is computed from floats is data: it is compiled in step by step, where it is needed.
    floats = {v.name for v in graph_inputs(graph) if v.type.tensor_type.elem_type in _FLOATS}
    found: dict[str, str] = {}
    for node in graph.node:
        _note(node, sources, found)
        if node.op_type in ("Shape", "Size"):
            continue
        reached = frozenset().union(*(sources.get(name, frozenset()) for name in node.input))
        reached -= floats
        for name in node.output:
            if reached and (name not in types or _may_steer(types[name])):
                sources[name] = reached
    return found


def _may_steer(kind: TypeProto) -> bool:
    """Whether values of this type can be sizes, scales or modes."""
    element = kind.tensor_type.elem_type
    shape = dimensions(kind)
    if element not in _FLOATS:
        return element in _DISCRETE and (shape is None or len(shape) <= 1)
    return shape is not None and len(shape) <= 1 and all((d or 0) <= _MAX_FLOATS for d in shape)


def value_positions(node: NodeProto) -> tuple[int, ...] | None:
    """Operands of `node` whose values must be known to compile it; None for all of them."""
    if node.op_type.startswith("Reduce"):
        return (1,)
    if node.op_type != "Resize":
        return _VALUE_OPERANDS.get(node.op_type, ())
    if len(node.input) == 2:  # before operator set 11
        return (1,)
    cropped = any(a.s == b"tf_crop_and_resize" for a in node.attribute)
    return (1, 2, 3) if cropped else (2, 3)


def _note(node: NodeProto, sources: Mapping[str, frozenset[str]], found: dict[str, str]) -> None:
    positions = value_positions(node)
    for i, name in enumerate(node.input):
        if positions is None or i in positions:
            for source in sources.get(name, frozenset()):
                found.setdefault(source, node.name)
    for graph in subgraphs(node):
        for inner in graph.node:
            _note(inner, sources, found)
