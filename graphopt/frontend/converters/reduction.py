"""Reductions along axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    dtype_of,
    normal_axis,
    shape_of,
)

op = relax.op

Reduce = Callable[[Expr, list[int], bool], Expr]


def _reduced(function: Callable[[NodeContext, Expr, Reduce], Expr]) -> Callable[..., Expr]:
    """Converter that reads axes and keepdims, then calls function(node, x, reduce)."""

    def convert(node: NodeContext) -> Expr:
        x = node.input(0)
        rank = len(shape_of(x))
        keep = bool(node.int("keepdims", 1))
        if node.has(1):
            axes = node.ints(1, "axes")
        else:
            axes = node.int_list("axes") or []
        if node.int("noop_with_empty_axes") and not axes:
            # Only the reduction is skipped: L1, logarithms and squares still apply.
            return function(node, x, lambda value, *_: value)
        axes = sorted({normal_axis(axis, rank) for axis in axes}) or list(range(rank))
        if 0 in shape_of(x):
            raise Unsupported("a reduction of an empty tensor is not supported")
        if not axes:
            return function(node, x, lambda value, *_: value)

        def apply(value: Expr, function: Any) -> Expr:
            return node.emit(function(value, axes, keep))

        return function(node, x, lambda value, reduce_function, *_: apply(value, reduce_function))

    return convert


def _plain(reduce_function: Any) -> Callable[..., Expr]:
    return _reduced(lambda node, x, reduce: reduce(x, reduce_function, False))


def _extremum(reduce_function: Any) -> Callable[..., Expr]:
    def apply(node: NodeContext, x: Expr, reduce: Any) -> Expr:
        if dtype_of(x) != "bool":
            return reduce(x, reduce_function)
        return node.cast(reduce(node.cast(x, "uint8"), reduce_function), "bool")

    return _reduced(apply)


def _mean(node: NodeContext, x: Expr, reduce: Any) -> Expr:
    if np.dtype(dtype_of(x)).kind != "f":
        raise Unsupported(f"ReduceMean of {dtype_of(x)} is not supported")
    return reduce(x, op.mean)


def _norm1(node: NodeContext, x: Expr, reduce: Any) -> Expr:
    return reduce(node.emit(op.abs(x)), op.sum)


def _squares(node: NodeContext, x: Expr, reduce: Any) -> Expr:
    return reduce(node.emit(op.multiply(x, x)), op.sum)


def _norm2(node: NodeContext, x: Expr, reduce: Any) -> Expr:
    return node.emit(op.sqrt(_squares(node, x, reduce)))


def _log_sum(node: NodeContext, x: Expr, reduce: Any) -> Expr:
    return node.emit(op.log(reduce(x, op.sum)))


def log_sum_exp(node: NodeContext) -> Expr:
    """log Σ e^x, with the maximum taken out so that e^x cannot overflow."""
    x = node.input(0)
    shape = shape_of(x)
    keep = bool(node.int("keepdims", 1))
    axes = node.ints(1, "axes") if node.has(1) else (node.int_list("axes") or [])
    if node.int("noop_with_empty_axes") and not axes:
        return x
    axes = sorted({normal_axis(a, len(shape)) for a in axes}) or list(range(len(shape)))
    if not axes:
        return x
    largest = node.emit(op.max(x, axes, True))
    shifted = node.emit(op.exp(node.emit(op.subtract(x, largest))))
    total = node.emit(op.log(node.emit(op.sum(shifted, axes, True))))
    result = node.emit(op.add(total, largest))
    if keep:
        return result
    return node.reshape(result, [dim for i, dim in enumerate(shape) if i not in axes])


def _arg(function: Any) -> Callable[[NodeContext], Expr]:
    def convert(node: NodeContext) -> Expr:
        x = node.input(0)
        shape = shape_of(x)
        axis = normal_axis(node.int("axis"), len(shape))
        keep = bool(node.int("keepdims", 1))
        if not node.int("select_last_index"):
            return node.cast(node.emit(function(x, axis, keep)), "int64")
        # The last of equal elements is the first of the reversed ones.
        found = node.cast(node.emit(function(node.emit(op.flip(x, axis)), axis, keep)), "int64")
        return node.emit(op.subtract(node.scalar(shape[axis] - 1, found), found))

    return convert


def cumulative_sum(node: NodeContext) -> Expr:
    """CumSum along an axis, exclusive or reversed."""
    x = node.input(0)
    axis = normal_axis(node.ints(1, "axis")[0], len(shape_of(x)))
    backwards = bool(node.int("reverse"))
    if backwards:
        x = node.emit(op.flip(x, axis))
    exclusive = bool(node.int("exclusive"))
    result = node.emit(op.cumsum(x, axis, dtype_of(x), exclusive))
    return node.emit(op.flip(result, axis)) if backwards else result


def size(node: NodeContext) -> Expr:
    """Number of elements."""
    from graphopt.frontend.emit import constant

    return constant(np.array(prod(shape_of(node.input(0))), np.int64))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "ReduceSum"): _plain(op.sum),
    ("", "ReduceMean"): _reduced(_mean),
    ("", "ReduceProd"): _plain(op.prod),
    ("", "ReduceMax"): _extremum(op.max),
    ("", "ReduceMin"): _extremum(op.min),
    ("", "ReduceL1"): _reduced(_norm1),
    ("", "ReduceL2"): _reduced(_norm2),
    ("", "ReduceSumSquare"): _reduced(_squares),
    ("", "ReduceLogSum"): _reduced(_log_sum),
    ("", "ReduceLogSumExp"): log_sum_exp,
    ("", "ArgMax"): _arg(op.argmax),
    ("", "ArgMin"): _arg(op.argmin),
    ("", "CumSum"): cumulative_sum,
}
