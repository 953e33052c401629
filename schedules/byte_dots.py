"""Products of four unsigned with four signed bytes, added to int32 sums, as vectors of a processor.

Never the instruction that saturates sums of two products to 16 bits: where x86 has none that adds
four exactly (VNNI), bytes are widened to 16 bits, of which pairs are multiplied and added exactly.
aarch64 without i8mm multiplies signed bytes only: it takes the unsigned ones less 128, and what is
missing then, 128 times the sum of the weights, is added behind.
"""

from __future__ import annotations

from tvm import tirx

from schedules.interface import PrimExpr, TargetTraits

_MULTIPLY_PAIRS = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}
_MULTIPLY_BYTES = {
    16: "avx512.vpdpbusd.512",
    8: "avx512.vpdpbusd.256",
    4: "avx512.vpdpbusd.128",
}
LEAST_LANES = 4
"""Sums in the shortest vector that there are instructions for."""


def can_multiply(traits: TargetTraits) -> bool:
    """Whether there are instructions for this processor here."""
    if traits.arch == "aarch64":
        return traits.dotprod or traits.i8mm
    return traits.arch == "x86_64" and traits.lanes in _MULTIPLY_PAIRS


def shifted(traits: TargetTraits) -> bool:
    """Whether add_products() leaves out 128 times the sum of the weights."""
    return traits.arch == "aarch64" and not traits.i8mm


def add_weights(sums: PrimExpr, weights: PrimExpr, traits: TargetTraits) -> PrimExpr:
    """sums[i] + Σ of weights[4 · i + j] over j < 4, of traits.lanes sums."""
    lanes = traits.lanes
    ones = tirx.Broadcast(tirx.const(1, "int8"), 4 * lanes)
    if traits.arch == "aarch64":
        return _call("aarch64.neon.sdot.v4i32.v16i8", f"int32x{lanes}", sums, ones, weights)
    return _multiplied(sums, ones, weights, lanes, traits)


def add_data(sums: PrimExpr, data: PrimExpr, lanes: int, traits: TargetTraits) -> PrimExpr:
    """sums[i] + Σ of data[4 · i + j] over j < 4.

    Args:
        sums: int32, a vector of `lanes`: traits.lanes, or half of that, down to LEAST_LANES.
        data: unsigned bytes (of any type of 8 bits), four for each lane.
    """
    ones = tirx.Broadcast(tirx.const(1, "int8"), 4 * lanes)
    data = tirx.reinterpret(f"int8x{4 * lanes}", data)
    if traits.arch == "aarch64":
        return _call("aarch64.neon.udot.v4i32.v16i8", f"int32x{lanes}", sums, data, ones)
    return _multiplied(sums, data, ones, lanes, traits)


def add_products(
    sums: PrimExpr, word: PrimExpr, weights: PrimExpr, traits: TargetTraits
) -> PrimExpr:
    """sums[i] + Σ of word's byte j · weights[4 · i + j] over j < 4, unless shifted().

    Args:
        sums: int32, a vector of traits.lanes. word: int32, four unsigned bytes. weights: int8, four
            for each lane.
    """
    lanes = traits.lanes
    spread = tirx.Broadcast(word, lanes)
    if traits.arch == "aarch64":
        if shifted(traits):
            # In each byte the sign's bit is turned: 128 less, as a signed number.
            spread = tirx.Broadcast(word ^ tirx.const(-0x7F7F7F80, "int32"), lanes)
        pixels = tirx.reinterpret(f"int8x{4 * lanes}", spread)
        name = "sdot" if shifted(traits) else "usdot"
        return _call(f"aarch64.neon.{name}.v4i32.v16i8", f"int32x{lanes}", sums, pixels, weights)
    pixels = tirx.reinterpret(f"int8x{4 * lanes}", spread)
    return _multiplied(sums, pixels, weights, lanes, traits)


def has_fast_dots(traits: TargetTraits) -> bool:
    """Whether one instruction sums four products of bytes for each lane."""
    if traits.arch == "aarch64":
        return traits.dotprod
    return traits.arch == "x86_64" and traits.vnni and traits.lanes in _MULTIPLY_BYTES


def add_codes(sums: PrimExpr, codes: PrimExpr, word: PrimExpr, traits: TargetTraits) -> PrimExpr:
    """sums[i] + Σ of the bytes j of codes[i] and of word over j < 4; has_fast_dots() only.

    Args:
        sums, codes: int32, vectors of traits.lanes. Bytes of codes are unsigned on x86, where they
            may have all eight bits, and signed on aarch64. word: int32, four signed bytes.
    """
    lanes = traits.lanes
    kind = f"int8x{4 * lanes}"
    codes = tirx.reinterpret(kind, codes)
    spread = tirx.reinterpret(kind, tirx.Broadcast(word, lanes))
    if traits.arch == "aarch64":
        return _call("aarch64.neon.sdot.v4i32.v16i8", f"int32x{lanes}", sums, codes, spread)
    return _multiplied(sums, codes, spread, lanes, traits)


def _multiplied(
    sums: PrimExpr, unsigned: PrimExpr, signed: PrimExpr, lanes: int, traits: TargetTraits
) -> PrimExpr:
    """sums[i] + Σ of unsigned[4 · i + j] · signed[4 · i + j] over j < 4, on x86."""
    if traits.vnni:
        return _call(f"x86.{_MULTIPLY_BYTES[lanes]}", f"int32x{lanes}", sums, unsigned, signed)
    pairs = f"int16x{2 * lanes}"

    def constant(value: int) -> PrimExpr:
        return tirx.Broadcast(tirx.const(value, "int16"), 2 * lanes)

    # Of each two bytes in a row the first is the lower half of 16 bits, the second the upper.
    halves, wide = tirx.reinterpret(pairs, unsigned), tirx.reinterpret(pairs, signed)
    eight = constant(8)
    first = halves & constant(255)
    second = tirx.bitwise_and(tirx.shift_right(halves, eight), constant(255))
    low = tirx.shift_right(tirx.shift_left(wide, eight), eight)
    high = tirx.shift_right(wide, eight)
    multiply = f"x86.{_MULTIPLY_PAIRS[lanes]}"
    sums = sums + _call(multiply, f"int32x{lanes}", first, low)
    return sums + _call(multiply, f"int32x{lanes}", second, high)


def add_words(sums: PrimExpr, words: PrimExpr, weights: PrimExpr, traits: TargetTraits) -> PrimExpr:
    """sums[i] + Σ of words[i]'s byte j · weights[4 · i + j] over j < 4, on x86."""
    pixels = tirx.reinterpret(f"int8x{4 * traits.lanes}", words)
    return _multiplied(sums, pixels, weights, traits.lanes, traits)


def _call(name: str, dtype: str, *args: PrimExpr) -> PrimExpr:
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}", *args)
