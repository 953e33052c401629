"""Branch-free float32 exp, log, tanh, erf and their kin as TIR expressions that LLVM vectorises.

LLVM turns vector calls of libm functions into one scalar call per lane, so the functions that
networks use most are polynomials here. The coefficients are minimax fits (Remez exchange in
float64, rounded to float32); argument reductions follow Cody and Waite (exp) and the classical
s = f / (2 + f) series (log). Errors are the largest seen over the whole float32 range against
float64: with and without fused multiply-add; tests/schedules/test_scalar.py checks them.

| function | largest error |
|---|---|
| exp, expm1, log, log1p, tanh, erf, sigmoid | 3e-7 relative (subnormal results: 2⁻¹⁴⁸ absolute) |

NaN gives NaN, ±inf the limit, overflow inf. sigmoid returns 0 where the true value is subnormal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import ir, tirx

from schedules.interface import PrimExpr

LN2_HI = 0.693359375  # nine bits, so that n·LN2_HI is exact for every exponent n
LN2_LO = -2.12194440e-4
ROUND = 12582912.0  # 1.5·2²³: adding it rounds a small float32 to an integer, half to even
ROUND_BITS = 0x4B400000


def f32(value: float) -> PrimExpr:
    """`value` as a float32 immediate."""
    return tirx.const(value, "float32")


def i32(value: int) -> PrimExpr:
    """`value` as an int32 immediate."""
    return tirx.const(value, "int32")


def dtype_of(x: PrimExpr) -> str:
    """NumPy's name of the dtype of an expression."""
    return str(x.ty.dtype)


def let(x: PrimExpr, body: Callable[[PrimExpr], PrimExpr]) -> PrimExpr:
    """`body(x)` with a float x evaluated once: expressions are trees, where uses would multiply.

    Integers are repeated: TVM's bounds analysis fails where a nest with such a variable is copied.
    One that defines variables itself, which must not be repeated, is bound as the bits of a float.
    """
    dtype = dtype_of(x)
    if isinstance(x, (tirx.Var, tirx.FloatImm, tirx.IntImm)):
        return body(x)
    if "float" in dtype:
        var = tirx.Var("t", dtype)
        return tirx.Let(var, x, body(var))
    if not defines(x):
        return body(x)
    value, back = as_float(x)
    return let(value, lambda t: body(back(t)))


def as_float(x: PrimExpr) -> tuple[PrimExpr, Callable[[PrimExpr], PrimExpr]]:
    """A float that stands for an integer or bool exactly, and what makes that of it again."""
    dtype = dtype_of(x)
    if dtype in ("int32", "uint32", "int64", "uint64"):
        carrier = "float32" if "32" in dtype else "float64"
        return tirx.reinterpret(carrier, x), lambda t: tirx.reinterpret(dtype, t)
    if dtype == "bool":
        return tirx.Cast("float32", x), lambda t: t > f32(0.5)
    return tirx.Cast("float32", x), lambda t: tirx.Cast(dtype, t)  # 16 bits at most


def defines(x: PrimExpr) -> bool:
    """Whether an expression defines a variable."""
    return isinstance(x, tirx.Let) or any(map(defines, operands(x)))


def operands(x: PrimExpr) -> Sequence[PrimExpr]:
    """What an expression computes with; the index of a read does not count."""
    if isinstance(x, (tirx.Var, tirx.IntImm, tirx.FloatImm)):
        return ()
    if isinstance(x, ir.Call):
        return [arg for arg in x.args if not isinstance(arg, ir.StringImm)]
    names = ("value", "body", "condition", "true_value", "false_value", "a", "b")
    return [getattr(x, name) for name in names if hasattr(x, name)]


def bits(x: PrimExpr) -> PrimExpr:
    """The bit pattern of a float32 as int32."""
    return tirx.reinterpret("int32", x)


def from_bits(x: PrimExpr) -> PrimExpr:
    """The float32 with bit pattern `x` (int32)."""
    return tirx.reinterpret("float32", x)


def is_nan(x: PrimExpr) -> PrimExpr:
    """Whether a float16, float32 or float64 is NaN. By bits: TVM folds x != x to false."""
    dtype = dtype_of(x)
    kind, inf = {
        "float16": ("int16", 0x7C00),
        "float32": ("int32", 0x7F800000),
        "float64": ("int64", 0x7FF0000000000000),
    }[dtype]
    mantissa_and_exponent = (1 << (int(kind[3:]) - 1)) - 1
    magnitude = tirx.reinterpret(kind, x) & tirx.const(mantissa_and_exponent, kind)
    return magnitude > tirx.const(inf, kind)


def copy_sign(magnitude: PrimExpr, sign: PrimExpr) -> PrimExpr:
    """|magnitude| (float32, non-negative) with the sign of `sign`."""
    return from_bits(bits(magnitude) | (bits(sign) & i32(-0x80000000)))


