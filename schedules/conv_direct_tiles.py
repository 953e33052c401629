"""The register tiles of direct convolutions, and how their weights are packed.

A tile of `pixels` neighbouring outputs of one row × `vectors` vectors of output channels stays in
registers through the whole reduction. Rows outside the image are skipped by the bounds of the loop
over taps, and the tiles at the left and right border are emitted for the taps that they have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.conv_common import Accumulators, Axis, RegisterTile, ceil_div
from schedules.conv_loops import Kernel, over_channels
from schedules.conv_stream import Stream, streamed
from schedules.interface import PrimExpr
from schedules.nest import Stmt
from schedules.windows import Run, runs

_MAX_STATEMENTS = 3000
"""Unrolled multiply-adds in one kernel: above this, it would take seconds to compile."""


@dataclass(frozen=True)
class DirectWeights:
    """Weights (O, I, KH, KW) in the order in which the kernel reads them, padded with zeros.

    (O / panel, I / block, KH, KW, block, panel), or (O / panel, KW, I, KH, 1, panel) where `block`
    is 0 because the image is row-major.
    """

    panel: int
    block: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Pack weights of logical shape (O, I, KH, KW)."""
        filters, channels, kh, kw = array.shape
        block = self.block or 1
        panels, blocks = ceil_div(filters, self.panel), ceil_div(channels, block)
        padded = np.zeros((panels * self.panel, blocks * block, kh, kw), array.dtype)
        padded[:filters, :channels] = array
        split = padded.reshape(panels, self.panel, blocks, block, kh, kw)
        order = (0, 2, 4, 5, 3, 1) if self.block else (0, 5, 2, 4, 3, 1)
        return np.ascontiguousarray(split.transpose(order))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        filters, channels, kh, kw = shape
        panels = ceil_div(filters, self.panel)
        if not self.block:
            return (panels, kw, channels, kh, 1, self.panel)
        return (panels, ceil_div(channels, self.block), kh, kw, self.block, self.panel)


