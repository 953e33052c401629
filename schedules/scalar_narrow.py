"""Conversion between float32 and floats of 4 to 16 bits, kept as unsigned integers, by bits.

No code generator needs to know these types, and everything vectorises. Formats: bfloat16; the 8-bit
floats of ONNX (IEEE-like e5m2, finite-only "fn", unsigned-zero "fnuz", exponent-only e8m0fnu); the
6- and 4-bit ones of the OCP Microscaling specification, which have neither infinity nor NaN.
Results are exact or rounded once, to nearest even.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvm import tirx

from schedules.interface import Attr, PrimExpr
from schedules.scalar_math import bits, dtype_of, f32, from_bits, i32, let
from schedules.scalar_values import rounded_to_odd

_INF = 0x7F800000
_MAGNITUDE = 0x7FFFFFFF


@dataclass(frozen=True)
class FloatFormat:
    """A float of `width` bits: sign, exponent with `bias`, `mantissa` bits.

    largest: code of the largest finite magnitude. infinity, nan: codes without the sign; None
    where there is none. A format without signed zero ("fnuz") has its one NaN at the code of −0.
    """

    width: int
    mantissa: int
    bias: int
    largest: int
    infinity: int | None = None
    nan: int | None = None
    signed_zero: bool = True

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (self.width - 1)


FORMATS: Mapping[str, FloatFormat] = {
    "bfloat16": FloatFormat(16, 7, 127, 0x7F7F, 0x7F80, 0x7FC0),
    "float8_e4m3fn": FloatFormat(8, 3, 7, 0x7E, None, 0x7F),
    "float8_e4m3fnuz": FloatFormat(8, 3, 8, 0x7F, None, 0x80, signed_zero=False),
    "float8_e5m2": FloatFormat(8, 2, 15, 0x7B, 0x7C, 0x7E),
    "float8_e5m2fnuz": FloatFormat(8, 2, 16, 0x7F, None, 0x80, signed_zero=False),
    "float6_e2m3fn": FloatFormat(6, 3, 1, 0x1F),
    "float6_e3m2fn": FloatFormat(6, 2, 3, 0x1F),
    "float4_e2m1fn": FloatFormat(4, 1, 1, 0x7),
}
"""The formats with a sign, by the names that NumPy's extension types have."""

POWERS_OF_TWO = "float8_e8m0fnu"
"""The format that is an exponent alone: code c is 2^(c − 127), 255 is NaN."""


def storage(name: str) -> str:
    """The unsigned integer type that holds one element of a format."""
    return "uint16" if name == "bfloat16" else "uint8"


def decode(x: PrimExpr, attrs: Mapping[str, Attr]) -> PrimExpr:
    """The float32 that code `x` stands for; attrs: format. Exact."""
    name = str(attrs["format"])
    if name == "bfloat16":
        wide = tirx.Cast("uint32", x)  # unsigned: TVM evaluates the shift of a constant
        return from_bits(wide << tirx.const(16, "uint32"))
    return let(tirx.Cast("int32", x), lambda code: _decode(code, name))


def _decode(code: PrimExpr, name: str) -> PrimExpr:
    if name == POWERS_OF_TWO:
        normal = tirx.Select(code == i32(255), i32(_INF | 1), code << i32(23))
        return from_bits(tirx.Select(code == i32(0), i32(0x00400000), normal))
    kind = FORMATS[name]
    code = code & i32(2 * kind.sign - 1)
    magnitude = code & i32(kind.sign - 1)
    fraction = magnitude & i32((1 << kind.mantissa) - 1)
    # A subnormal as a product: as bits of a float32 it could be flushed to zero.
    small = tirx.Cast("float32", fraction) * f32(2.0 ** (1 - kind.bias - kind.mantissa))
    normal = (magnitude << i32(23 - kind.mantissa)) + i32((127 - kind.bias) << 23)
    value = tirx.Select(magnitude < i32(1 << kind.mantissa), bits(small), normal)
    if kind.infinity is not None:
        special = i32(_INF) | (fraction << i32(23 - kind.mantissa))
        value = tirx.Select(magnitude >= i32(kind.infinity), special, value)
    negative = (code & i32(kind.sign)) > i32(0)
    signed = value | tirx.Select(negative, i32(-0x80000000), i32(0))
    if kind.infinity is None and kind.nan is not None:
        code_of_nan = code if kind.nan == kind.sign else magnitude
        signed = tirx.Select(code_of_nan == i32(kind.nan), i32(_INF | 0x400000), signed)
    return from_bits(signed)


