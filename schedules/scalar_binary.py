"""Scalar operations on two or three values, by name, as TIR expressions that vectorise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tvm import tirx

from schedules.interface import PrimExpr
from schedules.scalar_math import dtype_of, is_nan, let
from schedules.scalar_values import is_constant, is_float, like, lowest


def maximum(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """max(a, b); NaN if either is."""
    return _extremum(tirx.max, a, b)


def minimum(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """min(a, b); NaN if either is."""
    return _extremum(tirx.min, a, b)


def _extremum(choose: Callable[..., PrimExpr], a: PrimExpr, b: PrimExpr) -> PrimExpr:
    # The machine's max(a, b) is b where a comparison with NaN fails: only a NaN in a is lost.
    if not is_float(a):
        return choose(a, b)
    if is_constant(b):
        a, b = b, a
    if is_constant(a):
        return choose(a, b)
    return let(a, lambda a: let(b, lambda b: tirx.Select(is_nan(a), a, choose(a, b))))


def _exclusive_or(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    return tirx.any(tirx.all(a, tirx.Not(b)), tirx.all(tirx.Not(a), b))


def _divisor(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """b, or 1 where dividing a by b would trap: b = 0, or the least integer by −1."""
    if is_constant(b) and int(b) not in (0, -1):
        return b
    # Sums, not Select: the division would be moved into a Select's branches and trap there.
    dtype = dtype_of(b)
    result = b + tirx.Cast(dtype, b == like(0, b))
    if not dtype.startswith("uint"):
        # TVM takes a == lowest for impossible.
        overflow = tirx.all(b == like(-1, b), a < lowest(dtype) + like(1, b))
        result = result + tirx.Cast(dtype, overflow) * like(2, b)
    return result


def _divide(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    if is_float(a):
        if isinstance(b, tirx.FloatImm) and b.value == 0:  # TVM refuses to divide by it
            return a * like(math.copysign(math.inf, b.value), a)
        return a / b
    return tirx.truncdiv(a, _divisor(a, b))


def _remainder(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """C's remainder: the sign of a."""
    if is_float(a):
        return tirx.call_pure_extern(
            dtype_of(a), "fmodf" if dtype_of(a) == "float32" else "fmod", a, b
        )
    return tirx.truncmod(a, _divisor(a, b))


