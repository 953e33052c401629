"""The scalar operations of quantized arithmetic as TIR expressions that vectorise.

Their results are exact: the one quotient or product is rounded once to the precision it is asked
in (see _known_quotient for machines without fused multiply-add), then to the nearest integer (ties
to even), and only then saturated. NaN becomes the least value, as the maximum instruction
of x86 makes it elsewhere too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tvm import tirx

from schedules.interface import Attr, PrimExpr
from schedules.scalar_math import dtype_of, let

Attrs = Mapping[str, Attr]

_MAGIC = tirx.const(1.5 * 2**23, "float32")
"""Its neighbours are integers: adding a number below 2²² to it rounds that to even on ties. Its own
last sixteen bits are zero."""


def _float(x: PrimExpr) -> PrimExpr:
    return x if dtype_of(x) == "float32" else tirx.Cast("float32", x)


def _rounded(product: PrimExpr) -> PrimExpr:
    """A product that is rounded by itself, not joined with an addition behind it.

    Numbers that were quantized lie on a grid, so that sums of them fall between two integers all
    the time: there the last bit decides, and it should be the one that the model's operators give.
    """
    return tirx.call_llvm_pure_intrin("float32", "llvm.arithmetic.fence", product)


def _inside(op: str, args: Sequence[PrimExpr], attrs: Attrs) -> PrimExpr:
    """What quantize or requantize rounds, within the limits of `attrs`, else of zero's type, both
    less zero."""
    zero = args[2]
    bounds = np.iinfo(dtype_of(zero))
    limits = (attrs.get("low", bounds.min), attrs.get("high", bounds.max))
    if op == "quantize" and _is_known(args, attrs):
        return _known_quotient(args, limits)  # type: ignore[arg-type]
    low, high = (tirx.const(float(bound), "float32") for bound in limits)  # type: ignore[arg-type]
    shift = _float(zero)
    return _clamped(_SCALED[op](args, attrs), low - shift, high - shift)


def _clamped(x: PrimExpr, low: PrimExpr, high: PrimExpr) -> PrimExpr:
    # In this order of arguments NaN gives `low`: a failed comparison takes the second.
    return tirx.min(tirx.max(x, low), high)


def _is_known(args: Sequence[PrimExpr], attrs: Attrs) -> bool:
    """Whether float32 numbers are divided by a number far from the ends of the exponent's range."""
    x, scale, zero = args
    return (
        attrs["precision"] == "float32"
        and dtype_of(x) == dtype_of(scale) == "float32"
        and isinstance(scale, tirx.FloatImm)
        and isinstance(zero, tirx.IntImm)
        and 2.0**-100 < scale.value < 2.0**100
    )


def _known_quotient(args: Sequence[PrimExpr], limits: tuple[int, int]) -> PrimExpr:
    """x / scale within `limits` less zero, without a division.

    The product with the reciprocal is corrected by its remainder: two fused operations that give
    the rounded quotient (Markstein, "Computation of elementary functions on the IBM RISC System/
    6000 processor", 1990). On machines without them its last bit may be off. x is brought within
    the limits first, so that no infinity meets another.
    """
    x, scale, zero = args
    step = np.float32(scale.value)
    low, high = (float(np.float32(limit - int(zero.value)) * step) for limit in limits)
    inverse = tirx.const(float(np.float32(1 / np.float64(step))), "float32")
    negative = tirx.const(-float(step), "float32")

    def corrected(x: PrimExpr) -> PrimExpr:
        return let(
            x * inverse,
            lambda quotient: let(
                x + quotient * negative, lambda remainder: quotient + remainder * inverse
            ),
        )

    return let(_clamped(x, tirx.const(low, "float32"), tirx.const(high, "float32")), corrected)


def _saturated(op: str, args: Sequence[PrimExpr], attrs: Attrs) -> PrimExpr:
    """The result of quantize or requantize."""
    # The sum's last bits are the integer's: they are added to zero's and cut off, unconverted.
    bits = tirx.reinterpret("int32", _inside(op, args, attrs) + _MAGIC)
    return tirx.Cast(dtype_of(args[2]), bits + tirx.Cast("int32", args[2]))


def _quotient(args: Sequence[PrimExpr], attrs: Attrs) -> PrimExpr:
    """x / scale, rounded to the precision that is asked for."""
    x, scale, _ = args
    if attrs["precision"] == "float16":
        # The quotient in float32 of two float16 rounds to that in float16.
        half = [_float(tirx.Cast("float16", _float(v))) for v in (x, scale)]
        return _float(tirx.Cast("float16", half[0] / half[1]))
    return _float(x) / _float(scale)


def _product(args: Sequence[PrimExpr], _attrs: Attrs) -> PrimExpr:
    """x · multiplier."""
    return _float(args[0]) * _float(args[1])


_SCALED = {"quantize": _quotient, "requantize": _product}


def level(op: str, args: Sequence[PrimExpr], attrs: Attrs) -> PrimExpr:
    """The result of quantize or requantize less its zero point, as a float32: the same integer,
    without conversions to bytes and back."""
    # A variable in between, for TVM folds (a + c) − c.
    return let(_inside(op, args, attrs) + _MAGIC, lambda sum_: sum_ - _MAGIC)


def quantize(args: Sequence[PrimExpr], attrs: Attrs) -> PrimExpr:
    """saturate(round(x / scale) + zero)."""
    return _saturated("quantize", args, attrs)


def dequantize(args: Sequence[PrimExpr], attrs: Attrs) -> PrimExpr:
    """(x − zero) · scale."""
    x, scale, zero = args
    difference = tirx.Cast("int32", x) - tirx.Cast("int32", zero)
    return scaled(_float(difference), scale, attrs)


def scaled(difference: PrimExpr, scale: PrimExpr, attrs: Attrs) -> PrimExpr:
    """What dequantize gives for x − zero."""
    value = _rounded(difference * _float(scale))
    dtype = str(attrs["dtype"])
    return value if dtype == "float32" else tirx.Cast(dtype, value)


def requantize(args: Sequence[PrimExpr], attrs: Attrs) -> PrimExpr:
    """saturate(round(x · multiplier) + zero)."""
    return _saturated("requantize", args, attrs)


QUANTIZED: Mapping[str, Callable[[Sequence[PrimExpr], Attrs], PrimExpr]] = {
    "quantize": quantize,
    "dequantize": dequantize,
    "requantize": requantize,
}
