"""Finds inputs whose values, not only shapes, must be known to compile: sizes, axes, modes."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto, TensorProto

from graphopt.frontend.model import OnnxModel, subgraphs
from graphopt.frontend.shapes import graph_inputs

# Operand positions that converters need as constants, by operator; None means all.
_VALUE_OPERANDS: Mapping[str, tuple[int, ...] | None] = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "If": (0,),
    "Loop": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": None,
    "Reshape": (1,),
    "Resize": (3,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
}

_DISCRETE = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.UINT8))


def value_inputs(model: OnnxModel) -> dict[str, str]:
    """Integer and boolean inputs of a prepared model that must be bound to constants.

    Returns:
        input name → id of the first node that needs its value. Values are followed through
        integer and boolean tensors only: an index into a table is data, not a parameter.
    """
    graph = model.proto.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    sources: dict[str, frozenset[str]] = {
        value.name: frozenset((value.name,))
        for value in graph_inputs(graph)
        if value.type.tensor_type.elem_type in _DISCRETE
    }
    found: dict[str, str] = {}
    for node in graph.node:
        _note(node, sources, found)
        if node.op_type in ("Shape", "Size"):
            continue
        reached = frozenset().union(*(sources.get(name, frozenset()) for name in node.input))
        for name in node.output:
            if reached and kinds.get(name, TensorProto.INT64) in _DISCRETE:
                sources[name] = reached
    return found


def _note(node: NodeProto, sources: Mapping[str, frozenset[str]], found: dict[str, str]) -> None:
    positions: tuple[int, ...] | None = ()
    if node.op_type in _VALUE_OPERANDS:
        positions = _VALUE_OPERANDS[node.op_type]
    elif node.op_type.startswith("Reduce"):
        positions = (1,)
    for i, name in enumerate(node.input):
        if positions is None or i in positions:
            for source in sources.get(name, frozenset()):
                found.setdefault(source, node.name)
    for graph in subgraphs(node):
        for inner in graph.node:
            _note(inner, sources, found)
