"""Products of four unsigned with four signed bytes, added to int32 sums, as vectors of a processor.

Where x86 has no instruction that adds four products exactly (VNNI), bytes are widened to 16 bits,
of which pairs are multiplied and added: byte_halves.py, which has a faster way for whole tiles.
aarch64 without i8mm multiplies signed bytes only: it takes the unsigned ones less 128, and what is
missing then, 128 times the sum of the weights, is added behind.
"""

from __future__ import annotations

from tvm import tirx

from schedules.byte_halves import PAIRS, add_pairs, signed_pairs, unsigned_pairs
from schedules.interface import PrimExpr, TargetTraits

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
    return traits.arch == "x86_64" and traits.lanes in _MULTIPLY_BYTES


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
    words = tirx.reinterpret(f"int32x{lanes}", unsigned)
    kind = f"int16x{PAIRS * lanes}"
    both = zip(unsigned_pairs(words, lanes), signed_pairs(signed, lanes), strict=True)
    for left, right in both:
        sums = add_pairs(sums, tirx.reinterpret(kind, left), right, lanes)
    return sums


def add_words(sums: PrimExpr, words: PrimExpr, weights: PrimExpr, traits: TargetTraits) -> PrimExpr:
    """sums[i] + Σ of words[i]'s byte j · weights[4 · i + j] over j < 4, on x86."""
    pixels = tirx.reinterpret(f"int8x{4 * traits.lanes}", words)
    return _multiplied(sums, pixels, weights, traits.lanes, traits)


def _call(name: str, dtype: str, *args: PrimExpr) -> PrimExpr:
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}", *args)
