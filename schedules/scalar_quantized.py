"""The scalar operations of quantized arithmetic as TIR expressions that vectorise.

Their results are exact: the one quotient or product is rounded once to the precision it is asked
in, then to the nearest integer (ties to even), and only then saturated. NaN becomes the least
value, as the maximum instruction of x86 makes it elsewhere too.
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


def _inside(x: PrimExpr, zero: PrimExpr, attrs: Attrs) -> PrimExpr:
    """x within the limits of `attrs`, else of zero's type, both less zero."""
    bounds = np.iinfo(dtype_of(zero))
    limits = (attrs.get("low", bounds.min), attrs.get("high", bounds.max))
    low, high = (tirx.const(float(bound), "float32") for bound in limits)  # type: ignore[arg-type]
    # In this order of arguments NaN gives `low`: a failed comparison takes the second.
    shift = _float(zero)
    return tirx.min(tirx.max(x, low - shift), high - shift)


def _saturated(x: PrimExpr, zero: PrimExpr, attrs: Attrs) -> PrimExpr:
    """round(x) + zero within the limits of `attrs`, else of zero's type, in zero's type."""
    # The sum's last bits are the integer's: they are added to zero's and cut off, unconverted.
    bits = tirx.reinterpret("int32", _inside(x, zero, attrs) + _MAGIC)
    return tirx.Cast(dtype_of(zero), bits + tirx.Cast("int32", zero))


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
    inside = _inside(_SCALED[op](args, attrs), args[2], attrs)
    # A variable in between, for TVM folds (a + c) − c.
    return let(inside + _MAGIC, lambda sum_: sum_ - _MAGIC)


def quantize(args: Sequence[PrimExpr], attrs: Attrs) -> PrimExpr:
    """saturate(round(x / scale) + zero)."""
    return _saturated(_quotient(args, attrs), args[2], attrs)


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
    return _saturated(_product(args, attrs), args[2], attrs)


QUANTIZED: Mapping[str, Callable[[Sequence[PrimExpr], Attrs], PrimExpr]] = {
    "quantize": quantize,
    "dequantize": dequantize,
    "requantize": requantize,
}
