"""Convolutions of bytes on devices that multiply four pairs of them at a time.

The implicit products of gpu/conv.py, with words of four channels at one tap in place of numbers;
gpu/words.py says how signs come right. Constant weights are packed as words, with what each filter
adds to its sums.

Numerics: exact, modulo 2³².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.epilogue import operand_layouts
from schedules.gpu.conv import storing
from schedules.gpu.conv_operands import Image, Shape
from schedules.gpu.dot_nest import Zeros
from schedules.gpu.matmul_dp4a import EFFICIENCY, offered
from schedules.gpu.tiles import Tiles
from schedules.gpu.tilings import Product, Tiling, ceildiv, tuned_over
from schedules.gpu.words import WORD, Signs, correction, joined, kept, loaded, packed_words
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Layout,
    Packing,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Buffer, Stmt


@dataclass(frozen=True)
class WordFilters:
    """Packs weights (O, C/groups, …) as int8 (groups, blocks, words, filters of a block, 4).

    Words are in order of (four channels, tap). Where there is something to add to sums, it follows
    as another word of each filter.
    """

    block: int
    groups: int
    signs: Signs

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        filters, channels = array.shape[0] // self.groups, array.shape[1]
        split = array.reshape(self.groups, filters, channels, -1)
        last = np.ascontiguousarray(np.swapaxes(split, 2, 3))
        words = np.swapaxes(packed_words(last, self.signs.flips[0]), 2, 3)
        words = np.ascontiguousarray(words).reshape(self.groups, filters, -1, WORD)
        own, other = self.signs.zeros
        if other:
            steps, unsigned = channels * split.shape[-1], self.signs.dtype == "uint32"
            added = correction(words, unsigned, other, own, steps)
            words = np.concatenate([words, added[:, :, None]], 2)
        blocks = ceildiv(filters, self.block)
        behind = blocks * self.block - filters
        padded = np.pad(words, ((0, 0), (0, behind), (0, 0), (0, 0)))
        blocked = padded.reshape(self.groups, blocks, self.block, *words.shape[2:])
        return np.ascontiguousarray(np.moveaxis(blocked, 2, 3))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        filters, channels = shape[0] // self.groups, shape[1]
        words = ceildiv(channels, WORD) * prod(shape[2:]) + bool(self.signs.zeros[1])
        return (self.groups, ceildiv(filters, self.block), words, self.block, WORD)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate for convolutions of bytes."""
    op = workload.op
    if op.kind != "conv_integer" or not offered(workload, traits):
        return ()
    if not op.output.elements or not op.inputs[0].elements:
        return ()
    shape = Shape.of(workload)
    signs = Signs.of(op.inputs[1].dtype, op.inputs[0].dtype)
    steps = ceildiv(shape.channels, WORD) * shape.taps
    words = Product(shape.batch * shape.groups, shape.filters, prod(shape.out), steps, signs.dtype)
    return (tuned_over(words, traits, partial(_tiled, workload, shape, words, signs)),)


def _tiled(
    workload: Workload, shape: Shape, words: Product, signs: Signs, tiling: Tiling
) -> Candidate:
    op = workload.op
    weights: Layout | Packing = PLAIN
    if op.constant[1]:
        weights = WordFilters(tiling.row_block, shape.groups, signs)
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    moved = float(sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes)
    used = shape.channels / (WORD * ceildiv(shape.channels, WORD))
    share = EFFICIENCY * used * min(1.0, shape.filters / 16)
    flops = 2.0 * op.output.elements * shape.channels * shape.taps
    return Candidate(
        name=f"gpu.{op.kind}.dp4a",
        layouts=(PLAIN, weights, *operands),
        output=PLAIN,
        cost=Cost(flops, moved, share),
        compute=partial(_compute, workload, shape, words, signs, tiling, weights),
        schedule=nest.as_written,
    )


