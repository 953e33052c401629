"""Matrix products of bytes on devices that multiply four pairs of them at a time.

Words of four steps of the reduction take the place of numbers in gpu/matmul.py; gpu/words.py says
how signs and zero points come right. A constant right operand is packed as words, with what its
columns add to sums for the left one's zero point.

Numerics: exact, modulo 2³².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.epilogue import operand_layouts
from schedules.gpu.dot_nest import Zeros
from schedules.gpu.matmul import Side, Sides, product_of, storing
from schedules.gpu.tiles import Tiles
from schedules.gpu.tilings import Product, Tiling, ceildiv, tuned_over
from schedules.gpu.words import (
    BYTES,
    WORD,
    Signs,
    correction,
    flipped,
    joined,
    kept,
    loaded,
    packed_words,
)
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
from schedules.product import zeros_of

EFFICIENCY = 1.5
"""Of what the device does in float32 otherwise; a quarter of the instructions, but more loads."""


@dataclass(frozen=True)
class WordPanels:
    """Packs (…, K, N), or (…, N, K) if transposed, as (batch, panels, words, width, 4) of int8.

    Where there is something to add to sums, it follows as another word of each column.
    """

    width: int
    transposed: bool
    signs: Signs

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        columns = array if self.transposed else np.swapaxes(array, -1, -2)
        columns = np.ascontiguousarray(columns).reshape(-1, *columns.shape[-2:])
        words = packed_words(columns, self.signs.flips[1])
        other, own = self.signs.zeros
        if other:
            steps, unsigned = columns.shape[-1], self.signs.dtype == "uint32"
            added = correction(words, unsigned, other, own, steps)
            words = np.concatenate([words, added[:, :, None]], 2)
        panels = ceildiv(words.shape[1], self.width)
        behind = panels * self.width - words.shape[1]
        padded = np.pad(words, ((0, 0), (0, behind), (0, 0), (0, 0)))
        split = padded.reshape(len(words), panels, self.width, *words.shape[2:])
        return np.ascontiguousarray(np.moveaxis(split, 2, 3))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        *batch, depth, columns = shape
        if self.transposed:
            depth, columns = columns, depth
        words = ceildiv(depth, WORD) + bool(self.signs.zeros[0])
        return (prod(batch), ceildiv(columns, self.width), words, self.width, WORD)


def offered(workload: Workload, traits: TargetTraits) -> bool:
    """Whether this is of bytes, and the device has the instruction."""
    op, gpu = workload.op, traits.gpu
    if gpu is None or not gpu.dp4a or gpu.loops or op.output.dtype != "int32":
        return False
    return all(sig.dtype in BYTES for sig in op.inputs[:2])


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate for products of bytes."""
    product = product_of(workload) if offered(workload, traits) else None
    if product is None:
        return ()
    op = workload.op
    signs = Signs.of(op.inputs[0].dtype, op.inputs[1].dtype, zeros_of(op))
    words = replace(product, steps=ceildiv(product.steps, WORD), dtype=signs.dtype)
    return (tuned_over(words, traits, partial(_tiled, workload, product, words, signs)),)


def _tiled(
    workload: Workload, product: Product, words: Product, signs: Signs, tiling: Tiling
) -> Candidate:
    op = workload.op
    b: Layout | Packing = PLAIN
    if op.constant[1]:
        b = WordPanels(tiling.width, bool(op.attr("transpose_b")), signs)
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    moved = float(sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes)
    return Candidate(
        name=f"gpu.{op.kind}.dp4a",
        layouts=(PLAIN, b, *operands),
        output=PLAIN,
        cost=Cost(product.flops, moved, EFFICIENCY),
        compute=partial(_compute, workload, product.steps, words, signs, tiling, b),
        schedule=nest.as_written,
    )


def _compute(
    workload: Workload,
    depth: int,
    words: Product,
    signs: Signs,
    tiling: Tiling,
    packing: Layout | Packing,
) -> PrimFunc:
    op, sides = workload.op, Sides(workload)
    a = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "a")
    b = nest.buffer(op.inputs[1].shape, op.inputs[1].dtype, "b")
    packed = isinstance(packing, WordPanels)
    if isinstance(packing, WordPanels):
        b = nest.buffer(packing.packed_shape(op.inputs[1].shape), "int8", "b")
    operands = nest.operand_buffers(workload)
    result = nest.buffer(workload.output.shape, workload.output.dtype, "result")

    def panel(group: PrimExpr, word: PrimExpr, column: PrimExpr) -> PrimExpr:
        at = (sides.matrix(group), column // tiling.width, word, column % tiling.width)
        return loaded(b, *at, nest.integer(0))

    def left(group: PrimExpr, word: PrimExpr, row: PrimExpr) -> PrimExpr:
        return _along(a, sides.left(group, row), word, depth, signs.flips[0])

    def right(group: PrimExpr, word: PrimExpr, column: PrimExpr) -> PrimExpr:
        if packed:
            return panel(group, word, column)
        if op.attr("transpose_b"):
            return _along(b, (*sides.right(group), column), word, depth, signs.flips[1])
        return _gathered(
            lambda step: nest.read(b, *sides.right(group), step, column),
            word,
            depth,
            signs.flips[1],
        )

    tiles = Tiles(
        words,
        tiling,
        Side(left),
        Side(right),
        left_packed=False,
        right_packed=packed,
        left_steps_first=True,
        right_steps_first=bool(op.attr("transpose_b")) and not packed,
    )
    store = storing(workload, operands, result)

    def finish(value: PrimExpr, group: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        if packed and signs.zeros[0]:
            value = value + panel(group, nest.integer(words.steps), column)
        return store(value, group, row, column)

    zeros = Zeros(0 if packed else signs.zeros[0], signs.zeros[1], depth)
    return nest.function([a, b, *operands, result], zeros.nest(tiles, False, finish))


def _along(
    buffer: Buffer, line: tuple[PrimExpr, ...], word: PrimExpr, depth: int, flip: bool
) -> PrimExpr:
    """A word of bytes that lie side by side."""
    if depth % WORD:
        return _gathered(lambda step: nest.read(buffer, *line, step), word, depth, flip)
    found = loaded(buffer, *line, word * WORD)
    return flipped(found) if flip else found


def _gathered(
    byte: Callable[[PrimExpr], PrimExpr], word: PrimExpr, depth: int, flip: bool
) -> PrimExpr:
    """A word of the bytes of four steps; those behind the last are not read."""
    left_over = depth % WORD

    def one(index: int) -> PrimExpr:
        step = word * WORD + index
        value = byte(step)
        if index < (left_over or WORD):
            return value
        return tirx.if_then_else(step < depth, value, tirx.const(0, str(value.ty.dtype)))

    found = joined(one, flip)
    if not left_over or not flip:
        return found
    return tirx.Select(word == depth // WORD, kept(found, left_over), found)
