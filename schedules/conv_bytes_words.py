"""Depthwise convolution of unsigned bytes by dot products: four taps of a row in one instruction.

The instruction multiplies four neighbouring bytes, which in blocks of channels are four channels,
and a depthwise sum takes one. So a task copies the rows that it reads of 16 channels into scratch
as words: that of a pixel and a channel holds the pixel and the next three of the row. Each word is
the one before, shifted, with one pixel more; it serves all rows of taps, and every fourth tap.

Numerics: exact; sums wrap as int32 does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.byte_convs import bytes_conv, is_depthwise, output_layout
from schedules.byte_dots import add_words
from schedules.byte_frame import Frame
from schedules.byte_tiles import COLUMNS, GROUP
from schedules.conv_common import Conv, ceil_div, traffic
from schedules.conv_loops import parallel_grid
from schedules.epilogue import operand_layouts
from schedules.interface import (
    Candidate,
    Cost,
    Knob,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
    channel_block,
)
from schedules.nest import Buffer, Split, Stmt, as_written
from schedules.space import tunable
from schedules.vectors import scratch

_SCRATCH = 24 << 10
"""Bytes of words of a task, which should stay in the first cache, unless too few rows use them."""
_MOST_SUMS = 20
"""Of the 32 registers."""


@dataclass(frozen=True)
class WordWeights:
    """Packs int8 (C,1,KH,KW) as (vectors of channels, KH, words, 16, 4), with zeros behind."""

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        vectors, high, words, *_ = self.packed_shape(array.shape)
        padded = np.zeros((vectors * COLUMNS, high, words * GROUP), array.dtype)
        padded[: array.shape[0], :, : array.shape[3]] = array[:, 0]
        split = padded.reshape(vectors, COLUMNS, high, words, GROUP)
        return np.ascontiguousarray(split.transpose(0, 2, 3, 1, 4))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        words = ceil_div(shape[3], GROUP)
        return (ceil_div(shape[0], COLUMNS), shape[2], words, COLUMNS, GROUP)


@dataclass(frozen=True)
class WordPlan:
    """pixels: of a row, in a tile. rows: of the output, in a task."""

    pixels: int
    rows: int


def columns_of(conv: Conv) -> int:
    """Words of a row, those included that only begin it."""
    return conv.out_width + ceil_div(conv.kernel[1], GROUP) * GROUP - 1


def high_of(conv: Conv, rows: int) -> int:
    """Rows of the image that `rows` of the output read."""
    return (rows - 1) * conv.strides[0] + (conv.kernel[0] - 1) * conv.dilation[0] + 1


class _Kernel:
    """Emits one kernel."""

    def __init__(self, workload: Workload, conv: Conv, traits: TargetTraits, plan: WordPlan):
        self.workload, self.conv, self.plan, self.traits = workload, conv, plan, traits
        self.block = channel_block(conv.channels)
        target = output_layout(workload, traits)
        self.frame = Frame(workload, Layout(self.block), WordWeights(), target)

    def function(self) -> PrimFunc:
        """The finished function."""
        conv = self.conv
        bands = Split.of(conv.out_height, self.plan.rows)

        def task(n: PrimExpr, vector: PrimExpr, part: PrimExpr) -> Stmt:
            return bands.part(part, lambda y, rows: self.band(n, vector, y, rows))

        vectors = ceil_div(conv.channels, COLUMNS)
        return self.frame.function(parallel_grid((conv.batch, vectors, bands.count), task))

    def band(self, n: PrimExpr, vector: PrimExpr, y: PrimExpr, rows: int) -> Stmt:
        """`rows` rows of the output from `y` on, of one vector of channels."""
        conv = self.conv
        shape = (high_of(conv, rows), columns_of(conv), COLUMNS)
        area = scratch(shape, "int32", "words")
        tiles = Split.of(conv.out_width, self.plan.pixels)

        def row(r: PrimExpr) -> Stmt:
            def tile(part: PrimExpr) -> Stmt:
                return tiles.part(
                    part, lambda x, count: self.tile(area, n, vector, (y, r), x, count)
                )

            return nest.serial(tiles.count, tile, "tile")

        fill = nest.serial(shape[0], lambda line: self.words(area, n, vector, y, line), "line")
        return nest.sequence(nest.allocate(area), fill, nest.serial(rows, row, "row"))

    def words(
        self, area: Buffer, n: PrimExpr, vector: PrimExpr, y: PrimExpr, line: PrimExpr
    ) -> Stmt:
        """Fill one row of the scratch: the word at column j ends with the pixel j − left."""
        conv = self.conv
        each, left = self.block // COLUMNS, conv.padding[1]
        source = y * conv.strides[0] + line - conv.padding[0]
        own = tirx.Ramp(nest.integer(0), nest.integer(1), COLUMNS)
        lanes = tirx.Ramp(vector % each * COLUMNS, nest.integer(1), COLUMNS)
        last = nest.buffer((COLUMNS,), "int32", "last", "local")
        pad = int(self.workload.op.attr("pad_value"))
        outside = tirx.Broadcast(tirx.const(pad, "int32"), COLUMNS)

        def constant(value: int) -> PrimExpr:
            return tirx.Broadcast(tirx.const(value, "int32"), COLUMNS)

        def append(j: PrimExpr, pixel: PrimExpr) -> Stmt:
            # The sign's bit moves in as well as zeros would: what is shifted in is masked.
            rest = tirx.bitwise_and(
                tirx.shift_right(nest.read(last, own), constant(8)), constant(0xFFFFFF)
            )
            word = tirx.bitwise_or(rest, tirx.shift_left(pixel, constant(24)))
            value = tirx.Var("word", f"int32x{COLUMNS}")
            return nest.sequence(
                tirx.Bind(value, word),
                nest.write(last, value, own),
                nest.write(area, value, line, j, own),
            )

        def inside(i: PrimExpr) -> Stmt:
            codes = nest.read(self.frame.source, n, vector // each, source, i, lanes)
            return append(left + i, tirx.Cast(f"int32x{COLUMNS}", codes))

        def around(first: int, count: int) -> Stmt | None:
            loop = nest.serial(count, lambda i: append(first + i, outside), "around")
            return loop if count > 0 else None

        wide = columns_of(conv)
        copied = min(conv.width, wide - left)
        image = nest.sequence(
            around(0, left),
            nest.serial(copied, inside, "column"),
            around(left + copied, wide - left - copied),
        )
        reads = tirx.all(source >= 0, source < conv.height)
        return nest.sequence(
            nest.allocate(last),
            nest.write(last, constant(0), own),
            tirx.IfThenElse(reads, image, around(0, wide)),
        )

    def tile(
        self,
        area: Buffer,
        n: PrimExpr,
        vector: PrimExpr,
        row: tuple[PrimExpr, PrimExpr],
        x: PrimExpr,
        count: int,
    ) -> Stmt:
        """`count` outputs from column `x` on, of row `r` of the rows from `y` on: row = (y, r)."""
        conv, (y, r) = self.conv, row
        sums = nest.buffer((count, COLUMNS), "int32", "sums", "local")
        own = tirx.Ramp(nest.integer(0), nest.integer(1), COLUMNS)
        group = tirx.Ramp(nest.integer(0), nest.integer(1), GROUP * COLUMNS)

        def line(kh: PrimExpr) -> Stmt:
            stmts: list[Stmt] = []
            for word in range(ceil_div(conv.kernel[1], GROUP)):
                weight = tirx.Var("weight", f"int8x{GROUP * COLUMNS}")
                read = nest.read(self.frame.weights, vector, kh, word, 0, group)
                stmts.append(tirx.Bind(weight, read))
                for p in range(count):
                    column = x + p + GROUP * (word + 1) - 1
                    at = (r * conv.strides[0] + kh * conv.dilation[0], column)
                    total = add_words(
                        nest.read(sums, p, own), nest.read(area, *at, own), weight, self.traits
                    )
                    stmts.append(nest.write(sums, total, p, own))
            return nest.sequence(*stmts, tirx.Evaluate(0))

        zero = tirx.const(0, "int32")
        clear = nest.unrolled(
            count, lambda p: nest.vectorized(COLUMNS, lambda c: nest.write(sums, zero, p, c))
        )

        def store(p: PrimExpr) -> Stmt:
            at = (y + r, x + p)
            return self.frame.channels(vector, 1, (n,), at, lambda c: nest.read(sums, p, c))

        reduction = nest.serial(conv.kernel[0], line, "kh")
        return nest.sequence(nest.allocate(sums), clear, reduction, nest.unrolled(count, store))


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for rows of neighbouring taps, where there are dot products of 16 sums."""
    conv = bytes_conv(workload, traits)
    if conv is None or not is_depthwise(conv) or not traits.vnni or traits.lanes != COLUMNS:
        return ()
    if conv.strides[1] != 1 or conv.dilation[1] != 1 or conv.kernel[1] < 3:
        return ()
    across = ceil_div(conv.out_width, _MOST_SUMS)
    room = _SCRATCH // (4 * COLUMNS * columns_of(conv))
    fitting = [r for r in range(1, conv.out_height + 1) if high_of(conv, r) <= room]
    rows = min(max([2 * conv.kernel[0], *fitting]), conv.out_height)
    values = {"pixels": ceil_div(conv.out_width, across), "rows": rows}
    knobs = (
        Knob("pixels", tuple(range(1, min(conv.out_width, 28) + 1))),
        Knob("rows", tuple(range(1, conv.out_height + 1))),
    )
    return (tunable(knobs, values, partial(_decided, workload, conv, traits)),)


def _decided(
    workload: Workload, conv: Conv, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel with these decisions."""
    plan = WordPlan(**values)
    source, target = Layout(channel_block(conv.channels)), output_layout(workload, traits)
    operands = operand_layouts(workload.epilogue, workload.output, target)
    taps, words = conv.kernel[0] * conv.kernel[1], ceil_div(conv.kernel[1], GROUP)
    # Instructions of an output, and of the words and the epilogue beside.
    steps = conv.kernel[0] * words + 5 * high_of(conv, plan.rows) / plan.rows + 10
    return Candidate(
        name="conv_integer.words",
        layouts=(source, WordWeights(), *operands),
        output=target,
        cost=Cost(2.0 * conv.macs, traffic(workload), 0.8 * taps / steps),
        compute=lambda: _Kernel(workload, conv, traits, plan).function(),
        schedule=as_written,
    )
