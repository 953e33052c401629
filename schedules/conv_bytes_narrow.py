"""Convolutions of unsigned bytes with few channels, as of an image's three colours.

A block of channels would be mostly empty. Here a task copies the rows that it reads into scratch
with the channels of a pixel side by side, filled up to a multiple of four; neighbouring taps of a
row are then consecutive bytes, and the rows of a tile of pixels overlap: each begins a stride after
the one before. So a step takes in several taps, and nothing is copied per tap.

Numerics: exact; sums wrap as int32 does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.byte_convs import bytes_conv, is_narrow, output_layout
from schedules.byte_frame import Frame
from schedules.byte_halves import word_parts
from schedules.byte_tiles import (
    GROUP,
    MOST_ROWS,
    MOST_TERMS,
    Place,
    Step,
    TilePlan,
    share,
    sums_of,
    usual_tile,
    way,
)
from schedules.conv_common import Conv, ceil_div, traffic
from schedules.conv_loops import parallel_grid
from schedules.epilogue import operand_layouts
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Knob,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Buffer, Split, Stmt, as_written
from schedules.space import tunable
from schedules.vectors import over_vectors, scratch


@dataclass(frozen=True)
class NarrowWeights:
    """Packs int8 (O,C,KH,KW) as (panels, KH, runs, taps · words, panel, 4): `runs` runs of `taps`
    taps of a row, whose channels, filled up to 4 · `words`, lie side by side."""

    taps: int
    panel: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        panels, high, runs, _, panel, _ = self.packed_shape(array.shape)
        words = ceil_div(array.shape[1], GROUP)
        padded = np.zeros((panels * panel, words * GROUP, high, runs * self.taps), array.dtype)
        padded[: array.shape[0], : array.shape[1], :, : array.shape[3]] = array
        split = padded.reshape(panels, panel, words, GROUP, high, runs, self.taps)
        packed = split.transpose(0, 4, 5, 6, 2, 1, 3)
        return np.ascontiguousarray(packed).reshape(self.packed_shape(array.shape))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        filters, channels, high, wide = shape
        runs, words = ceil_div(wide, self.taps), ceil_div(channels, GROUP)
        return (ceil_div(filters, self.panel), high, runs, self.taps * words, self.panel, GROUP)


@dataclass(frozen=True)
class NarrowPlan:
    """pixels: of a row, in a tile. tiles, vectors: of pixels and of filters summed at once.
    bands: parts of the output's rows, each a task."""

    pixels: int
    tiles: int
    vectors: int
    bands: int


