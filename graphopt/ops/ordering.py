"""Operators along one axis: the k largest, the position of the largest, running sums."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, register


def topk(x: Expr, k: int, axis: int, largest: bool) -> Expr:
    """The k largest (or smallest) elements along an axis in order, and their positions.

    Equal elements come in the order of their positions; NaN is the largest value. `axis` is not
    negative and 0 < k ≤ its length. Returns a tuple: values, positions (int64).
    """
    return call_op(TOPK, (x,), {"k": k, "axis": axis, "largest": largest})


def arg_extremum(x: Expr, function: str, axis: int, last: bool) -> Expr:
    """The position (int64) of the "max" or "min" along an axis, which becomes 1 long.

    The first of equal elements, or the last; NaN is found before any number.
    """
    return call_op(ARG_EXTREMUM, (x,), {"function": function, "axis": axis, "last": last})


def scan(x: Expr, function: str, axis: int, *, exclusive: bool, reverse: bool) -> Expr:
    """Running "sum" or "prod" along an axis, of x's type and shape.

    exclusive: each result leaves out its own element. reverse: from the last element on.
    """
    attrs = {"function": function, "axis": axis, "exclusive": exclusive, "reverse": reverse}
    return call_op(SCAN, (x,), attrs)


def _along(call: Expr, length: int) -> list[int]:
    """The first argument's shape with another length of the axis."""
    shape = [int(dim) for dim in call.args[0].ty.shape]
    shape[int(attributes(call)["axis"])] = length
    return shape


def _infer_topk(call: Expr, _: Any) -> Any:
    shape = _along(call, int(attributes(call)["k"]))
    values = relax.TensorType(shape, call.args[0].ty.dtype)
    return relax.TupleType([values, relax.TensorType(shape, "int64")])


def _infer_arg(call: Expr, _: Any) -> Any:
    return relax.TensorType(_along(call, 1), "int64")


def _infer_same(call: Expr, _: Any) -> Any:
    return call.args[0].ty


TOPK = register("graphopt.topk", 1, _infer_topk)
ARG_EXTREMUM = register("graphopt.arg_extremum", 1, _infer_arg)
SCAN = register("graphopt.scan", 1, _infer_same)
