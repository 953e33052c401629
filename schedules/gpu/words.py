"""Bytes in words of four, for devices that multiply four pairs of them in one instruction.

The instruction takes both factors signed or both unsigned. Of factors of different kinds the
unsigned one becomes signed: inverting its highest bit subtracts 128, which the zero point then has
to make good. With a' − z' for a − z, and b' − w' for b − w,

    Σ (a' − z')(b' − w') = Σ a'b' − z' Σ b' − w' Σ a' + K z'w',

in the integers modulo 2³², where kernels add up (Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018). Bytes of a word behind the
last step are zero after the inversion, so that they count in none of these sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.interface import PrimExpr
from schedules.nest import Buffer

WORD = 4
BYTES = ("uint8", "int8")
_SIGN = 0x80


@dataclass(frozen=True)
class Signs:
    """How the bytes of two operands meet.

    Attributes:
        dtype: of words: uint32 where both operands are unsigned, else int32.
        flips: of each operand, whether the highest bit of its bytes is inverted.
        zeros: of each operand, what is subtracted from its bytes as they are in words.
    """

    dtype: str
    flips: tuple[bool, bool]
    zeros: tuple[int, int]

    @classmethod
    def of(cls, left: str, right: str, zeros: tuple[int, int] = (0, 0)) -> Signs:
        """For operands of types `left` and `right` with these zero points."""
        if left == right == "uint8":
            return cls("uint32", (False, False), zeros)
        flips = left == "uint8", right == "uint8"
        moved = [zero - _SIGN * flip for zero, flip in zip(zeros, flips, strict=True)]
        return cls("int32", flips, (moved[0], moved[1]))


def dot(a: PrimExpr, b: PrimExpr, total: PrimExpr, dtype: str) -> PrimExpr:
    """total + the four products of two words of the Signs' type, modulo 2³²."""
    return tirx.call_pure_extern(dtype, "__dp4a", a, b, total)


def ones(dtype: str) -> PrimExpr:
    """A word of four ones."""
    return tirx.const(0x01010101, dtype)


def joined(byte: Callable[[int], PrimExpr], flip: bool) -> PrimExpr:
    """The int32 word of byte(0), the lowest, to byte(3), which are of one of BYTES."""
    word: PrimExpr | None = None
    for index in range(WORD):
        value = tirx.Cast("int32", byte(index)) & nest.integer(0xFF)
        part = value << nest.integer(8 * index) if index else value
        word = part if word is None else word | part
    return flipped(word) if flip else word


def flipped(word: PrimExpr) -> PrimExpr:
    """An int32 word with the highest bits of its bytes inverted."""
    return word ^ nest.integer(-0x7F7F7F80)


def kept(word: PrimExpr, bytes_left: int) -> PrimExpr:
    """An int32 word whose first `bytes_left` bytes count, with zeros in place of the others."""
    return word & nest.integer((1 << 8 * bytes_left) - 1)


def loaded(buffer: Buffer, *index: PrimExpr) -> PrimExpr:
    """The int32 word at an index of a buffer of bytes, a multiple of four along the last axis."""
    *leading, last = index
    return tirx.reinterpret("int32", nest.read(buffer, *leading, nest.ramp(last, WORD)))


def packed_words(steps: np.ndarray[Any, Any], flip: bool) -> np.ndarray[Any, Any]:
    """int8 (…, words, 4) of bytes (…, steps), with zeros behind the last step."""
    steps = (steps.view(np.uint8) ^ np.uint8(_SIGN if flip else 0)).view(np.int8)
    words = -(-steps.shape[-1] // WORD)
    behind = [(0, 0)] * (steps.ndim - 1) + [(0, words * WORD - steps.shape[-1])]
    return np.pad(steps, behind).reshape(*steps.shape[:-1], words, WORD)


def correction(
    words: np.ndarray[Any, Any], unsigned: bool, other: int, own: int, steps: int
) -> np.ndarray[Any, Any]:
    """What is to be added to sums for the zero point of the operand that is not packed.

    Args:
        words: int8 (…, words, 4) as packed_words() gives them.
        unsigned: whether they are meant as uint8.
        other, own: the zeros of Signs for the two operands. steps: that count.
    Returns:
        int8 (…, 4), the bytes of −other · Σ words + steps · other · own as int32.
    """
    values = words.view(np.uint8) if unsigned else words
    sums = values.astype(np.int64).sum((-2, -1))
    total = (steps * own - sums) * other
    return np.ascontiguousarray(total.astype(np.int32)[..., None]).view(np.int8)
