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
_MULTIPLY_BYTES = {16: "avx512.vpdpbusd.512", 8: "avx512.vpdpbusd.256"}


def can_multiply(traits: TargetTraits) -> bool:
    """Whether there are instructions for this processor here."""
    if traits.arch == "aarch64":
        return traits.dotprod or traits.i8mm
    return traits.arch == "x86_64" and traits.lanes in _MULTIPLY_PAIRS


def shifted(traits: TargetTraits) -> bool:
    """Whether add_products() leaves out 128 times the sum of the weights."""
    return traits.arch == "aarch64" and not traits.i8mm


def add_weights(sums: PrimExpr, weights: PrimExpr, traits: TargetTraits) -> PrimExpr:
    """sums[i] + Σ of weights[4 · i + j] over j < 4, where products are shifted."""
    ones = tirx.Broadcast(tirx.const(1, "int8"), 4 * traits.lanes)
    return _call("aarch64.neon.sdot.v4i32.v16i8", f"int32x{traits.lanes}", sums, ones, weights)


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
    if traits.vnni and lanes in _MULTIPLY_BYTES:
        pixels = tirx.reinterpret(f"int8x{4 * lanes}", spread)
        return _call(f"x86.{_MULTIPLY_BYTES[lanes]}", f"int32x{lanes}", sums, pixels, weights)
    pairs = f"int16x{2 * lanes}"

    def constant(value: int) -> PrimExpr:
        return tirx.Broadcast(tirx.const(value, "int16"), 2 * lanes)

    # Of each two bytes in a row the first is the lower half of 16 bits, the second the upper.
    halves, wide = tirx.reinterpret(pairs, spread), tirx.reinterpret(pairs, weights)
    eight = constant(8)
    first = halves & constant(255)
    second = tirx.bitwise_and(tirx.shift_right(halves, eight), constant(255))
    low = tirx.shift_right(tirx.shift_left(wide, eight), eight)
    high = tirx.shift_right(wide, eight)
    multiply = f"x86.{_MULTIPLY_PAIRS[lanes]}"
    sums = sums + _call(multiply, f"int32x{lanes}", first, low)
    return sums + _call(multiply, f"int32x{lanes}", second, high)


def _call(name: str, dtype: str, *args: PrimExpr) -> PrimExpr:
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}", *args)
