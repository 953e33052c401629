"""Reductions along axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

Reduction = Callable[[Expr, list[int], bool], Expr]
"""A Relax operator: (value, axes, keepdims) → reduced value."""

Reduce = Callable[[Expr, Reduction], Expr]
"""Applies a Reduction along the node's axes; does nothing where the node asks for no reduction."""


def _axes(node: NodeContext, rank: int) -> list[int] | None:
    """The axes to reduce, sorted; None for no reduction at all."""
    stated = node.ints(1, "axes") if node.has(1) else (node.int_list("axes") or [])
    skip = bool(node.int_attr("noop_with_empty_axes"))
    axes = sorted({normal_axis(axis, rank) for axis in stated})
    if axes:
        return axes
    return None if skip or rank == 0 else list(range(rank))


def _reducing(function: Callable[[NodeContext, Expr, Reduce], Expr]) -> Callable[..., Expr]:
    """Converter that reads axes and keepdims, then calls function(node, x, reduce)."""

    def convert(node: NodeContext) -> Expr:
        x = node.input(0)
        keep = bool(node.int_attr("keepdims", 1))
        axes = _axes(node, len(shape_of(x)))
        if 0 in shape_of(x):
            raise Unsupported("a reduction of an empty tensor is not supported")

        def reduce(value: Expr, reduction: Reduction) -> Expr:
            return value if axes is None else node.emit(reduction(value, axes, keep))

        return function(node, x, reduce)

    return convert


def _plain(reduction: Reduction) -> Callable[..., Expr]:
    return _reducing(lambda node, x, reduce: reduce(x, reduction))


def _extremum(reduction: Reduction) -> Callable[..., Expr]:
    def apply(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
        if dtype_of(x) != "bool":
            return reduce(x, reduction)
        return node.cast(reduce(node.cast(x, "uint8"), reduction), "bool")

    return _reducing(apply)


def _mean(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
    if np.dtype(dtype_of(x)).kind != "f":
        raise Unsupported(f"ReduceMean of {dtype_of(x)} is not supported")
    return reduce(x, op.mean)


def _norm1(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
    return reduce(node.emit(op.abs(x)), op.sum)


def _squares(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
    return reduce(node.emit(op.multiply(x, x)), op.sum)


def _norm2(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
    return node.emit(op.sqrt(_squares(node, x, reduce)))


def _log_sum(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
    return node.emit(op.log(reduce(x, op.sum)))


def log_sum_exp(node: NodeContext) -> Expr:
    """log Σ e^x, with the maximum taken out so that e^x cannot overflow."""
    x = node.input(0)
    shape = shape_of(x)
    keep = bool(node.int_attr("keepdims", 1))
    axes = _axes(node, len(shape))
    if axes is None:
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
        axis = normal_axis(node.int_attr("axis"), len(shape))
        keep = bool(node.int_attr("keepdims", 1))
        if not node.int_attr("select_last_index"):
            return node.cast(node.emit(function(x, axis, keep)), "int64")
        # The last of equal elements is the first of the reversed ones.
        found = node.cast(node.emit(function(node.emit(op.flip(x, axis)), axis, keep)), "int64")
        return node.emit(op.subtract(node.scalar(shape[axis] - 1, found), found))

    return convert


def cumulative_sum(node: NodeContext) -> Expr:
    """CumSum along an axis, exclusive or reversed."""
    x = node.input(0)
    axis = normal_axis(node.ints(1, "axis")[0], len(shape_of(x)))
    backwards = bool(node.int_attr("reverse"))
    if backwards:
        x = node.emit(op.flip(x, axis))
    exclusive = bool(node.int_attr("exclusive"))
    result = node.emit(op.cumsum(x, axis, dtype_of(x), exclusive))
    return node.emit(op.flip(result, axis)) if backwards else result


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "ReduceSum"): _plain(op.sum),
    ("", "ReduceMean"): _reducing(_mean),
    ("", "ReduceProd"): _plain(op.prod),
    ("", "ReduceMax"): _extremum(op.max),
    ("", "ReduceMin"): _extremum(op.min),
    ("", "ReduceL1"): _reducing(_norm1),
    ("", "ReduceL2"): _reducing(_norm2),
    ("", "ReduceSumSquare"): _reducing(_squares),
    ("", "ReduceLogSum"): _reducing(_log_sum),
    ("", "ReduceLogSumExp"): log_sum_exp,
    ("", "ArgMax"): _arg(op.argmax),
    ("", "ArgMin"): _arg(op.argmin),
    ("", "CumSum"): cumulative_sum,
}
