"""Operators whose results are as long as their data says, as operators of known shape.

Each has a twin in the domain "graphopt.bounded": the same inputs and attributes, outputs padded
with zeros to the most there could be, and one more output, last, that counts what is there (int64,
shape [1]). Whoever runs a twin cuts its outputs to that count; kernels only ever see known shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np
from onnx import NodeProto, TensorProto, TypeProto, helper

from graphopt.errors import ModelError
from graphopt.frontend.model import Array

DOMAIN = "graphopt.bounded"

BOUNDED = frozenset(("Compress", "NonMaxSuppression", "NonZero", "Unique"))
"""The standard operators that have a twin."""

_OUTPUTS: Mapping[str, int] = {"Compress": 1, "NonMaxSuppression": 1, "NonZero": 1, "Unique": 4}

Shape = tuple[int, ...]
Infer = Callable[[NodeProto, Sequence["Operand"]], "list[tuple[int, Shape]]"]


class Operand:
    """What shape inference knows of one input; `values` where it is a small constant."""

    def __init__(self, element: int, shape: Shape, values: Array | None = None) -> None:
        self.element, self.shape, self.values = element, shape, values


def bounded_node(node: NodeProto, rank: int | None) -> tuple[NodeProto, dict[int, int]]:
    """The twin of a node in BOUNDED, and output index → axis that is to be cut to the count.

    Outputs that the node omits are "", the count is the last one, named after the node.

    Args:
        rank: of its first input, if that is known; an axis that counts from the end needs it.

    Raises:
        ModelError: the axis is out of range, or counts from the end of an unknown rank.
    """
    listed = [*node.output, *[""] * (_OUTPUTS[node.op_type] - len(node.output))]
    twin = NodeProto()
    twin.CopyFrom(node)
    twin.domain = DOMAIN
    del twin.output[:]
    twin.output.extend([*listed, f"{node.name or node.output[0]}/count"])
    if node.op_type == "NonZero":
        return twin, {0: 1}
    if node.op_type == "NonMaxSuppression":
        return twin, {0: 0}
    axis = _from_front(node, rank)
    return twin, {0: axis} if node.op_type == "Compress" else {0: axis, 1: 0, 3: 0}


def infer_bounded(node: NodeProto, operands: Sequence[Operand | None]) -> dict[str, TypeProto]:
    """Types of a twin's outputs; empty where an input's shape is not known."""
    infer = _INFER.get(node.op_type)
    if infer is None or operands[0] is None:
        return {}
    given = [operand or Operand(0, ()) for operand in operands]
    made = [*infer(node, given), (TensorProto.INT64, (1,))]
    return {
        name: helper.make_tensor_type_proto(element, list(shape))
        for name, (element, shape) in zip(node.output, made, strict=True)
        if name
    }


def nms_limit(most: Array | None, given: bool) -> int:
    """The most boxes per class that NonMaxSuppression may select: none unless it is asked for."""
    if not given:
        return 0
    bound = np.iinfo(np.int32).max
    return int(bound) if most is None else int(np.clip(most.reshape(-1)[0], 0, bound))


def _from_front(node: NodeProto, rank: int | None) -> int:
    """The axis that is cut: of all elements in a row where none is stated."""
    axis = _axis(node) or 0
    if axis >= 0 and (rank is None or axis < max(rank, 1)):
        return axis
    if rank is None or not -rank <= axis < 0:
        given = "an input of unknown rank" if rank is None else f"an input of rank {rank}"
        raise ModelError("prepare", f"axis {axis} does not fit {given}.", node=node.name)
    return axis + rank


def _axis(node: NodeProto) -> int | None:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), None)


def _compress(node: NodeProto, operands: Sequence[Operand]) -> list[tuple[int, Shape]]:
    x, condition = operands[0], operands[1]
    axis, length = _axis(node), condition.shape[0] if condition.shape else 0
    if axis is None:
        return [(x.element, (min(prod(x.shape), length),))]
    shape = list(x.shape)
    shape[axis] = min(shape[axis], length)
    return [(x.element, tuple(shape))]


def _nonzero(node: NodeProto, operands: Sequence[Operand]) -> list[tuple[int, Shape]]:
    shape = operands[0].shape
    return [(TensorProto.INT64, (max(1, len(shape)), prod(shape)))]


def _nms(node: NodeProto, operands: Sequence[Operand]) -> list[tuple[int, Shape]]:
    if len(operands[1].shape) != 3:
        raise ModelError(
            "prepare",
            f"NonMaxSuppression takes scores of 3 dimensions, not {len(operands[1].shape)}.",
            node=node.name,
            hint="Check the input shapes.",
        )
    batches, classes, boxes = operands[1].shape
    given = len(node.input) > 2 and bool(node.input[2])
    limit = nms_limit(operands[2].values if given else None, given)
    return [(TensorProto.INT64, (batches * classes * min(boxes, limit), 3))]


def _unique(node: NodeProto, operands: Sequence[Operand]) -> list[tuple[int, Shape]]:
    x, axis = operands[0], _axis(node)
    shape = (prod(x.shape),) if axis is None else x.shape
    count = shape[0 if axis is None else axis]
    return [(x.element, shape), *[(TensorProto.INT64, (count,))] * 3]


_INFER: Mapping[str, Infer] = {
    "Compress": _compress,
    "NonMaxSuppression": _nms,
    "NonZero": _nonzero,
    "Unique": _unique,
}
