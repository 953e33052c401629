"""Small parts of the scalar operations: immediates, limits, casts, calls of libm."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from schedules.interface import PrimExpr
from schedules.scalar_math import bits, dtype_of, from_bits, i32, is_nan, let

HALF = ("float16", "bfloat16")


def constant(value: float, dtype: str) -> PrimExpr:
    """`value` as an immediate of `dtype`."""
    return tirx.const(value, dtype)


def like(value: float, x: PrimExpr) -> PrimExpr:
    """`value` as an immediate of x's dtype."""
    return tirx.const(value, dtype_of(x))


def is_float(x: PrimExpr) -> bool:
    """Whether x is a floating-point value."""
    return "float" in dtype_of(x)


def is_constant(x: PrimExpr) -> bool:
    """Whether x is an immediate."""
    return isinstance(x, (tirx.FloatImm, tirx.IntImm))


def lowest(dtype: str) -> PrimExpr:
    """The identity of maximum: −inf, or the least integer."""
    return tirx.const(float("-inf"), dtype) if "float" in dtype else tirx.min_value(dtype)


def highest(dtype: str) -> PrimExpr:
    """The identity of minimum: inf, or the greatest integer."""
    return tirx.const(float("inf"), dtype) if "float" in dtype else tirx.max_value(dtype)


def libm(name: str) -> Callable[[PrimExpr], PrimExpr]:
    """The function of libm of that name, for float32 and float64."""

    def call(x: PrimExpr) -> PrimExpr:
        suffix = "f" if dtype_of(x) == "float32" else ""
        return tirx.call_pure_extern(dtype_of(x), name + suffix, x)

    return call


def by_width(
    single: Callable[[PrimExpr], PrimExpr], double: Callable[[PrimExpr], PrimExpr]
) -> Callable[[PrimExpr], PrimExpr]:
    """`single` for float32, `double` for float64."""
    return lambda x: single(x) if dtype_of(x) == "float32" else double(x)


def _not_equal_zero(x: PrimExpr) -> PrimExpr:
    zero = like(0, x)
    return tirx.any(x < zero, x > zero, is_nan(x)) if is_float(x) else tirx.NE(x, zero)


def rounded_to_odd(x: PrimExpr) -> PrimExpr:
    """float64 as a float32 that rounds to anything narrower as `x` itself would.

    Where the result is inexact it is the neighbour with an odd last bit (S. Boldo, G. Melquiond,
    "Emulation of FMA and correctly rounded sums", 2008), so that no tie arises that was none.
    """

    def odd(y: PrimExpr) -> PrimExpr:
        back = tirx.Cast("float64", y)
        past = tirx.abs(back) > tirx.abs(x)
        step = tirx.Select(past, i32(-1), i32(1))
        inexact = tirx.all(tirx.any(back < x, back > x), (bits(y) & i32(1)) == i32(0))
        return from_bits(bits(y) + tirx.Select(inexact, step, i32(0)))

    return let(tirx.Cast("float32", x), odd)


def cast(x: PrimExpr, dtype: str) -> PrimExpr:
    """x as `dtype`, to bool by comparing with zero.

    What does not fit is undefined: floats become small integers by way of larger signed ones, as
    compilers for x86 do it. float64 becomes float16 by way of a float32 that no tie arises in.
    """
    source = dtype_of(x)
    if source == dtype:
        return x
    if dtype == "bool":
        if source in HALF:
            return cast(tirx.Cast("float32", x), dtype)
        return let(x, _not_equal_zero)
    if is_float(x) and dtype in ("int8", "uint8", "int16", "uint16"):
        return tirx.Cast(dtype, tirx.Cast("int32", x))
    if is_float(x) and dtype == "uint32":
        return tirx.Cast(dtype, tirx.Cast("int64", x))
    if source == "float64" and dtype in HALF:
        return let(x, lambda x: tirx.Cast(dtype, rounded_to_odd(x)))
    if source in HALF and dtype == "float64":
        return tirx.Cast(dtype, tirx.Cast("float32", x))
    if source == "bool":
        return tirx.Select(x, tirx.const(1, dtype), tirx.const(0, dtype))
    return tirx.Cast(dtype, x)
