"""Proves that nodes treat each row of their inputs alone, so that more rows change nothing.

A count that depends on data changes with every input. Where a part of a model computes row k of
its results from row k of its inputs only, it may run with more rows than there are, as many as a
program is compiled for, and its results are cut back. What has no rule here has no proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from onnx import NodeProto, TensorProto, helper

from graphopt.frontend.model import Array, is_standard

Shape = tuple[int | None, ...]

_POINTWISE = frozenset(
    (
        "Abs",
        "Acos",
        "Add",
        "And",
        "Asin",
        "Atan",
        "Cast",
        "Ceil",
        "Clip",
        "Cos",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Sqrt",
        "Sub",
        "Tanh",
        "Where",
        "Xor",
    )
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_BY_SAMPLE = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization")


@dataclass(frozen=True)
class Operand:
    """What is known of an input.

    row: the axis of the rows, None where it has none. shape: None where a dimension is open.
    values: of a constant.
    """

    element: int
    shape: Shape | None
    row: int | None
    values: Array | None

    @property
    def rank(self) -> int:
        """Number of dimensions; only where the shape is known."""
        return len(self.shape or ())


Rule: TypeAlias = "Callable[[NodeProto, Sequence[Operand]], int | None]"


def row_axis(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    """The axis of the rows in all of the node's outputs; None if there is no proof.

    Args:
        operands: its inputs in order; omitted ones as scalars. At least one has rows, and those
            without have known shapes.
    """
    rule = _RULES.get(node.op_type) if is_standard(node) else None
    if rule is None or any(
        operand.shape is None or (operand.row is None and None in operand.shape)
        for operand in operands
    ):
        return None
    return rule(node, operands)


def _attribute(node: NodeProto, name: str, default: int | None = None) -> int | None:
    for attribute in node.attribute:
        if attribute.name == name:
            return int(attribute.i)
    return default


def _ints(node: NodeProto, operands: Sequence[Operand], index: int, name: str) -> list[int] | None:
    """Integers that are an operand or, in older operator sets, an attribute."""
    if len(operands) > index and operands[index].values is not None:
        return [int(v) for v in operands[index].values.reshape(-1)]  # type: ignore[union-attr]
    for attribute in node.attribute:
        if attribute.name == name:
            return [int(v) for v in helper.get_attribute_value(attribute)]
    return None


def _only_first(operands: Sequence[Operand]) -> int | None:
    return operands[0].row if all(o.row is None for o in operands[1:]) else None


def _pointwise(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    if node.op_type in ("Div", "Pow") and operands[0].element not in _FLOATS:
        return None  # rows that are not there hold zeros, and whole numbers divided by 0 trap
    rank = max(operand.rank for operand in operands)
    places = {o.rank - o.row for o in operands if o.row is not None}
    if len(places) != 1:
        return None
    (place,) = places
    for operand in operands:
        if operand.row is None and operand.rank >= place:
            assert operand.shape is not None
            if operand.shape[operand.rank - place] != 1:
                return None
    return rank - place


def _transpose(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    row = operands[0].row
    perm = _ints(node, (), 0, "perm") or list(range(operands[0].rank))[::-1]
    return None if row is None else perm.index(row)


def _normal(axes: Sequence[int], rank: int) -> list[int]:
    return sorted(axis % rank for axis in axes)


def _squeeze(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    row, axes = operands[0].row, _ints(node, operands, 1, "axes")
    if row is None or axes is None or row in _normal(axes, operands[0].rank):
        return None
    return row - sum(axis < row for axis in _normal(axes, operands[0].rank))


def _unsqueeze(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    row, axes = operands[0].row, _ints(node, operands, 1, "axes")
    if row is None or axes is None:
        return None
    for axis in _normal(axes, operands[0].rank + len(axes)):
        row += axis <= row
    return row


def _reduce(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    row, axes = operands[0].row, _ints(node, operands, 1, "axes")
    if row is None or not axes or row in _normal(axes, operands[0].rank):
        return None
    if _attribute(node, "keepdims", 1):
        return row
    return row - sum(axis < row for axis in _normal(axes, operands[0].rank))


def _arg(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    row, axis = operands[0].row, (_attribute(node, "axis", 0) or 0) % operands[0].rank
    if row is None or row == axis:
        return None
    return row if _attribute(node, "keepdims", 1) else row - (axis < row)


def _along(default: int) -> Rule:
    """Operators that work along one axis of their first input and keep the others."""

    def rule(node: NodeProto, operands: Sequence[Operand]) -> int | None:
        row, axis = _only_first(operands), _attribute(node, "axis", default) or 0
        return None if row is None or axis % operands[0].rank == row else row

    return rule


def _gather(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    data, indices = operands
    axis = (_attribute(node, "axis", 0) or 0) % data.rank
    if data.row is None:
        assert data.shape is not None
        return None if not data.shape[axis] or indices.row is None else axis + indices.row
    if indices.row is not None or data.row == axis:
        return None
    return data.row if data.row < axis else data.row + indices.rank - 1


def _gather_nd(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    data, indices = operands
    assert data.shape is not None
    if data.row is not None or 0 in data.shape or _attribute(node, "batch_dims", 0):
        return None
    return None if indices.row == indices.rank - 1 else indices.row


def _concat(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    rows = {operand.row for operand in operands}
    axis = (_attribute(node, "axis", 0) or 0) % operands[0].rank
    return None if len(rows) != 1 or axis in rows else rows.pop()


def _slice(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    row, axes = _only_first(operands), _ints(node, operands, 3, "axes")
    if axes is None or row in _normal(axes, operands[0].rank):
        return None
    return row


def _reshape(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    data, shape = operands[0], _ints(node, operands, 1, "shape")
    if data.row != 0 or not shape or data.shape is None or shape[0] not in (0, -1):
        return None
    if _attribute(node, "allowzero", 0):
        return None
    rest = [dim for dim in data.shape[1:] if dim is not None]
    wanted = [rest[i] if dim == 0 and i < len(rest) else dim for i, dim in enumerate(shape[1:])]
    if any(dim <= 0 for dim in wanted) or prod(wanted) != prod(rest):
        return None
    return 0


def _matmul(_node: NodeProto, operands: Sequence[Operand]) -> int | None:
    a, b = operands
    if a.row is None or b.row is not None or b.rank != 2 or a.row > a.rank - 2:
        return None
    return a.row


def _gemm(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    if _only_first(operands) != 0 or _attribute(node, "transA", 0):
        return None
    if len(operands) > 2:
        bias = operands[2].shape or ()
        if len(bias) == 2 and bias[0] != 1:
            return None
    return 0


def _softmax(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    # Before operator set 13 it worked on all axes from a first one, 1 by default: what lies before
    # that axis is apart in any version.
    row, rank = operands[0].row, operands[0].rank
    axis = _attribute(node, "axis", 1)
    return row if row is not None and axis is not None and row < axis % max(rank, 2) else None


def _by_sample(node: NodeProto, operands: Sequence[Operand]) -> int | None:
    trained = _attribute(node, "training_mode", 0)
    return 0 if _only_first(operands) == 0 and not trained else None


def _roi_align(_node: NodeProto, operands: Sequence[Operand]) -> int | None:
    x, boxes, batch = operands
    assert x.shape is not None
    return 0 if x.row is None and 0 not in x.shape and boxes.row == batch.row == 0 else None


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(_BY_SAMPLE, _by_sample),
    **dict.fromkeys(
        ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceL2"), _reduce
    ),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Concat": _concat,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "RoiAlign": _roi_align,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _along(0),
    "Squeeze": _squeeze,
    "TopK": _along(-1),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
