"""Reductions along axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from tvm import relax

from graphopt.frontend.converters.elementwise import is_float
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
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
    skip = node.flag_attr("noop_with_empty_axes")
    axes = sorted({normal_axis(axis, rank) for axis in stated})
    if axes:
        return axes
    return None if skip or rank == 0 else list(range(rank))


def _reducing(function: Callable[[NodeContext, Expr, Reduce], Expr]) -> Callable[..., Expr]:
    """Converter that reads axes and keepdims, then calls function(node, x, reduce)."""

    def convert(node: NodeContext) -> Expr:
        x = node.input(0)
        keep = node.flag_attr("keepdims", 1)
        axes = _axes(node, len(shape_of(x)))

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
    if is_float(x):
        return reduce(x, op.mean)
    total = reduce(x, op.sum)
    count = prod(shape_of(x)) // max(1, prod(shape_of(total)))
    return total if count == 1 else node.emit(op.divide(total, node.scalar(max(1, count), total)))


def _norm1(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
    return reduce(node.emit(op.abs(x)), op.sum)


def _squares(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
    return reduce(node.emit(op.multiply(x, x)), op.sum)


def _norm2(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
    return _of_floats(node, x, lambda x: node.emit(op.sqrt(_squares(node, x, reduce))))


def _log_sum(node: NodeContext, x: Expr, reduce: Reduce) -> Expr:
    return _of_floats(node, x, lambda x: node.emit(op.log(reduce(x, op.sum))))


def _of_floats(node: NodeContext, x: Expr, function: Callable[[Expr], Expr]) -> Expr:
    """`function` of x; of integers in float64, cut off at the point."""
    if is_float(x):
        return function(x)
    return node.cast(function(node.cast(x, "float64")), dtype_of(x))


def log_sum_exp(node: NodeContext) -> Expr:
    """log Σ e^x, with the maximum taken out so that e^x cannot overflow."""
    x = node.input(0)
    shape = shape_of(x)
    keep = node.flag_attr("keepdims", 1)
    axes = _axes(node, len(shape))
    if axes is None:
        return x
    return _of_floats(node, x, lambda x: _log_sum_exp(node, x, axes, keep))


def _log_sum_exp(node: NodeContext, x: Expr, axes: list[int], keep: bool) -> Expr:
    largest = node.emit(op.max(x, axes, True))
    shifted = node.emit(op.exp(node.emit(op.subtract(x, largest))))
    total = node.emit(op.log(node.emit(op.sum(shifted, axes, True))))
    result = node.emit(op.add(total, largest))
    if keep:
        return result
    return node.reshape(result, [dim for i, dim in enumerate(shape_of(x)) if i not in axes])


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
}