def _channels(
    shape: Shape, step: PrimExpr, byte: Callable[[PrimExpr], PrimExpr], flip: bool
) -> PrimExpr:
    """The word of four channels at a step; channels behind the last are zero, and not read."""
    block, left_over = step // shape.taps, shape.channels % WORD

    def one(index: int) -> PrimExpr:
        channel = block * WORD + index
        value = byte(channel)
        if index < (left_over or WORD):
            return value
        zero = tirx.const(0, str(value.ty.dtype))
        return tirx.if_then_else(channel < shape.channels, value, zero)

    found = joined(one, flip)
    return _trimmed(shape, block, found) if flip else found


def _trimmed(shape: Shape, block: PrimExpr, word: PrimExpr) -> PrimExpr:
    """A word of channels with zeros for those behind the last."""
    left_over = shape.channels % WORD
    if not left_over:
        return word
    return tirx.Select(block == shape.channels // WORD, kept(word, left_over), word)


@dataclass(frozen=True)
class _Filters:
    """The left operand; `block` is 0 for weights as they are in the model."""

    shape: Shape
    buffer: Buffer
    block: int
    flip: bool

    def prepare(self, group: PrimExpr, lines: Callable[[int], PrimExpr], count: int) -> Stmt | None:
        """Nothing."""
        return None

    def value(self, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr) -> PrimExpr:
        """The int32 word of a filter at a step."""
        s = self.shape
        g = group % s.groups
        if self.block:
            at = (g, line // self.block, step, line % self.block)
            return loaded(self.buffer, *at, nest.integer(0))
        taps = nest.unflatten(step % s.taps, s.kernel)

        def byte(channel: PrimExpr) -> PrimExpr:
            return nest.read(self.buffer, g * s.filters + line, channel, *taps)

        return _channels(s, step, byte, self.flip)


class _Words(Image):
    """The right operand: of each output position, words of what its taps read."""

    def __init__(self, shape: Shape, buffer: Buffer, slots: int, flip: bool) -> None:
        super().__init__(shape, buffer, "int32", slots)
        self.flip = flip

    def value(self, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr) -> PrimExpr:
        s = self.shape
        where, inside = self.place(step % s.taps, line, slot)
        n, g = group // s.groups, group % s.groups

        def byte(channel: PrimExpr) -> PrimExpr:
            return nest.read(self.buffer, n, g * s.channels + channel, *where)

        word = _channels(s, step, byte, self.flip)
        if inside is None:
            return word
        padding = np.full(WORD, s.pad_value & 0xFF ^ (0x80 if self.flip else 0), np.uint8)
        outside = nest.integer(int(padding.view(np.int32)[0]))
        return tirx.if_then_else(inside, word, _trimmed(s, step // s.taps, outside))


def _compute(
    workload: Workload,
    shape: Shape,
    words: Product,
    signs: Signs,
    tiling: Tiling,
    packing: Layout | Packing,
) -> PrimFunc:
    op = workload.op
    x = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "image")
    w = nest.buffer(op.inputs[1].shape, op.inputs[1].dtype, "weights")
    packed = isinstance(packing, WordFilters)
    if isinstance(packing, WordFilters):
        w = nest.buffer(packing.packed_shape(op.inputs[1].shape), "int8", "weights")
    operands = nest.operand_buffers(workload)
    result = nest.buffer(workload.output.shape, workload.output.dtype, "result")
    filters = _Filters(shape, w, tiling.row_block if packed else 0, signs.flips[0])
    slots = max(1, ceildiv(tiling.width, tiling.threads))
    tiles = Tiles(
        words,
        tiling,
        filters,
        _Words(shape, x, slots, signs.flips[1]),
        left_packed=packed,
        right_packed=False,
        left_steps_first=not packed,
        right_steps_first=False,
    )
    store = storing(workload, shape, operands, result)

    def finish(value: PrimExpr, group: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        if packed and signs.zeros[1]:
            value = value + filters.value(group, nest.integer(words.steps), row, row)
        return store(value, group, row, column)

    depth = shape.channels * shape.taps
    zeros = Zeros(signs.zeros[0], 0 if packed else signs.zeros[1], depth)
    return nest.function([x, w, *operands, result], zeros.nest(tiles, False, finish))
