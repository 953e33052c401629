"""Padding with a value that is only known at run time."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, register


def pad_with(x: Expr, value: Expr, *, before: tuple[int, ...], after: tuple[int, ...]) -> Expr:
    """x surrounded by `before` and `after` copies of value (one element, x's dtype) per axis."""
    attrs = {"before": list(before), "after": list(after), "mode": "constant"}
    return call_op(PAD, (x, value), attrs)


def _infer_pad(call: Expr, _: Any) -> Any:
    x, value = (arg.ty for arg in call.args)
    if str(x.dtype) != str(value.dtype) or [int(dim) for dim in value.shape] != [1]:
        raise ValueError("graphopt.pad: the value is not one element of the input's type")
    attrs = attributes(call)
    widths = zip(x.shape, attrs["before"], attrs["after"], strict=True)
    return relax.TensorType([dim + b + a for dim, b, a in widths], x.dtype)


PAD = register("graphopt.pad", 2, _infer_pad)
