"""Reading and writing by index: gathers, scatters, selection of the largest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
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


def _from_front(node: NodeContext, index: int, size: int) -> Expr:
    """Input `index` with negative indices counted from the front."""
    known = node.array(index)
    if known is not None:
        return constant(_checked(known, size))
    indices = node.input(index)
    negative = node.emit(op.less(indices, node.scalar(0, indices)))
    wrapped = node.emit(op.add(indices, node.scalar(size, indices)))
    return node.emit(op.where(negative, wrapped, indices))


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


def gather_elements(node: NodeContext) -> Expr:
    """One element of an axis per output element."""
    x = node.input(0)
    axis = normal_axis(node.int_attr("axis"), len(shape_of(x)))
    return node.emit(op.gather_elements(x, _from_front(node, 1, shape_of(x)[axis]), axis))


def _coordinates(node: NodeContext, index: int, sizes: tuple[int, ...]) -> Expr:
    """Index tuples (…, k) with negative entries counted from the front, as int64."""
    limits = np.array(sizes, np.int64)
    known = node.array(index)
    if known is not None:
        if known.size and ((known < -limits) | (known >= limits)).any():
            raise Unsupported("an index is out of range")
        return constant(np.where(known < 0, known + limits, known), "int64")
    indices = node.cast(node.input(index), "int64")
    negative = node.emit(op.less(indices, node.scalar(0, indices)))
    wrapped = node.emit(op.add(indices, constant(limits)))
    return node.emit(op.where(negative, wrapped, indices))


def gather_nd(node: NodeContext) -> Expr:
    """Slices of the data by index tuples."""
    x, batch = node.input(0), node.int_attr("batch_dims")
    depth = shape_of(node.input(1))[-1]
    indices = _coordinates(node, 1, shape_of(x)[batch : batch + depth])
    return node.emit(op.gather_nd(x, indices, batch))


_REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def _reduction(node: NodeContext) -> str:
    name = node.string_attr("reduction", "none") or "none"
    if name not in _REDUCTIONS:
        raise Unsupported(f"reduction '{name}' is unknown")
    return _REDUCTIONS[name]


def scatter_elements(node: NodeContext) -> Expr:
    """Write or combine single elements along an axis."""
    x = node.input(0)
    axis = normal_axis(node.int_attr("axis"), len(shape_of(x)))
    indices = _from_front(node, 1, shape_of(x)[axis])
    return node.emit(op.scatter_elements(x, indices, node.input(2), axis, _reduction(node)))


def scatter_nd(node: NodeContext) -> Expr:
    """Write or combine slices by index tuples."""
    x = node.input(0)
    depth = shape_of(node.input(1))[-1]
    indices = _coordinates(node, 1, shape_of(x)[:depth])
    return node.emit(op.scatter_nd(x, indices, node.input(2), _reduction(node)))


def top_k(node: NodeContext) -> tuple[Expr | None, ...]:
    """The k largest or smallest along an axis, and where they were."""
    x = node.input(0)
    axis = normal_axis(node.int_attr("axis", -1), len(shape_of(x)))
    k = node.int_attr("k") if node.opset < 10 else node.ints(1, "k")[0]
    largest = bool(node.int_attr("largest", 1))
    node.ignore("sorted")  # sorted results are right for both values
    if not 0 < k <= shape_of(x)[axis]:
        raise Unsupported(f"k={k} is out of range for an axis of {shape_of(x)[axis]}")

    if dtype_of(x) == "uint64":
        raise Unsupported("TopK of uint64 is not supported")

    def part(what: str, output: int) -> Expr | None:
        if not node.wants(output):
            return None
        return node.emit(op.topk(x, k, axis, what, largest, "int64"), output)

    return part("values", 0), part("indices", 1)


def one_hot(node: NodeContext) -> Expr:
    """A new axis that is `on` at the index and `off` elsewhere."""
    depth = int(node.known(1, "depth").reshape(-1)[0])
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


_DATA_DEPENDENT = refuse("the shape of its result depends on the data")
_RANDOM = refuse("random operators are not supported", "Make the random tensor an input.")

CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Gather"): gather,
    ("", "GatherElements"): gather_elements,
    ("", "GatherND"): gather_nd,
    ("", "ScatterElements"): scatter_elements,
    ("", "Scatter"): scatter_elements,
    ("", "ScatterND"): scatter_nd,
    ("", "TopK"): top_k,
    ("", "OneHot"): one_hot,
    ("", "NonZero"): _DATA_DEPENDENT,
    ("", "Unique"): _DATA_DEPENDENT,
    ("", "Compress"): _DATA_DEPENDENT,
    ("", "NonMaxSuppression"): _DATA_DEPENDENT,
    ("", "RandomNormal"): _RANDOM,
    ("", "RandomUniform"): _RANDOM,
    ("", "RandomNormalLike"): _RANDOM,
    ("", "RandomUniformLike"): _RANDOM,
    ("", "Bernoulli"): _RANDOM,
    ("", "Multinomial"): _RANDOM,
}