def _modulo(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """Python's modulo: the sign of b."""

    def fix(r: PrimExpr) -> PrimExpr:
        zero = like(0, r)
        if is_float(r):
            zero = tirx.Select(b < zero, like(-0.0, r), zero)
            r = tirx.Select(r == zero, zero, r)
        wrong = tirx.any(tirx.all(r < zero, b > zero), tirx.all(r > zero, b < zero))
        return tirx.Select(wrong, r + b, r)

    unsigned = dtype_of(a).startswith("uint")
    return _remainder(a, b) if unsigned else let(_remainder(a, b), fix)


def _floor_divide(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    if is_float(a):
        return tirx.floor(a / b)

    def fix(q: PrimExpr) -> PrimExpr:
        zero = like(0, a)
        inexact = q * b != a
        return tirx.Select(tirx.all(inexact, _exclusive_or(a < zero, b < zero)), q - like(1, a), q)

    unsigned = dtype_of(a).startswith("uint")
    return _divide(a, b) if unsigned else fix(_divide(a, b))


def _integer_power(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """aᵇ by squaring, wrapping on overflow; for b < 0 the integer part: ±1 of ±1, else 0."""
    one, zero = like(1, a), like(0, a)

    def multiply(exponent: PrimExpr) -> PrimExpr:
        result, square = one, a
        for bit in range(6):
            taken = ((exponent >> like(bit, a)) & one) == one
            result = result * tirx.Select(taken, square, one)
            square = square * square
        return result

    # From 64 on only −1, 0 and 1 have powers that fit; their parity is all that counts.
    odd = b & one
    large = tirx.Select(b >= like(64, b), like(62, b) + odd, b)
    if dtype_of(a).startswith("uint"):
        return multiply(large)
    sign = tirx.Select(odd == one, a, one)
    whole = tirx.Select(tirx.any(a == one, a == like(-1, a)), sign, zero)
    return tirx.Select(b < zero, whole, multiply(large))


def _power(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    if not is_float(a):
        if isinstance(b, tirx.IntImm) and int(b) == 2:
            return a * a
        return _integer_power(a, tirx.Cast(dtype_of(a), b))
    if isinstance(b, tirx.FloatImm):
        value = float(b)
        if value in (0.0, 1.0, 2.0, 3.0, -1.0):
            one = like(1, a)
            return {0.0: one, 1.0: a, 2.0: a * a, 3.0: a * a * a, -1.0: one / a}[value]
    name = "powf" if dtype_of(a) == "float32" else "pow"
    return tirx.call_pure_extern(dtype_of(a), name, a, b)


def _equal(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    # LLVM code generation has no comparison of bools.
    return tirx.Not(_exclusive_or(a, b)) if dtype_of(a) == "bool" else tirx.EQ(a, b)


def _not_equal(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    if dtype_of(a) == "bool":
        return _exclusive_or(a, b)
    # TVM's != is false for NaN.
    if is_float(a):
        return tirx.any(a < b, a > b, is_nan(a), is_nan(b))
    return tirx.NE(a, b)


def _shift_left(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """a · 2ᵇ without what leaves the type; 0 where b is negative or at least a's width."""
    dtype = dtype_of(a)
    inside, amount = _amount(a, b)
    if dtype.startswith("uint"):
        return tirx.Select(inside, tirx.shift_left(a, amount), like(0, a))
    unsigned = "u" + dtype
    bits = tirx.shift_left(tirx.reinterpret(unsigned, a), tirx.reinterpret(unsigned, amount))
    return tirx.Select(inside, tirx.reinterpret(dtype, bits), like(0, a))


def _shift_right(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """⌊a / 2ᵇ⌋; the sign alone, 0 or −1, where b is negative or at least a's width."""
    inside, amount = _amount(a, b)
    shifted = tirx.shift_right(a, amount)
    # The largest amount leaves nothing but the sign of a signed number.
    return tirx.Select(inside, shifted, like(0, a)) if dtype_of(a).startswith("uint") else shifted


def _amount(a: PrimExpr, b: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
    """Whether b is within the width of a, and b there, else the width − 1."""
    width = int("".join(c for c in dtype_of(a) if c.isdigit()))
    inside, last = b < like(width, b), like(width - 1, b)
    if dtype_of(b).startswith("uint"):
        return inside, tirx.min(b, last)
    inside = tirx.all(inside, b >= like(0, b))
    return inside, tirx.Select(inside, b, last)


BINARY: Mapping[str, Callable[[PrimExpr, PrimExpr], PrimExpr]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": _divide,
    "maximum": maximum,
    "minimum": minimum,
    "power": _power,
    "mod": _modulo,
    "floor_mod": _modulo,
    "fmod": _remainder,
    "floor_divide": _floor_divide,
    "equal": _equal,
    "not_equal": _not_equal,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "logical_and": tirx.all,
    "logical_or": tirx.any,
    "logical_xor": _exclusive_or,
    "bitwise_and": tirx.bitwise_and,
    "bitwise_or": tirx.bitwise_or,
    "bitwise_xor": tirx.bitwise_xor,
    "left_shift": _shift_left,
    "right_shift": _shift_right,
    "prelu": lambda x, slope: tirx.Select(x < like(0, x), x * slope, x),
}

TERNARY: Mapping[str, Callable[[PrimExpr, PrimExpr, PrimExpr], PrimExpr]] = {
    "where": tirx.Select,
    "clip": lambda x, low, high: minimum(maximum(x, low), high),
}
