"""Direct convolution (groups = 1) into a blocked layout, without a padded copy of the input.

Register-blocked direct convolution after Georganas et al., "Anatomy of High-Performance Deep
Learning Convolutions on SIMD Architectures" (SC 2018): a tile of `pixels` neighbouring outputs of
one row × `vectors` vectors of output channels stays in registers through the whole reduction; each
step multiplies one input value per pixel, broadcast, with one weight per lane. Padding costs
nothing: rows outside are skipped by the bounds of the loop over taps, and the tiles at the left and
right border are emitted for the taps that they have.

Numerics: products are summed in the order (channel block, row tap, column tap, channel); the error
against float64 is at most 1e-5 of the largest output for up to 4608 terms of standard-normal data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.conv_common import (
    Accumulators,
    Axis,
    Conv,
    RegisterTile,
    axes,
    ceil_div,
    choose_tile,
    modelled_share,
    parse,
    traffic,
)
from schedules.conv_loops import Kernel, over_channels, parallel_grid
from schedules.conv_stream import Stream, streamed
from schedules.epilogue import operand_layouts
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Knob,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Stmt, as_written
from schedules.space import divisors, tunable
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


@dataclass(frozen=True)
class DirectPlan:
    """How a direct convolution is cut: the register tile and which operand stays in cache."""

    tile: RegisterTile
    weights_stay: bool  # loop over panels of filters outside, over positions inside
    stream: bool  # the tiles of a panel fetch the next one's weights


def weights_stay(conv: Conv, panels: int, tasks_per_panel: int, traits: TargetTraits) -> bool:
    """Whether each panel of weights should be used for all positions before the next one.

    Whichever operand is inside is read once per step of the outer loop: from L2 where it fits there
    (cheap), else from beyond (dear). The first time, weights come from far memory, and where they
    are inside, every worker reads them all.
    """
    weights = 4 * conv.filters * conv.channels * conv.kernel[0] * conv.kernel[1]
    # A stride longer than the kernel skips rows. It skips columns, too, but every second line of a
    # row has only every second set of a cache for itself.
    high = min(conv.height, conv.out_height * conv.kernel[0])
    image = 4 * conv.batch * conv.channels * high * conv.width
    budget = 0.6 * traits.l2_bytes

    def cost(size: float, times: float) -> float:
        return size * (1 + max(0.0, times - 1) * (0.25 if size < budget else 1.0))

    share = 1 / traits.threads
    outside_weights = weights * share + cost(image, panels * share)
    outside_image = image * share + cost(weights, tasks_per_panel * conv.batch * share)
    return outside_weights < outside_image


def with_rows(tile: RegisterTile, both: tuple[Axis, Axis], traits: TargetTraits) -> RegisterTile:
    """`tile` over several rows, where a whole row leaves room for more in the registers.

    Small maps are bound by reading weights, which a taller tile does less often.
    """
    rows, columns = both
    if tile.pixels < columns.out:
        return tile
    fit = (traits.vector_registers // tile.vectors - 2) // columns.out
    height = max(1, min(fit, rows.inner()[1]))
    return RegisterTile(tile.pixels, tile.vectors, height)


def plan(conv: Conv, traits: TargetTraits) -> DirectPlan:
    """The default cut for `conv`."""
    blocks = ceil_div(conv.filters, traits.lanes)
    tile = with_rows(choose_tile(conv.out_width, blocks, traits), axes(conv), traits)
    stay = weights_stay(conv, blocks // tile.vectors, conv.out_height, traits)
    return DirectPlan(tile, stay, stream=stay)


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


def emit(
    workload: Workload, conv: Conv, traits: TargetTraits, cut: DirectPlan, source: Layout
) -> PrimFunc:
    """The kernel that reads its input in layout `source`."""
    lanes, vectors = traits.lanes, cut.tile.vectors
    panels = ceil_div(conv.filters, lanes) // vectors
    packing = DirectWeights(lanes * vectors, source.block)
    kernel = Kernel(workload, source, packing, Layout(lanes))
    direct = DirectTiles(
        kernel, *axes(conv), cut.tile, lanes, source.block, conv.channels, stream=cut.stream
    )
    if cut.weights_stay:
        grid = parallel_grid((conv.batch, panels, direct.bands()), direct.band)
    else:
        grid = parallel_grid(
            (conv.batch, direct.bands(), panels), lambda n, b, o: direct.band(n, o, b)
        )
    return kernel.function(grid)


def too_many_statements(axis: Axis, tile: RegisterTile, copies: int = 1) -> bool:
    """Whether tiles along `axis`, `copies` times over, would take long to compile."""
    code = sum(run.width * tile.vectors * axis.taps for run in runs(axis, tile.pixels))
    return code * copies > _MAX_STATEMENTS


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Direct convolutions for a conv2d with one group; a narrow input may be row-major."""
    conv = parse(workload)
    if conv is None or conv.groups != 1 or conv.pointwise or not workload.op.constant[1]:
        return ()
    default = plan(conv, traits)
    if not fits(conv, default.tile, traits):
        return ()
    sources = [Layout(traits.lanes)] if conv.channels > 4 else []
    if conv.channels < 2 * traits.lanes:
        sources.append(PLAIN)
    return tuple(
        tunable(
            knobs(conv, traits),
            decisions(replace(default, stream=default.stream and source.block > 0)),
            partial(_decided, workload, conv, traits, source),
        )
        for source in sources
    )


