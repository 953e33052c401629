"""Grouped convolution in blocked layouts: any number of groups and any channel multiplier.

Where each group has whole vectors of filters, it is the direct convolution with the input channels
of the group. Otherwise one vector of filters spans groups whose inputs differ: a task first
gathers, for a band of rows, the input that each lane needs into zero-padded scratch that stays in
L2, and then multiplies vectors by vectors. No channel is ever multiplied by the zero of another
group, so that groups stay independent even for infinities.

Numerics: products are summed in the order (channel, row tap, column tap) at most blocked by lanes;
the error against float64 is at most 5e-6 of the largest output for up to 1152 terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules import conv_depthwise, nest
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
from schedules.conv_direct_tiles import DirectTiles, DirectWeights, too_many_statements
from schedules.conv_loops import Kernel, parallel_grid
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
)
from schedules.nest import Stmt, as_written
from schedules.space import divisors, tunable
from schedules.windows import Run, runs


def emit_whole(
    workload: Workload, conv: Conv, traits: TargetTraits, tile: RegisterTile
) -> PrimFunc:
    """The kernel for groups of whole vectors of filters."""
    lanes = traits.lanes
    panels = ceil_div(conv.filters, lanes) // tile.vectors
    channels, filters = conv.channels // conv.groups, conv.filters // conv.groups
    packing = DirectWeights(lanes * tile.vectors, lanes)
    kernel = Kernel(workload, Layout(lanes), packing, Layout(lanes))
    per_group = filters // (lanes * tile.vectors)
    direct = DirectTiles(
        kernel,
        *axes(conv),
        tile,
        lanes,
        lanes,
        channels,
        lambda panel: panel // per_group * channels,
    )
    return kernel.function(parallel_grid((conv.batch, panels, conv.out_height), direct.band))


@dataclass(frozen=True)
class GatheredWeights:
    """Weights (O, I/groups, KH, KW) as (O / block, I/groups, KH, KW, block), padded with zeros."""

    block: int

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of packed weights of logical `shape` (O, I/groups, KH, KW)."""
        return (ceil_div(shape[0], self.block), *shape[1:], self.block)

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Pack weights of logical shape (O, I/groups, KH, KW)."""
        filters = array.shape[0]
        blocks = ceil_div(filters, self.block)
        padded = np.zeros((blocks * self.block, *array.shape[1:]), array.dtype)
        padded[:filters] = array
        split = padded.reshape(blocks, self.block, *array.shape[1:])
        return np.ascontiguousarray(np.moveaxis(split, 1, -1))


class _Gathered:
    """Emits the kernel for groups that share vectors of filters."""

    def __init__(self, workload: Workload, conv: Conv, traits: TargetTraits) -> None:
        self.conv, self.lanes = conv, traits.lanes
        self.channels = conv.channels // conv.groups
        self.depthwise = conv.groups == conv.channels == conv.filters
        self.blocks = ceil_div(conv.filters, self.lanes)
        packing = GatheredWeights(self.lanes)
        self.kernel = Kernel(workload, Layout(self.lanes), packing, Layout(self.lanes))
        self.rows, columns = axes(conv)
        self.left, self.width = columns.before, columns.size
        reach = columns.source(columns.out - 1, columns.taps - 1) + columns.before + 1
        # The scratch has its zeros around it: all its columns are inside.
        self.columns = Axis(reach, columns.out, columns.taps, columns.stride, 0, columns.dilation)
        self.pixels = conv_depthwise.choose_pixels(self.columns, traits)
        row_bytes = 4 * self.channels * reach * self.lanes
        rows = max(1, traits.l2_bytes // 4 // row_bytes - self.rows.dilation * self.rows.taps)
        self.band = max(1, min(conv.out_height, rows // self.rows.stride))
        depth = (self.band - 1) * self.rows.stride + (self.rows.taps - 1) * self.rows.dilation + 1
        self.scratch = nest.buffer((self.channels, depth, reach, self.lanes), "float32", "gathered")
        self.depth = depth

    def gather(self, n: PrimExpr, block: PrimExpr, first: PrimExpr) -> Stmt:
        """Fill the scratch with the input rows of the band that starts at output row `first`."""
        conv, lanes, reach = self.conv, self.lanes, self.columns.size
        zero = tirx.const(0.0, "float32")
        per_group = conv.filters // conv.groups
        low, high = min(self.left, reach), min(self.left + self.width, reach)

        def row(j: PrimExpr, r: PrimExpr) -> Stmt:
            y = first * self.rows.stride - self.rows.before + r

            def clear(start: int, count: int) -> Stmt | None:
                if count <= 0:
                    return None
                return nest.serial(
                    count,
                    lambda i: nest.vectorized(
                        lanes, lambda x: nest.write(self.scratch, zero, j, r, start + i, x)
                    ),
                )

            def copy(i: PrimExpr, x: PrimExpr) -> Stmt:
                filter_ = tirx.min(block * lanes + x, conv.filters - 1)
                channel = filter_ // per_group * self.channels + j
                value = nest.read(
                    self.kernel.image, n, channel // lanes, y, low - self.left + i, channel % lanes
                )
                return nest.write(self.scratch, value, j, r, low + i, x)

            def pixel(i: PrimExpr) -> Stmt:
                if not self.depthwise:
                    return nest.serial(lanes, lambda x: copy(i, x), "x")
                where = (n, block, y, low - self.left + i)
                return nest.vectorized(
                    lanes,
                    lambda x: nest.write(
                        self.scratch, nest.read(self.kernel.image, *where, x), j, r, low + i, x
                    ),
                )

            inside = nest.sequence(
                clear(0, low),
                nest.serial(high - low, pixel),
                clear(high, reach - high),
            )
            return tirx.IfThenElse(tirx.all(y >= 0, y < conv.height), inside, clear(0, reach))

        return nest.serial(
            self.channels, lambda j: nest.serial(self.depth, lambda r: row(j, r), "r"), "j"
        )

    def tile(
        self, n: PrimExpr, block: PrimExpr, first: PrimExpr, i: PrimExpr, start: PrimExpr, run: Run
    ) -> Stmt:
        """One register tile of row `i` of the band."""
        acc = Accumulators(run.width, 1, self.lanes)

        def tap(j: PrimExpr, kh: PrimExpr, kw: PrimExpr) -> Stmt:
            depth = i * self.rows.stride + kh * self.rows.dilation
            return acc.add(
                lambda p, v, x: (
                    nest.read(self.scratch, j, depth, self.columns.source(start + p, kw), x)
                    * nest.read(self.kernel.weights, block, j, kh, kw, x)
                )
            )

        reduce = nest.serial(
            self.channels,
            lambda j: nest.serial(
                self.rows.taps,
                lambda kh: nest.serial(self.columns.taps, lambda kw: tap(j, kh, kw), "kw"),
                "kh",
            ),
            "j",
        )
        write = acc.each(
            lambda p, v, x: self.kernel.finish(
                acc.value(p, v, x), (n, block, first + i, start + p, x)
            )
        )
        return nest.sequence(acc.start(), reduce, write)

    def task(self, n: PrimExpr, block: PrimExpr, band: PrimExpr) -> Stmt:
        """One band of rows of one vector of filters."""
        first = band * self.band
        rows = tirx.min(self.band, self.conv.out_height - first)
        if self.conv.out_height % self.band == 0:
            rows = self.band

        def row(i: PrimExpr) -> Stmt:
            def tiles(run: Run) -> Stmt:
                return nest.serial(
                    run.count,
                    lambda t: self.tile(n, block, first, i, run.start + t * run.width, run),
                    "wt",
                )

            return nest.sequence(*map(tiles, runs(self.columns, self.pixels)))

        return nest.sequence(
            nest.allocate(self.scratch),
            self.gather(n, block, first),
            nest.serial(rows, row, "row"),
        )

    def function(self) -> PrimFunc:
        """The kernel."""
        bands = ceil_div(self.conv.out_height, self.band)
        grid = parallel_grid((self.conv.batch, self.blocks, bands), self.task)
        return self.kernel.function(grid)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The blocked kernel for a conv2d with several groups."""
    conv = parse(workload)
    if conv is None or conv.groups == 1 or not workload.op.constant[1]:
        return ()
    if conv_depthwise.candidates(workload, traits):
        return ()
    lanes = traits.lanes
    layout = Layout(lanes)
    operands = operand_layouts(workload.epilogue, workload.output, layout)
    filters = conv.filters // conv.groups
    flops, moved = 2.0 * conv.macs, traffic(workload)
    if filters % lanes == 0:
        tile = choose_tile(conv.out_width, filters // lanes, traits)
        if too_many_statements(axes(conv)[1], tile):
            return ()
        knobs = (
            Knob("pixels", tuple(range(1, min(conv.out_width, traits.vector_registers) + 1))),
            Knob("vectors", divisors(filters // lanes, 8)),
        )
        values = {"pixels": tile.pixels, "vectors": tile.vectors}
        return (tunable(knobs, values, partial(_decided, workload, conv, traits)),)
    return (
        Candidate(
            name="conv2d.grouped[gathered]",
            layouts=(layout, GatheredWeights(lanes), *operands),
            output=layout,
            cost=Cost(flops, moved, 0.15),
            compute=lambda: _Gathered(workload, conv, traits).function(),
            schedule=as_written,
        ),
    )


def _decided(
    workload: Workload, conv: Conv, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel for groups of whole vectors of filters, with these decisions."""
    tile = RegisterTile(values["pixels"], values["vectors"])
    if not tile.fits(traits):
        return None
    if too_many_statements(axes(conv)[1], tile):
        return None
    layout = Layout(traits.lanes)
    terms = conv.channels // conv.groups * conv.kernel[0] * conv.kernel[1]
    filters = conv.filters // conv.groups
    share = modelled_share(tile, conv.out_width, filters, terms, traits)
    operands = operand_layouts(workload.epilogue, workload.output, layout)
    return Candidate(
        name="conv2d.grouped",
        layouts=(layout, DirectWeights(traits.lanes * tile.vectors, traits.lanes), *operands),
        output=layout,
        cost=Cost(2.0 * conv.macs, traffic(workload), share),
        compute=lambda: emit_whole(workload, conv, traits, tile),
        schedule=as_written,
    )
