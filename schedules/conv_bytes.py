"""Convolutions of unsigned bytes with constant signed bytes, with exact int32 sums.

Channels lie in blocks of up to 64, so that the block of one pixel is a row of a matrix of which
neighbouring pixels are the next rows; a convolution is a sum over taps of products of such matrices
with the weights, without any copy of patches. Of a grouped convolution each product takes a part of
a block: byte_groups.py. A task takes a band of output rows and a range of
filters. Where the window hangs over the border, it copies the rows that it reads into scratch with
padding around, which is small for bytes and in its own cache; elsewhere it reads the image itself.

Numerics: exact; sums wrap as int32 does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.byte_area import padded_area
from schedules.byte_convs import bytes_conv, is_depthwise, is_narrow, output_layout
from schedules.byte_frame import Frame
from schedules.byte_groups import ByteWeights, merging
from schedules.byte_tiles import (
    COLUMNS,
    MOST_ROWS,
    Place,
    Step,
    Sums,
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

LINE = 64
"""Bytes of a cache line."""


@dataclass(frozen=True)
class BytesPlan:
    """How a convolution is cut.

    pixels: of one row of the output, in a tile. tiles, vectors: of pixels and of filters that are
    summed at once. bands, splits: parts of the output's rows and of its filters that are tasks.
    fetch: the tiles of a panel of filters bring the weights of the next one to the second cache.
    """

    pixels: int
    tiles: int
    vectors: int
    bands: int
    splits: int
    fetch: bool


def width_of(conv: Conv) -> int:
    """Pixels of a row: a 1×1 convolution takes the image as one."""
    return conv.out_height * conv.out_width if conv.pointwise else conv.out_width


@dataclass(frozen=True)
class Band:
    """`rows` output rows from `y` on, in each `tiles` tiles of pixels from `tile` on."""

    n: PrimExpr
    y: PrimExpr
    rows: int
    tile: PrimExpr
    tiles: int


class _Kernel:
    """Emits one kernel."""

    def __init__(self, workload: Workload, conv: Conv, traits: TargetTraits, plan: BytesPlan):
        self.workload, self.conv, self.plan, self.traits = workload, conv, plan, traits
        self.block = channel_block(conv.channels)
        self.blocks = ceil_div(conv.channels, self.block)
        self.merging = merging(conv)
        self.tile = TilePlan(plan.pixels, self.merging.piece, plan.tiles, plan.vectors)
        packing = ByteWeights(self.merging, self.tile.panel)
        target = output_layout(workload, traits)
        self.frame = Frame(workload, Layout(self.block), packing, target)

    def function(self) -> PrimFunc:
        """The finished function."""
        plan, conv, zero = self.plan, self.conv, nest.integer(0)
        across = ceil_div(width_of(conv), plan.pixels)
        parts = across if conv.pointwise else conv.out_height
        bands = Split.of(parts, ceil_div(parts, plan.bands))
        panels = ceil_div(conv.filters, self.tile.panel)
        splits = Split.of(panels, ceil_div(panels, plan.splits))

        def task(n: PrimExpr, part: PrimExpr, split: PrimExpr) -> Stmt:
            def band(start: PrimExpr, size: int) -> Band:
                if conv.pointwise:
                    return Band(n, zero, 1, start, size)
                return Band(n, start, size, zero, across)

            return splits.part(
                split,
                lambda panel, count: bands.part(
                    part, lambda start, size: self.band(band(start, size), panel, count)
                ),
            )

        return self.frame.function(parallel_grid((conv.batch, bands.count, splits.count), task))

    def band(self, band: Band, first: PrimExpr, panels: int) -> Stmt:
        """`panels` panels of filters from `first` on of a band."""
        sums = sums_of(self.tile, self.traits)
        full, rest = divmod(band.rows * band.tiles, self.tile.tiles)
        source, leading, top, prepare = self.source(band)

        def panel(o: PrimExpr) -> Stmt:
            def some(g: PrimExpr, count: int) -> Stmt:
                places = [self.place(band, g * self.tile.tiles + t) for t in range(count)]
                fetched = (g, full + bool(rest)) if self.plan.fetch else None
                body = partial(self.steps, source, leading, top, places, first + o, fetched)
                stored = [
                    self.finish(sums, t, band, *place, first + o) for t, place in enumerate(places)
                ]
                return nest.sequence(sums.compute(count, body), *stored)

            whole = nest.serial(full, lambda g: some(g, self.tile.tiles), "tiles")
            last = some(nest.integer(full), rest) if rest else None
            return nest.sequence(whole if full else None, last)

        loop = nest.serial(panels, panel, "panel")
        return nest.sequence(sums.start(), *prepare, loop, sums.stop())

    def place(self, band: Band, u: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
        """Row within a band, and first pixel, of its tile `u`."""
        row, at = (nest.integer(0), u) if band.rows == 1 else (u // band.tiles, u % band.tiles)
        width = width_of(self.conv)
        start = (band.tile + at) * self.plan.pixels
        if width % self.plan.pixels:
            # The last tile of a row begins so early that it is whole.
            start = tirx.min(start, width - self.plan.pixels)
        return row, start

    def source(self, band: Band) -> tuple[Buffer, tuple[PrimExpr, ...], PrimExpr, list[Stmt]]:
        """What a band reads: a buffer, its leading coordinates, its row of the first tap of the
        first output row, and the statements that fill it."""
        if not any(self.conv.padding):
            return self.frame.source, (band.n,), band.y * self.conv.strides[0], []
        pad = int(self.workload.op.attr("pad_value"))
        blocks, rows = (nest.integer(0), self.blocks), (band.y, band.rows)
        area, fill = padded_area(self.frame.source, self.conv, band.n, blocks, rows, pad)
        return area, (), nest.integer(0), [nest.allocate(area), fill]

    def steps(
        self,
        source: Buffer,
        leading: tuple[PrimExpr, ...],
        top: PrimExpr,
        places: list[tuple[PrimExpr, PrimExpr]],
        panel: PrimExpr,
        fetched: tuple[PrimExpr, int] | None,
        step: Step,
    ) -> Stmt:
        """The loops over pieces of channels and taps.

        `fetched` is the number of these tiles, and how many use the same weights: each fetches its
        part of the next panel's.
        """
        conv = self.conv

        def fetch(*at: PrimExpr) -> list[Stmt]:
            if fetched is None:
                return []
            share = ceil_div(self.tile.terms * self.tile.panel, LINE * fetched[1]) * LINE
            first = fetched[0] * share
            return [
                nest.prefetch(self.frame.weights, panel + 1, *at, 0, 0, first + i)
                for i in range(0, share, LINE)
            ]

        def tap(piece: PrimExpr, kh: PrimExpr, kw: PrimExpr) -> Stmt:
            rows: list[Place] = []
            block, lane = self.piece(panel, piece)
            for row, x in places:
                line = top + row * conv.strides[0] + kh * conv.dilation[0]
                column = x * conv.strides[1] + kw * conv.dilation[1]
                pixel = (line, column)
                if conv.pointwise:
                    pixel = nest.unflatten(x, (conv.height, conv.width))
                rows.append((*leading, block, *pixel, lane))
            stride = conv.strides[1] * self.block
            products = step(source, rows, stride, self.frame.weights, (panel, piece, kh, kw))
            return nest.sequence(*fetch(piece, kh, kw), products)

        def row(piece: PrimExpr, kh: PrimExpr) -> Stmt:
            return nest.serial(conv.kernel[1], lambda kw: tap(piece, kh, kw), "kw")

        return nest.serial(
            self.merging.pieces,
            lambda piece: nest.serial(conv.kernel[0], lambda kh: row(piece, kh), "kh"),
            "piece",
        )

    def piece(self, panel: PrimExpr, piece: PrimExpr) -> tuple[PrimExpr, PrimExpr | int]:
        """The block, and where in it, of a piece of the channels that a panel of filters reads."""
        plan = self.merging
        if plan.piece == self.block and plan.count == 1:
            return piece, 0
        each = self.block // plan.piece
        at = panel // plan.panels(self.tile.panel) * plan.pieces + piece
        if plan.count * plan.pieces > self.blocks * each:
            # A last group that is short reads channels that are there, with weights of zero.
            at = tirx.min(at, self.blocks * each - 1)
        return at // each, at % each * plan.piece

    def finish(
        self, sums: Sums, t: int, band: Band, row: PrimExpr, start: PrimExpr, panel: PrimExpr
    ) -> Stmt:
        """Store the epilogue of the sums of one tile of pixels."""
        conv = self.conv

        def pixel(p: PrimExpr) -> Stmt:
            at: tuple[PrimExpr, ...] = (band.y + row, start + p)
            if conv.pointwise:
                at = nest.unflatten(start + p, (conv.out_height, conv.out_width))
            return self.frame.channels(
                panel, self.tile.vectors, (band.n,), at, lambda c: sums.value(t, p, c)
            )

        return sums.each_row(pixel)


def plan_of(conv: Conv, traits: TargetTraits) -> BytesPlan:
    """The default cut."""
    width, lines, groups = width_of(conv), 1 if conv.pointwise else conv.out_height, merging(conv)
    tile = usual_tile(width, lines, groups.filters, groups.piece, traits)
    if not groups.fits(tile.panel):
        tile = usual_tile(width, lines, COLUMNS, groups.piece, traits)
    tasks = 1 if traits.threads == 1 else 2 * traits.threads
    image = conv.batch * conv.channels * conv.height * conv.width
    weights = conv.channels // conv.groups * conv.filters * conv.kernel[0] * conv.kernel[1]
    # What all tasks read in full should be the smaller; those of some groups copy all images.
    bands, splits = (1, tasks) if weights > image and conv.groups == 1 else (tasks, 1)
    bands = min(bands, ceil_div(width, tile.rows) if conv.pointwise else lines)
    splits = min(splits, ceil_div(conv.filters, tile.panel))
    return BytesPlan(tile.rows, tile.tiles, tile.vectors, bands, splits, splits > 1)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for a conv_integer that is neither narrow nor depthwise."""
    conv = bytes_conv(workload, traits)
    if conv is None or is_narrow(conv) or is_depthwise(conv):
        return ()
    default = plan_of(conv, traits)
    parts = 4 * traits.threads
    knobs = (
        Knob("pixels", tuple(range(4, MOST_ROWS + 1))),
        Knob("tiles", (1, 2, 3)),
        Knob("vectors", (1, 2, 3)),
        Knob("bands", tuple(range(1, parts + 1))),
        Knob("splits", tuple(range(1, parts + 1))),
        Knob("fetch", (0, 1)),
    )
    values = {knob.name: int(getattr(default, knob.name)) for knob in knobs}
    return (tunable(knobs, values, partial(_decided, workload, conv, traits)),)


