"""Operators whose results are as long as their data says: padded to a bound, and counted."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, register


def nonzero(x: Expr) -> Expr:
    """Coordinates of the elements that are not zero: ((rank, elements), count), both int64."""
    return call_op(NONZERO, (x,), {})


def compress(x: Expr, condition: Expr, axis: int) -> Expr:
    """The slices along `axis` for which `condition` (bool) holds, then zeros; and their number."""
    return call_op(COMPRESS, (x, condition), {"axis": axis})


def unique(x: Expr, axis: int, in_order: bool) -> Expr:
    """The different slices along `axis`: sorted if `in_order`, else by their first occurrence.

    Returns a tuple: slices, first positions, which one each slice is, how often each occurs (all
    but the third padded with zeros), their number. All but the slices are int64.
    """
    return call_op(UNIQUE, (x,), {"axis": axis, "sorted": in_order})


def non_max_suppression(
    boxes: Expr,
    scores: Expr,
    most: Expr,
    overlap: Expr,
    least: Expr,
    *,
    limit: int,
    center: bool,
    has_score: bool,
) -> Expr:
    """Per batch and class, the best boxes that do not overlap too much.

    Shapes: boxes (B,N,4) as corners or, with `center`, as (x, y, width, height); scores (B,C,N);
    most (1), int64; overlap and least (1), float32, of which `least` counts if `has_score`.
    `limit` bounds the boxes per class. Returns a tuple: (B·C·min(N, limit), 3) of (batch, class,
    box), padded with zeros, and how many there are.
    """
    attrs = {"most": limit, "center": center, "has_score": has_score}
    return call_op(NON_MAX_SUPPRESSION, (boxes, scores, most, overlap, least), attrs)


def max_pool_indices(
    x: Expr,
    *,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    before: tuple[int, ...],
    dilation: tuple[int, ...],
    outputs: tuple[int, ...],
    column_major: bool,
) -> Expr:
    """Maxima over windows of x (N,C,…), and their flat positions in x (int64).

    `outputs` is how many windows there are along each spatial axis. With `column_major`, positions
    count the first spatial axis fastest.
    """
    attrs = {
        "kernel": list(kernel),
        "strides": list(strides),
        "before": list(before),
        "dilation": list(dilation),
        "outputs": list(outputs),
        "column_major": column_major,
    }
    return call_op(MAX_POOL_INDICES, (x,), attrs)


_COUNT = (1,)


def _int64(*shape: int) -> Any:
    return relax.TensorType(list(shape), "int64")


def _shape(call: Expr, index: int) -> list[int]:
    return [int(dim) for dim in call.args[index].ty.shape]


def _infer_nonzero(call: Expr, _: Any) -> Any:
    shape = _shape(call, 0)
    return relax.TupleType([_int64(max(1, len(shape)), prod(shape)), _int64(*_COUNT)])


def _infer_compress(call: Expr, _: Any) -> Any:
    shape, axis = _shape(call, 0), int(attributes(call)["axis"])
    shape[axis] = min(shape[axis], _shape(call, 1)[0])
    return relax.TupleType([relax.TensorType(shape, call.args[0].ty.dtype), _int64(*_COUNT)])


def _infer_unique(call: Expr, _: Any) -> Any:
    size = _shape(call, 0)[int(attributes(call)["axis"])]
    return relax.TupleType([call.args[0].ty, *[_int64(size)] * 3, _int64(*_COUNT)])


def _infer_nms(call: Expr, _: Any) -> Any:
    batches, classes, boxes = _shape(call, 1)
    rows = batches * classes * min(boxes, int(attributes(call)["most"]))
    return relax.TupleType([_int64(rows, 3), _int64(*_COUNT)])


def _infer_pool(call: Expr, _: Any) -> Any:
    shape = [*_shape(call, 0)[:2], *attributes(call)["outputs"]]
    return relax.TupleType([relax.TensorType(shape, call.args[0].ty.dtype), _int64(*shape)])


NONZERO = register("graphopt.nonzero", 1, _infer_nonzero)
COMPRESS = register("graphopt.compress", 2, _infer_compress)
UNIQUE = register("graphopt.unique", 1, _infer_unique)
NON_MAX_SUPPRESSION = register("graphopt.non_max_suppression", 5, _infer_nms)
MAX_POOL_INDICES = register("graphopt.max_pool_indices", 1, _infer_pool)