class _Kernel:
    """Emits one kernel."""

    def __init__(self, workload: Workload, conv: Conv, traits: TargetTraits, plan: NarrowPlan):
        self.workload, self.conv, self.plan, self.traits = workload, conv, plan, traits
        self.words = ceil_div(conv.channels, GROUP)
        self.taps = taps_at_once(conv)
        terms = self.taps * self.words * GROUP
        self.tile = TilePlan(plan.pixels, terms, plan.tiles, plan.vectors)
        packing = NarrowWeights(self.taps, self.tile.panel)
        self.frame = Frame(workload, PLAIN, packing, output_layout(workload, traits))
        # A run of taps may read on behind the last one, where weights are zero.
        runs = ceil_div(conv.kernel[1], self.taps)
        self.wide = (conv.out_width - 1) * conv.strides[1] + runs * self.taps

    def function(self) -> PrimFunc:
        """The finished function."""
        rows = self.conv.out_height
        bands = Split.of(rows, ceil_div(rows, self.plan.bands))

        def task(n: PrimExpr, part: PrimExpr) -> Stmt:
            return bands.part(part, lambda y, size: self.band(n, y, size))

        return self.frame.function(parallel_grid((self.conv.batch, bands.count), task))

    def band(self, n: PrimExpr, y: PrimExpr, rows: int) -> Stmt:
        """`rows` rows of the output from `y` on."""
        conv, plan = self.conv, self.plan
        sums = sums_of(self.tile, self.traits)
        across = ceil_div(conv.out_width, plan.pixels)
        full, rest = divmod(rows * across, plan.tiles)
        area, fill = self.copied(n, y, rows)

        def place(u: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
            start = tirx.min(u % across * plan.pixels, conv.out_width - plan.pixels)
            return u // across, start

        def panel(o: PrimExpr) -> Stmt:
            def some(u: PrimExpr, count: int) -> Stmt:
                places = [place(u + t) for t in range(count)]

                def steps(step: Step) -> Stmt:
                    def tap(kh: PrimExpr, run: PrimExpr) -> Stmt:
                        sources: list[Place] = [
                            (
                                0,
                                row * conv.strides[0] + kh,
                                x * conv.strides[1] + run * self.taps,
                                0,
                            )
                            for row, x in places
                        ]
                        stride = conv.strides[1] * self.words * GROUP
                        return step(area, sources, stride, self.frame.weights, (o, kh, run))

                    runs = ceil_div(conv.kernel[1], self.taps)
                    return nest.serial(
                        conv.kernel[0],
                        lambda kh: nest.serial(runs, lambda run: tap(kh, run), "run"),
                        "kh",
                    )

                def finish(t: int, row: PrimExpr, start: PrimExpr) -> Stmt:
                    def pixel(p: PrimExpr) -> Stmt:
                        at = (y + row, start + p)
                        return self.frame.channels(
                            o, plan.vectors, (n,), at, lambda c: sums.value(t, p, c)
                        )

                    return sums.each_row(pixel)

                stored = [finish(t, row, start) for t, (row, start) in enumerate(places)]
                return nest.sequence(sums.compute(count, steps), *stored)

            whole = nest.serial(full, lambda g: some(g * plan.tiles, plan.tiles), "tiles")
            last = some(nest.integer(full * plan.tiles), rest) if rest else None
            return nest.sequence(whole if full else None, last)

        panels = ceil_div(conv.filters, self.tile.panel)
        loop = nest.serial(panels, panel, "panel")
        return nest.sequence(sums.start(), nest.allocate(area), fill, loop, sums.stop())

    def copied(self, n: PrimExpr, y: PrimExpr, rows: int) -> tuple[Buffer, Stmt]:
        """Scratch (part, row, column, word of four channels) for what a band reads, and what fills
        it."""
        conv, words = self.conv, self.words
        high = (rows - 1) * conv.strides[0] + conv.kernel[0]
        top, left = conv.padding[:2]
        pad = int(self.workload.op.attr("pad_value"))
        padded = tirx.const(int.from_bytes(bytes([pad] * GROUP), "little", signed=True), "int32")
        count = len(word_parts(padded, self.traits))
        area = scratch((count, high, self.wide, words), "int32", "area")
        copied = min(conv.width, self.wide - left)

        def write(value: PrimExpr, *where: PrimExpr | int) -> Stmt:
            parts = enumerate(word_parts(value, self.traits))
            return nest.sequence(*[nest.write(area, part, i, *where) for i, part in parts])

        def padding(row: PrimExpr, first: int, count: int) -> Stmt | None:
            def put(i: PrimExpr) -> Stmt:
                return write(padded, row, first + i // words, i % words)

            return over_vectors(count * words, 16, put)

        def line(row: PrimExpr) -> Stmt:
            source = y * conv.strides[0] + row - top

            def word(w: int) -> Stmt | None:
                channels = range(w * GROUP, min(conv.channels, (w + 1) * GROUP))

                def put(x: PrimExpr) -> Stmt:
                    parts = [
                        tirx.Cast("int32", nest.read(self.frame.source, n, c, source, x))
                        * tirx.const(1 << 8 * (c % GROUP), "int32")
                        if c % GROUP < 3
                        else tirx.shift_left(
                            tirx.Cast("int32", nest.read(self.frame.source, n, c, source, x)),
                            tirx.const(24, "int32"),
                        )
                        for c in channels
                    ]
                    value = reduce(tirx.bitwise_or, parts)
                    return write(value, row, left + x, w)

                return over_vectors(copied, 16, put)

            inner = nest.sequence(
                padding(row, 0, left),
                *map(word, range(words)),
                padding(row, left + copied, self.wide - left - copied),
            )
            inside = tirx.all(source >= 0, source < conv.height)
            return tirx.IfThenElse(inside, inner, padding(row, 0, self.wide))

        return area, nest.serial(high, line, "row")


def taps_at_once(conv: Conv) -> int:
    """Neighbouring taps of a row whose channels fit a step."""
    return min(conv.kernel[1], MOST_TERMS // (ceil_div(conv.channels, GROUP) * GROUP))


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for an undilated conv_integer of one group and fewer than 16 channels."""
    conv = bytes_conv(workload, traits)
    if conv is None or not is_narrow(conv):
        return ()
    taps = taps_at_once(conv)
    terms = taps * ceil_div(conv.channels, GROUP) * GROUP
    tile = usual_tile(conv.out_width, conv.out_height, conv.filters, terms, traits)
    values = {
        "pixels": tile.rows,
        "tiles": tile.tiles,
        "vectors": tile.vectors,
        "bands": min(conv.out_height, 4 * traits.threads),
    }
    knobs = (
        Knob("pixels", tuple(range(4, MOST_ROWS + 1))),
        Knob("tiles", (1, 2, 3)),
        Knob("vectors", (1, 2, 3)),
        Knob("bands", tuple(range(1, 8 * traits.threads + 1))),
    )
    return (tunable(knobs, values, partial(_decided, workload, conv, traits)),)


def _decided(
    workload: Workload, conv: Conv, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel with these decisions."""
    plan = NarrowPlan(**values)
    taps, words = taps_at_once(conv), ceil_div(conv.channels, GROUP)
    tile = TilePlan(plan.pixels, taps * words * GROUP, plan.tiles, plan.vectors)
    if not tile.fits(traits) or plan.pixels > conv.out_width or plan.bands > conv.out_height:
        return None
    target = output_layout(workload, traits)
    steps = conv.kernel[0] * ceil_div(conv.kernel[1], taps)
    operands = operand_layouts(workload.epilogue, workload.output, target)
    useful = conv.channels * conv.kernel[1] / (tile.terms * ceil_div(conv.kernel[1], taps))
    return Candidate(
        name=f"conv_integer.{way(traits)}[narrow]",
        layouts=(PLAIN, NarrowWeights(taps, tile.panel), *operands),
        output=target,
        cost=Cost(2.0 * conv.macs, traffic(workload), share(tile, steps, traits) * useful),
        compute=lambda: _Kernel(workload, conv, traits, plan).function(),
        schedule=as_written,
    )