class DirectTiles:
    """Emits the register tiles of a convolution whose weights are packed as DirectWeights.

    `first_channel` gives the first input channel of a panel of filters, where groups make it depend
    on the panel; `channels` is how many each reads. With `stream`, the tiles of a panel fetch the
    next one.
    """

    def __init__(
        self,
        kernel: Kernel,
        rows: Axis,
        columns: Axis,
        tile: RegisterTile,
        lanes: int,
        block: int,
        channels: int,
        first_channel: Callable[[PrimExpr], PrimExpr] | None = None,
        stream: bool = False,
    ) -> None:
        self.stream = stream and bool(block)
        self.kernel, self.rows, self.columns, self.lanes = kernel, rows, columns, lanes
        self.block, self.channels, self.first_channel = block, channels, first_channel
        self.size = tile

    def pixel(
        self, n: PrimExpr, panel: PrimExpr, ic: PrimExpr, ii: PrimExpr, y: PrimExpr, x: PrimExpr
    ) -> PrimExpr:
        """Channel `ii` of block `ic` (channel `ic` of a row-major image) at row y, column x."""
        if not self.block:
            return nest.read(self.kernel.image, n, ic, y, x)
        if self.first_channel is not None:
            channel = self.first_channel(panel) + ic * self.block + ii
            ic, ii = channel // self.block, channel % self.block
        return nest.read(self.kernel.image, n, ic, y, x, ii)

    def tile(
        self,
        n: PrimExpr,
        panel: PrimExpr,
        row: PrimExpr,
        start: PrimExpr,
        run: Run,
        number: PrimExpr,
        height: int = 1,
    ) -> Stmt:
        """One tile from output (row, start), the `number`th of its panel.

        Left and right border are as `run` says. It is one row high, or of more rows that all read
        inside with all their taps.
        """
        lanes, vectors = self.lanes, self.size.vectors
        rows, columns = self.rows, self.columns
        acc = Accumulators(height * run.width, vectors, lanes)
        stream = self.next_panel(panel, number) if self.stream else None
        first, count = rows.inside(row)
        if height > 1:
            first, count = nest.integer(0), nest.integer(rows.taps)

        def step(ic: PrimExpr, kh: PrimExpr, kw: int, ii: PrimExpr) -> Stmt:
            taps = (rows.weight(kh), columns.weight(kw))
            weight = (ic, *taps, ii) if self.block else (taps[1], ic, taps[0], 0)

            low, high = 0, run.width
            if not run.interior:
                low, high = columns.valid(run.start, run.width, kw)

            def line(i: int) -> Stmt:
                skip = i * run.width

                def term(p: PrimExpr, v: PrimExpr, x: PrimExpr) -> PrimExpr:
                    y, column = rows.source(row + i, kh), columns.source(start + p - skip, kw)
                    pixel = self.pixel(n, panel, ic, ii, y, column)
                    return pixel * nest.read(self.kernel.weights, panel, *weight, v * lanes + x)

                return acc.add(term, low + skip, high + skip)

            return nest.sequence(*map(line, range(height)))

        reach = [
            kw
            for kw in range(columns.taps)
            if run.interior or columns.valid(run.start, run.width, kw) != (0, 0)
        ]

        def block(ic: PrimExpr, inner: int) -> Stmt:
            def horizontal(kh: PrimExpr) -> Stmt:
                y = first + kh

                def across(kw: int) -> Stmt:
                    number = (ic * rows.taps + y) * columns.taps + kw
                    body = partial(step, ic, y, kw)
                    return streamed(inner, body, vectors * lanes, stream, number)

                return nest.sequence(*map(across, reach))

            return nest.sequence(fetch_pixels(ic + 1), nest.serial(count, horizontal, "kh"))

        def fetch_pixels(ic: PrimExpr) -> Stmt | None:
            # With more taps than one, the pixels of a block are read often enough to hide the wait.
            if not self.stream or rows.taps * columns.taps > 1:
                return None

            def line(p: PrimExpr) -> Stmt:
                y = rows.source(row + p // run.width, first)
                x = columns.source(start + p % run.width, 0)
                return nest.prefetch(self.kernel.image, n, ic, y, x, 0, nearest=True)

            return nest.unrolled(height * run.width, line)

        def plain(kw: int) -> Stmt:
            # Loops of their own for each horizontal tap: without, LLVM would hold the pixels that
            # neighbouring taps share in registers, which there are not. One loop over channels and
            # vertical taps, where two would be too short.
            if rows.taps > 4:
                return nest.serial(
                    self.channels,
                    lambda ic: nest.serial(count, lambda kh: step(ic, first + kh, kw, 0), "kh"),
                    "ic",
                )

            # No tap at all is possible, and then nothing must divide by their number.
            per = tirx.max(count, 1)

            def pair(j: PrimExpr) -> Stmt:
                return step(tirx.truncdiv(j, per), first + tirx.truncmod(j, per), kw, 0)

            return nest.serial(count * self.channels, pair, "j")

        def write(i: int) -> Stmt:
            skip = i * run.width

            def element(p: PrimExpr, v: PrimExpr, x: PrimExpr) -> Stmt:
                place = (rows.place(row + i), columns.place(start + p - skip))
                return self.kernel.finish(acc.value(p, v, x), (n, panel * vectors + v, *place, x))

            return acc.each(element, skip, skip + run.width)

        if not reach:
            reduction = tirx.Evaluate(0)
        elif self.block:
            reduction = over_channels(self.channels, self.block, block)
        else:
            reduction = nest.sequence(*map(plain, reach))
        return nest.sequence(acc.start(), reduction, *map(write, range(height)))

    def next_panel(self, panel: PrimExpr, number: PrimExpr) -> Stream:
        """What tile `number` of a panel fetches of the next one."""
        across = ceil_div(self.columns.out, self.size.pixels)
        taps = self.rows.taps * self.columns.taps
        return Stream(
            self.kernel.weights,
            (panel + 1, 0, 0, 0, 0, 0),
            self.bands() * across,
            number,
            ceil_div(self.channels, self.block) * taps,
        )

    def row(
        self, n: PrimExpr, panel: PrimExpr, band: PrimExpr, row: PrimExpr, height: int = 1
    ) -> Stmt:
        """All tiles of `height` output rows, which are one band."""
        across = ceil_div(self.columns.out, self.size.pixels)

        def tiles(run: Run) -> Stmt:
            def tile(t: PrimExpr) -> Stmt:
                number = band * across + (run.start // self.size.pixels + t)
                return self.tile(n, panel, row, run.start + t * run.width, run, number, height)

            return nest.serial(run.count, tile, "wt")

        return nest.sequence(*map(tiles, runs(self.columns, self.size.pixels)))

    def bands(self) -> int:
        """Number of bands, each as high as the tile or one row, that cover the image."""
        inside = self.rows.inner()[1]
        return inside // self.size.rows + self.rows.out - inside // self.size.rows * self.size.rows

    def band(self, n: PrimExpr, panel: PrimExpr, band: PrimExpr) -> Stmt:
        """All tiles of one band: first come those of several rows, then single rows."""
        height = self.size.rows
        if height == 1:
            return self.row(n, panel, band, band)
        top, inside = self.rows.inner()
        high = inside // height
        row = band - high
        single = row + high * height
        if top:
            single = tirx.Select(row < top, row, single)
        if high == 0:
            return self.row(n, panel, band, band)
        tall = self.row(n, panel, band, top + band * height, height)
        if high == self.bands():
            return tall
        return nest.bind(
            single, lambda r: tirx.IfThenElse(band < high, tall, self.row(n, panel, band, r))
        )


def too_many_statements(axis: Axis, tile: RegisterTile, copies: int = 1) -> bool:
    """Whether tiles along `axis`, `copies` times over, would take long to compile."""
    code = sum(run.width * tile.vectors * axis.taps for run in runs(axis, tile.pixels))
    return code * copies > _MAX_STATEMENTS