def fits(conv: Conv, tile: RegisterTile, traits: TargetTraits) -> bool:
    """Whether a tile of `conv` fits the registers and compiles in a moment."""
    rows, columns = axes(conv)
    if tile.rows > 1 and (tile.pixels != columns.out or tile.rows > rows.inner()[1]):
        return False
    in_registers = (tile.pixels * tile.rows + 1) * tile.vectors <= traits.vector_registers
    return in_registers and not too_many_statements(columns, tile)


def knobs(conv: Conv, traits: TargetTraits) -> tuple[Knob, ...]:
    """What a direct convolution leaves open."""
    most = traits.vector_registers
    return (
        Knob("pixels", tuple(range(1, min(conv.out_width, most) + 1))),
        Knob("vectors", divisors(ceil_div(conv.filters, traits.lanes), 8)),
        Knob("rows", tuple(range(1, min(conv.out_height, most // conv.out_width) + 1)) or (1,)),
        Knob("weights_stay", (0, 1)),
        Knob("stream", (0, 1)),
    )


def decisions(cut: DirectPlan) -> dict[str, int]:
    """The values of the knobs that give `cut`."""
    return {
        "pixels": cut.tile.pixels,
        "vectors": cut.tile.vectors,
        "rows": cut.tile.rows,
        "weights_stay": int(cut.weights_stay),
        "stream": int(cut.stream),
    }


def _decided(
    workload: Workload,
    conv: Conv,
    traits: TargetTraits,
    source: Layout,
    values: Mapping[str, int],
) -> Candidate | None:
    """The direct convolution that reads its input in layout `source`, with these decisions."""
    tile = RegisterTile(values["pixels"], values["vectors"], values["rows"])
    cut = DirectPlan(tile, bool(values["weights_stay"]), bool(values["stream"]))
    if not fits(conv, tile, traits) or (cut.stream and not (cut.weights_stay and source.block)):
        return None
    layout = Layout(traits.lanes)
    terms = conv.channels * conv.kernel[0] * conv.kernel[1]
    share = modelled_share(tile, conv.out_width, conv.filters, terms, traits)
    operands = operand_layouts(workload.epilogue, workload.output, layout)
    return Candidate(
        name=f"conv2d.direct[{'blocked' if source.block else 'plain'}]",
        layouts=(source, DirectWeights(traits.lanes * tile.vectors, source.block), *operands),
        output=layout,
        cost=Cost(2.0 * conv.macs, traffic(workload), share),
        compute=lambda: emit(workload, conv, traits, cut, source),
        schedule=as_written,
    )
