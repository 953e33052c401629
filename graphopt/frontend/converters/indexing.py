"""Reading by index along an axis, and indices as positions of ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    check_generated,
    constant,
    normal_axis,
    shape_of,
)
from graphopt.frontend.model import Array

op = relax.op


def _checked(indices: Array, size: int) -> Array:
    """Constant indices counted from the front; refuses those out of range."""
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise Unsupported(f"an index is out of range for an axis of {size}")
    return np.asarray(np.where(indices < 0, indices + size, indices))


def gather(node: NodeContext) -> Expr:
    """Take along an axis; a constant scalar index is a slice, which may need no copy."""
    x, known = node.input(0), node.array(1)
    shape = shape_of(x)
    axis = normal_axis(node.int_attr("axis"), len(shape))
    if known is None:
        # "wrap" gives negative indices their meaning and cannot read outside of the data.
        return node.emit(op.take(x, node.input(1), axis, mode="wrap"))
    indices = _checked(known, shape[axis])
    if indices.size == 1:
        start = int(indices.reshape(-1)[0])
        part = node.slice(x, [axis], [start], [start + 1])
        return node.reshape(part, (*shape[:axis], *indices.shape, *shape[axis + 1 :]))
    return node.emit(op.take(x, constant(indices), axis, mode="fast"))


def one_hot(node: NodeContext) -> Expr:
    """A new axis that is `on` at the index and `off` elsewhere."""
    depth = int(node.known(1, "depth").reshape(-1)[0])
    check_generated(depth)
    indices = node.input(0)
    rank = len(shape_of(indices)) + 1
    axis = normal_axis(node.int_attr("axis", -1), rank)
    shape = list(shape_of(indices))
    shape.insert(axis, 1)
    # ONNX allows integer-valued floats as indices; comparing works in any type.
    wide = node.reshape(node.cast(indices, "int64"), shape)
    positions = [1] * rank
    positions[axis] = depth
    count = constant(np.arange(depth).reshape(positions), "int64")
    negative = node.emit(op.less(wide, node.scalar(0, wide)))
    front = node.emit(op.add(wide, node.scalar(depth, wide)))
    index = node.emit(op.where(negative, front, wide))
    hit = node.emit(op.equal(index, count))
    values = node.array(2)
    if values is not None:
        off, on = constant(values[0]), constant(values[1])
    else:
        pair = node.input(2)
        off, on = (node.reshape(node.slice(pair, [0], [i], [i + 1]), ()) for i in (0, 1))
    return node.emit(op.where(hit, on, off))


def refuse(reason: str, hint: str | None = None) -> Callable[[NodeContext], Expr]:
    """Converter of an operator that is known and not supported."""

    def convert(node: NodeContext) -> Expr:
        raise Unsupported(reason, hint)

    return convert


_RANDOM = refuse("random operators are not supported", "Make the random tensor an input.")

CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Gather"): gather,
    ("", "OneHot"): one_hot,
    ("", "RandomNormal"): _RANDOM,
    ("", "RandomUniform"): _RANDOM,
    ("", "RandomNormalLike"): _RANDOM,
    ("", "RandomUniformLike"): _RANDOM,
    ("", "Bernoulli"): _RANDOM,
    ("", "Multinomial"): _RANDOM,
}