def encode(x: PrimExpr, attrs: Mapping[str, Attr]) -> PrimExpr:
    """The code of number `x` in a format, rounded to nearest even.

    attrs: format; saturate: whether numbers that are too large become the largest finite one,
    otherwise infinity, or NaN where there is none; rounding (of powers of two only): "up", "down"
    or "nearest", which rounds ties up.
    """
    name = str(attrs["format"])
    if dtype_of(x) == "float64":
        return let(x, lambda x: let(rounded_to_odd(x), lambda y: _encode(y, name, attrs)))
    single = x if dtype_of(x) == "float32" else tirx.Cast("float32", x)
    return let(single, lambda x: _encode(x, name, attrs))


def _encode(x: PrimExpr, name: str, attrs: Mapping[str, Attr]) -> PrimExpr:
    saturate = bool(attrs.get("saturate", True))
    if name == POWERS_OF_TWO:
        code = _exponent_code(x, saturate, str(attrs.get("rounding", "up")))
        return tirx.Cast("uint8", code)
    kind = FORMATS[name]
    magnitude = bits(x) & i32(_MAGNITUDE)
    shift = 23 - kind.mantissa
    last_kept = (magnitude >> i32(shift)) & i32(1)
    rounded = (magnitude + i32((1 << (shift - 1)) - 1) + last_kept) >> i32(shift)
    code = rounded - i32((127 - kind.bias) << kind.mantissa)
    if kind.bias < 127:  # otherwise subnormals are those of float32
        least_normal = (128 - kind.bias) << 23
        scale = f32(2.0 ** (kind.bias - 1 + kind.mantissa))
        # Adding 1.5·2²³ rounds to an integer.
        small = bits(from_bits(magnitude) * scale + f32(12582912.0)) - i32(0x4B400000)
        code = tirx.Select(magnitude < i32(least_normal), small, code)
    overflow = kind.largest
    if not saturate:
        found = kind.nan if kind.infinity is None else kind.infinity
        overflow = kind.largest if found is None else found
    code = tirx.Select(code > i32(kind.largest), i32(overflow), code)
    sign = (bits(x) >> i32(32 - kind.width)) & i32(kind.sign)
    is_nan = magnitude > i32(_INF)
    if not kind.signed_zero:
        zero = tirx.any(code == i32(0), code == i32(kind.sign))
        return tirx.Cast(
            storage(name),
            tirx.Select(is_nan, i32(kind.sign), tirx.Select(zero, code, code | sign)),
        )
    nan = kind.nan
    if nan is None:  # no such number: a zero, of the sign that ml_dtypes gives it
        return tirx.Cast(storage(name), tirx.Select(is_nan, sign ^ i32(kind.sign), code | sign))
    return tirx.Cast(storage(name), tirx.Select(is_nan, i32(nan), code) | sign)


def _exponent_code(x: PrimExpr, saturate: bool, rounding: str) -> PrimExpr:
    magnitude = bits(x) & i32(_MAGNITUDE)
    fraction = magnitude & i32(0x7FFFFF)
    # Of the least power, 2^−127, the code is 0, and its fraction has one bit less.
    half = {"up": (1, 0x400001), "down": (1 << 23, 1 << 23), "nearest": (0x400000, 0x600000)}
    normal, subnormal = half[rounding]
    least = magnitude < i32(0x00800000)
    up = tirx.Select(least, fraction >= i32(subnormal), fraction >= i32(normal))
    code = (magnitude >> i32(23)) + tirx.Select(up, i32(1), i32(0))
    if saturate:
        code = tirx.min(code, i32(254))
    else:
        code = tirx.Select(magnitude < i32(0x00400000), i32(255), tirx.min(code, i32(255)))
    return tirx.Select(magnitude > i32(_INF), i32(255), code)


def bitcast(x: PrimExpr, attrs: Mapping[str, Attr]) -> PrimExpr:
    """The bits of `x` as another type of the same width; attrs: dtype. bool is the byte 0 or 1."""
    dtype = str(attrs["dtype"])
    if dtype_of(x) == "bool":
        x = tirx.Select(x, tirx.const(1, "uint8"), tirx.const(0, "uint8"))
    if dtype == "bool":
        return tirx.reinterpret("uint8", x) != tirx.const(0, "uint8")
    return x if dtype_of(x) == dtype else tirx.reinterpret(dtype, x)


NARROW: Mapping[str, Callable[[PrimExpr, Mapping[str, Attr]], PrimExpr]] = {
    "decode_float": decode,
    "encode_float": encode,
    "bitcast": bitcast,
}
