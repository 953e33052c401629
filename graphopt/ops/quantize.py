"""Quantized arithmetic: integers stay integers in the IR, so that kernels can use them as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, register


def quantize(
    x: Expr,
    scale: Expr,
    zero: Expr,
    *,
    precision: str = "float32",
    low: int | None = None,
    high: int | None = None,
) -> Expr:
    """saturate(round(x / scale) + zero) in zero's type; ties go to even, NaN to the least value.

    `low` and `high` are the limits of a narrower type that is kept in zero's.

    x is a float tensor or int32; `scale` and `zero` have its rank, each dimension x's or 1, or
    are scalars. Blocks are an axis of their own: x (…, D/B, B), scale (…, D/B, 1). The quotient
    is rounded to `precision`, float32 or float16.
    """
    attrs = {"precision": precision} | _limits(zero, low, high)
    return call_op(QUANTIZE, (x, scale, zero), attrs)


def dequantize(x: Expr, scale: Expr, zero: Expr, *, dtype: str = "float32") -> Expr:
    """(x − zero) · scale in `dtype`; the difference is exact, the product is a float32's.

    x is of an integer type of up to 32 bits and of zero's type; shapes as for quantize().
    """
    return call_op(DEQUANTIZE, (x, scale, zero), {"dtype": dtype})


def requantize(
    x: Expr, multiplier: Expr, zero: Expr, *, low: int | None = None, high: int | None = None
) -> Expr:
    """saturate(round(x · multiplier) + zero) in zero's type, of int32 sums or float32 numbers x.

    The product is a float32's, as is x's conversion; ties go to even, NaN to the least value.
    `low`, `high` and shapes as for quantize().
    """
    return call_op(REQUANTIZE, (x, multiplier, zero), _limits(zero, low, high))


def _limits(zero: Expr, low: int | None, high: int | None) -> dict[str, Any]:
    bounds = np.iinfo(str(zero.ty.dtype))
    return {
        "low": int(bounds.min if low is None else low),
        "high": int(bounds.max if high is None else high),
    }


def conv_integer(
    x: Expr,
    w: Expr,
    *,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    pad_value: int = 0,
) -> Expr:
    """Convolution of x (N,C,…) with w (O,C/groups,…) over 1 to 3 axes → (N,O,…) in int32, exact.

    Either operand is int8, uint8 or int16; `padding` is all before, then all after, and reads as
    `pad_value`, the zero point of x where x still has one. Sums wrap as int32 does.
    """
    attrs = {
        "strides": list(strides),
        "padding": list(padding),
        "dilation": list(dilation),
        "groups": int(groups),
        "pad_value": int(pad_value),
    }
    return call_op(CONV_INTEGER, (x, w), attrs)


def matmul_integer(
    a: Expr, b: Expr, *, zeros: Sequence[int] = (0, 0), transpose_b: bool = False
) -> Expr:
    """a (…,M,K) times b (…,K,N) with NumPy's broadcasting → (…,M,N) in int32, exact.

    Either operand is int8, uint8 or int16, less its zero point of `zeros`. With `transpose_b`, b
    is (…,N,K). Sums wrap as int32 does.
    """
    attrs = {"zeros": [int(zero) for zero in zeros], "transpose_b": bool(transpose_b)}
    return call_op(MATMUL_INTEGER, (a, b), attrs)


_PRODUCT_TYPES = ("int8", "uint8", "int16")


def _shape(expr: Expr) -> tuple[int, ...]:
    return tuple(int(dim) for dim in expr.ty.shape)


def _check_broadcast(call: Expr) -> None:
    shape = _shape(call.args[0])
    for other in map(_shape, call.args[1:]):
        fits = not other or (
            len(other) == len(shape)
            and all(have in (1, want) for have, want in zip(other, shape, strict=True))
        )
        if not fits:
            raise ValueError(f"{call.op.name}: {other} does not broadcast to {shape}")


def _infer_quantize(call: Expr, _: Any) -> Any:
    _check_broadcast(call)
    return relax.TensorType(list(_shape(call.args[0])), call.args[2].ty.dtype)


def _infer_dequantize(call: Expr, _: Any) -> Any:
    _check_broadcast(call)
    if str(call.args[0].ty.dtype) != str(call.args[2].ty.dtype):
        raise ValueError("graphopt.dequantize: the zero point has another type than the data")
    return relax.TensorType(list(_shape(call.args[0])), attributes(call)["dtype"])


def _check_product_types(call: Expr) -> None:
    for arg in call.args:
        if str(arg.ty.dtype) not in _PRODUCT_TYPES:
            raise ValueError(f"{call.op.name}: operand of type {arg.ty.dtype}")


def _infer_conv(call: Expr, _: Any) -> Any:
    _check_product_types(call)
    x, w = map(_shape, call.args)
    attrs = attributes(call)
    rank, groups = len(x) - 2, attrs["groups"]
    if len(w) != rank + 2 or x[1] != w[1] * groups or w[0] % groups:
        raise ValueError(f"graphopt.conv_integer: {x} and {w} do not fit with {groups} groups")
    pads = attrs["padding"]
    out = [
        (size + before + after - d * (k - 1) - 1) // s + 1
        for size, k, before, after, s, d in zip(
            x[2:], w[2:], pads[:rank], pads[rank:], attrs["strides"], attrs["dilation"], strict=True
        )
    ]
    if min(out) < 1:
        raise ValueError(f"graphopt.conv_integer: the window {w[2:]} is larger than the input {x}")
    return relax.TensorType([x[0], w[0], *out], "int32")


def _infer_matmul(call: Expr, _: Any) -> Any:
    _check_product_types(call)
    a, b = map(_shape, call.args)
    if attributes(call)["transpose_b"] and len(b) > 1:
        b = (*b[:-2], b[-1], b[-2])
    if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
        raise ValueError(f"graphopt.matmul_integer: {a} and {b} cannot be multiplied")
    rank = max(len(a), len(b)) - 2
    batch = []
    for left, right in zip(_leading(a, rank), _leading(b, rank), strict=True):
        if left != right and 1 not in (left, right):
            raise ValueError(f"graphopt.matmul_integer: {a} and {b} do not broadcast")
        batch.append(right if left == 1 else left)
    return relax.TensorType([*batch, a[-2], b[-1]], "int32")


def _leading(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape) + 2) + shape[:-2]


QUANTIZE = register("graphopt.quantize", 3, _infer_quantize)
DEQUANTIZE = register("graphopt.dequantize", 3, _infer_dequantize)
REQUANTIZE = register("graphopt.requantize", 3, _infer_quantize)
CONV_INTEGER = register("graphopt.conv_integer", 2, _infer_conv)
MATMUL_INTEGER = register("graphopt.matmul_integer", 2, _infer_matmul)