def _decided(
    workload: Workload, conv: Conv, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel with these decisions."""
    plan = BytesPlan(
        values["pixels"],
        values["tiles"],
        values["vectors"],
        values["bands"],
        values["splits"],
        bool(values["fetch"]),
    )
    source, target = Layout(channel_block(conv.channels)), output_layout(workload, traits)
    groups = merging(conv)
    tile = TilePlan(plan.pixels, groups.piece, plan.tiles, plan.vectors)
    width = width_of(conv)
    parts = ceil_div(width, plan.pixels) if conv.pointwise else conv.out_height
    panels = ceil_div(conv.filters, tile.panel)
    if not tile.fits(traits) or plan.pixels > width or plan.bands > parts or plan.splits > panels:
        return None
    if not groups.fits(tile.panel):
        return None
    operands = operand_layouts(workload.epilogue, workload.output, target)
    steps = groups.pieces * conv.kernel[0] * conv.kernel[1]
    useful = share(tile, steps, traits) / (groups.merged if conv.groups > 1 else 1)
    return Candidate(
        name=f"conv_integer.{way(traits)}" + ("[grouped]" if conv.groups > 1 else ""),
        layouts=(source, ByteWeights(groups, tile.panel), *operands),
        output=target,
        cost=Cost(2.0 * conv.macs, traffic(workload), useful),
        compute=lambda: _Kernel(workload, conv, traits, plan).function(),
        schedule=as_written,
    )
