"""Operators whose results are as long as their data says (bounded.py), and pooling by position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.bounded import BOUNDED, DOMAIN, nms_limit
from graphopt.frontend.converters.windows import ceil_padding, read_window
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    normal_axis,
    shape_of,
)
from graphopt.ops import indexing, selection

op = relax.op


def _fields(node: NodeContext, call: Expr, count: int) -> tuple[Expr | None, ...]:
    """The fields of a call with `count` results that someone wants."""
    bound = node.emit(call)
    return tuple(
        node.emit(relax.TupleGetItem(bound, i), i) if node.wants(i) else None for i in range(count)
    )


def _lengthwise(node: NodeContext) -> tuple[Expr, int]:
    """Input 0 and its axis; without one, all of it in a row."""
    x = node.input(0)
    if not node.has_attribute("axis"):
        return node.reshape(x, (prod(shape_of(x)),)), 0
    return x, normal_axis(node.int_attr("axis"), len(shape_of(x)))


def nonzero(node: NodeContext) -> tuple[Expr | None, ...]:
    """Coordinates of the elements that are not zero; a scalar counts as one row."""
    return _fields(node, selection.nonzero(node.input(0)), 2)


def compress(node: NodeContext) -> tuple[Expr | None, ...]:
    """Slices for which a condition holds."""
    x, axis = _lengthwise(node)
    condition = node.input(1)
    if len(shape_of(condition)) != 1:
        raise Unsupported("the condition has not one axis")
    return _fields(node, selection.compress(x, condition, axis), 2)


def unique(node: NodeContext) -> tuple[Expr | None, ...]:
    """The different elements or slices."""
    in_order = node.flag_attr("sorted", 1)
    x, axis = _lengthwise(node)
    return _fields(node, selection.unique(x, axis, in_order), 5)


def non_max_suppression(node: NodeContext) -> tuple[Expr | None, ...]:
    """Boxes that do not overlap a better one of their class."""
    boxes, scores = node.input(0), node.input(1)
    placed, rated = shape_of(boxes), shape_of(scores)
    if len(placed) != 3 or len(rated) != 3 or placed != (rated[0], rated[2], 4):
        raise Unsupported(f"boxes {list(placed)} and scores {list(rated)} do not fit together")

    def one(index: int, dtype: str) -> Expr:
        if not node.has(index):
            return constant(np.zeros(1), dtype)
        known = node.array(index)
        if known is not None:
            return constant(known.reshape(-1)[:1], dtype)
        return node.reshape(node.cast(node.input(index), dtype), (1,))

    call = selection.non_max_suppression(
        boxes,
        scores,
        one(2, "int64"),
        one(3, "float32"),
        one(4, "float32"),
        limit=nms_limit(node.array(2), node.has(2)),
        center=node.flag_attr("center_point_box"),
        has_score=node.has(4),
    )
    return _fields(node, call, 2)


def max_pool_with_indices(node: NodeContext) -> tuple[Expr | None, ...]:
    """MaxPool with its second output: where in the input each maximum was."""
    x = node.input(0)
    spatial = shape_of(x)[2:]
    kernel = tuple(node.int_list("kernel_shape") or ())
    if len(kernel) != len(spatial):
        raise Unsupported(f"kernel_shape {list(kernel)} does not fit the input")
    window = read_window(node, kernel, spatial)
    if node.flag_attr("ceil_mode"):
        window = replace(window, after=ceil_padding(window, spatial))
    call = selection.max_pool_indices(
        x,
        kernel=kernel,
        strides=window.strides,
        before=window.before,
        dilation=window.dilations,
        outputs=window.outputs(spatial),
        column_major=node.flag_attr("storage_order"),
    )
    return _fields(node, call, 2)


def max_unpool(node: NodeContext) -> Expr:
    """Zeros but for the values at the positions that a MaxPool found."""
    x, indices = node.input(0), node.input(1)
    shape = shape_of(x)
    kernel = node.int_list("kernel_shape") or []
    rank = len(shape) - 2
    strides = node.int_list("strides") or [1] * rank
    pads = node.int_list("pads") or [0] * (2 * rank)
    if not len(kernel) == len(strides) == rank or len(pads) != 2 * rank:
        raise Unsupported("kernel_shape, strides or pads do not fit the input")
    if shape_of(indices) != shape:
        raise Unsupported(f"indices {list(shape_of(indices))} do not fit {list(shape)}")
    spatial = [
        (shape[2 + d] - 1) * strides[d] - pads[d] - pads[rank + d] + kernel[d] for d in range(rank)
    ]
    inner = (*shape[:2], *spatial)
    if min(spatial, default=1) < 1:
        raise Unsupported(f"an output of shape {list(inner)} is impossible")
    total = prod(inner)
    zeros = node.emit(op.broadcast_to(constant(np.zeros(1), dtype_of(x)), (total,)))
    flat = node.reshape(indices, (prod(shape), 1))
    values = node.reshape(x, (prod(shape),))
    result = node.reshape(node.emit(indexing.scatter_nd(zeros, flat, values, "none")), inner)
    if not node.has(2):
        return result
    wanted = tuple(node.ints(2, "output_shape"))
    if len(wanted) != len(inner) or any(w < i for w, i in zip(wanted, inner, strict=True)):
        raise Unsupported(f"output_shape {list(wanted)} does not hold {list(inner)}")
    if wanted == inner:
        return result
    widths = [width for w, i in zip(wanted, inner, strict=True) for width in (0, w - i)]
    return node.emit(op.nn.pad(result, widths))


def _refuse(node: NodeContext) -> Expr:
    raise Unsupported("the shape of its result depends on the data")


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    **{("", name): _refuse for name in sorted(BOUNDED)},
    (DOMAIN, "NonZero"): nonzero,
    (DOMAIN, "Compress"): compress,
    (DOMAIN, "Unique"): unique,
    (DOMAIN, "NonMaxSuppression"): non_max_suppression,
    ("", "MaxUnpool"): max_unpool,
}