def polynomial(x: PrimExpr, coefficients: Sequence[float]) -> PrimExpr:
    """Horner's rule; `coefficients` from the constant upwards."""
    result = f32(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + f32(c)
    return result


_EXP = (0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.008368716575205326,
        0.001381459878757596)  # fmt: skip


def _reduce_exp(x: PrimExpr, body: Callable[[PrimExpr, PrimExpr], PrimExpr]) -> PrimExpr:
    """body(r, n): x = n·ln 2 + r with |r| ≤ ln 2 / 2, for |x| < 2²¹; n is int32."""

    def reduced(shifted: PrimExpr) -> PrimExpr:
        def remainder(n: PrimExpr) -> PrimExpr:
            r = (x - n * f32(LN2_HI)) - n * f32(LN2_LO)
            return let(r, lambda r: body(r, bits(shifted) - i32(ROUND_BITS)))

        return let(shifted - f32(ROUND), remainder)

    return let(x * f32(1.4426950408889634) + f32(ROUND), reduced)


def _power_of_two(n: PrimExpr) -> PrimExpr:
    """2ⁿ for −126 ≤ n ≤ 127."""
    return from_bits((n + i32(127)) << i32(23))


def exp(x: PrimExpr) -> PrimExpr:
    """eˣ. Two factors of two apply the exponent, so that results may be subnormal or overflow."""

    def clamped(x: PrimExpr) -> PrimExpr:
        def scaled(r: PrimExpr, n: PrimExpr) -> PrimExpr:
            value = (r * r) * polynomial(r, _EXP) + r + f32(1)
            half = n >> i32(1)
            return value * _power_of_two(half) * _power_of_two(n - half)

        return _reduce_exp(x, scaled)

    # tirx.max(constant, x) is x for a NaN x.
    return let(tirx.max(f32(-104), tirx.min(f32(89), x)), clamped)


def _exp_in_range(x: PrimExpr) -> PrimExpr:
    """eˣ for −87 ≤ x ≤ 88, where the result is a normal number."""
    return _reduce_exp(
        x,
        lambda r, n: ((r * r) * polynomial(r, _EXP) + r + f32(1)) * _power_of_two(n),
    )


def exp_of_negative(x: PrimExpr) -> PrimExpr:
    """eˣ for x ≤ 0, cheaper than exp(): 0 below x = −87 (e⁻⁸⁷ ≈ 2⁻¹²⁵·⁵). NaN gives NaN."""

    def cut(x: PrimExpr) -> PrimExpr:
        value = let(tirx.max(f32(-87), x), _exp_in_range)
        return tirx.Select(x < f32(-87), f32(0), value)

    return let(x, cut)


_EXPM1 = (0.5, 0.1666666716337204, 0.0416666679084301, 0.00833314098417759,
          0.0013888543471693993, 0.000199740199605003, 2.4970260710688308e-05)  # fmt: skip


def expm1(x: PrimExpr) -> PrimExpr:
    """eˣ − 1, accurate near zero."""

    def choose(x: PrimExpr) -> PrimExpr:
        near = (x * x) * polynomial(x, _EXPM1) + x
        return tirx.Select(tirx.abs(x) < f32(0.5), near, exp(x) - f32(1))

    return let(x, choose)


def sigmoid(x: PrimExpr) -> PrimExpr:
    """1 / (1 + e⁻ˣ)."""
    return f32(1) / (f32(1) + exp(f32(0) - x))


_LOG = (0.6666666865348816, 0.4000012278556824, 0.2855069935321808, 0.23333418369293213)


def _log_of_positive(x: PrimExpr, exponent: PrimExpr) -> PrimExpr:
    """log(x) + exponent·ln 2 for a normal, positive, finite x; exponent is float32."""

    def split(ix: PrimExpr) -> PrimExpr:
        # ix is offset so that the mantissa lands in [√½, √2).
        mantissa = from_bits((ix & i32(0x007FFFFF)) + i32(0x3F3504F3))
        k = tirx.Cast("float32", (ix >> i32(23)) - i32(127)) + exponent

        def series(f: PrimExpr) -> PrimExpr:
            def combine(s: PrimExpr) -> PrimExpr:
                r = let(s * s, lambda z: z * polynomial(z, _LOG))
                half = f32(0.5) * f * f
                return let(
                    half,
                    lambda h: let(
                        k,
                        lambda k: k * f32(LN2_HI) - ((h - (s * (h + r) + k * f32(LN2_LO))) - f),
                    ),
                )

            return let(f / (f32(2) + f), combine)

        return let(mantissa - f32(1), series)

    return let(bits(x) + i32(0x3F800000 - 0x3F3504F3), split)


def log(x: PrimExpr) -> PrimExpr:
    """Natural logarithm: −inf at ±0, NaN below."""

    def choose(x: PrimExpr) -> PrimExpr:
        subnormal = x < f32(1.1754943508222875e-38)
        value = _log_of_positive(
            tirx.Select(subnormal, x * f32(8388608.0), x),
            tirx.Select(subnormal, f32(-23), f32(0)),
        )
        # Outside (0, inf): inf and NaN map to themselves, zeros to −inf, negative numbers to NaN.
        special = tirx.Select(
            x < f32(0),
            f32(float("nan")),
            tirx.Select(x > f32(0), x, tirx.Select(is_nan(x), x, f32(float("-inf")))),
        )
        ordinary = tirx.all(x > f32(0), x < f32(float("inf")))
        return tirx.Select(ordinary, value, special)

    return let(x, choose)


def log1p(x: PrimExpr) -> PrimExpr:
    """log(1 + x), accurate near zero: log of the rounded 1 + x plus the rounding error's share."""

    def choose(x: PrimExpr) -> PrimExpr:
        def correct(w: PrimExpr) -> PrimExpr:
            inside = tirx.all(w > f32(0), w < f32(float("inf")))
            share = (x - (w - f32(1))) / w
            return log(w) + tirx.Select(inside, share, f32(0))

        return let(x + f32(1), correct)

    return let(x, choose)


_TANH = (-0.33333271741867065, 0.13331152498722076, -0.05371410772204399, 0.02055172063410282,
         -0.005603914614766836)  # fmt: skip


def tanh(x: PrimExpr) -> PrimExpr:
    """Hyperbolic tangent: odd polynomial up to 0.625, 1 − 2 / (e²ˣ + 1) beyond."""

    def choose(x: PrimExpr) -> PrimExpr:
        def large(a: PrimExpr) -> PrimExpr:
            # min(constant, NaN) is NaN here; past 10 the result rounds to 1.
            e = _exp_in_range(tirx.min(f32(20), a + a))
            return f32(1) - f32(2) / (e + f32(1))

        near = let(x * x, lambda z: (x * z) * polynomial(z, _TANH) + x)
        return let(
            tirx.abs(x),
            lambda a: tirx.Select(a < f32(0.625), near, copy_sign(large(a), x)),
        )

    return let(x, choose)


_ERF_NEAR = (0.12837915122509003, -0.37612494826316833, 0.11281802505254745,
             -0.026765568181872368, 0.004990980960428715, -0.0005976896500214934)  # fmt: skip
_ERF_FAR = (-0.00017468316946178675, 1.1295149326324463, 0.6333469152450562, 0.10828007012605667,
            -0.025119416415691376, 0.004171058535575867, -0.0004344616609159857,
            2.1094961994094774e-05)  # fmt: skip


def erf(x: PrimExpr) -> PrimExpr:
    """Error function: odd polynomial up to 0.92, 1 − e^(−p(|x|)) beyond, with p ≈ −log erfc."""

    def choose(x: PrimExpr) -> PrimExpr:
        near = let(x * x, lambda z: x * polynomial(z, _ERF_NEAR) + x)

        def far(a: PrimExpr) -> PrimExpr:
            tail = _exp_in_range(f32(0) - polynomial(a, _ERF_FAR))
            return copy_sign(f32(1) - tail, x)

        # The fit of p ends at 4, where erf rounds to 1.
        return let(
            tirx.abs(x),
            lambda a: tirx.Select(a < f32(0.92), near, let(tirx.min(f32(4), a), far)),
        )

    return let(x, choose)


def softplus(x: PrimExpr) -> PrimExpr:
    """log(1 + eˣ) without overflow."""

    def stable(x: PrimExpr) -> PrimExpr:
        return tirx.max(f32(0), x) + log1p(exp(f32(0) - tirx.abs(x)))

    return let(x, stable)


def mish(x: PrimExpr) -> PrimExpr:
    """x·tanh(softplus(x)) = x·n / (n + 2) with n = eˣ(eˣ + 2); past 20 the factor is 1."""

    def stable(x: PrimExpr) -> PrimExpr:
        e = exp(tirx.min(f32(20), x))
        n = let(e, lambda e: e * (e + f32(2)))
        return let(n, lambda n: x * (n / (n + f32(2))))

    return let(x, stable)


def round_half_even(x: PrimExpr) -> PrimExpr:
    """Nearest integer, ties to even; numbers from 2²³ are integers already."""

    def stable(x: PrimExpr) -> PrimExpr:
        def nearest(a: PrimExpr) -> PrimExpr:
            # A variable in between: TVM folds (a + c) − c.
            rounded = let(a + f32(8388608.0), lambda sum_: sum_ - f32(8388608.0))
            return tirx.Select(a < f32(8388608.0), copy_sign(rounded, x), x)

        return let(tirx.abs(x), nearest)

    return let(x, stable)
