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

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules.conv_common import (
    Accumulators,
    Axis,
    Conv,
    RegisterTile,
    Run,
    ceil_div,
    choose_tile,
    horizontal,
    parse,
    runs,
    traffic,
    vertical,
)
from schedules import nest
from schedules.conv_loops import Kernel, over_channels, parallel_grid
from schedules.epilogue import operand_layouts
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Buffer, Stmt, as_written

_MAX_STATEMENTS = 3000
"""Unrolled multiply-adds in one kernel: above this, borders are tested instead of written out."""


@dataclass(frozen=True)
class DirectWeights:
    """Weights (O, I, KH, KW) as (O / (lanes·vectors), I, KH, KW, lanes·vectors), or with I in blocks.

    With `block` = 0 the reduction runs (I, KH, KW); otherwise (I / block, KH, KW, block): the order
    in which the kernel reads them. Both are padded with zeros.
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
        order = (0, 2, 4, 5, 3, 1) if self.block else (0, 2, 5, 4, 3, 1)
        return np.ascontiguousarray(split.transpose(order))


@dataclass(frozen=True)
class DirectPlan:
    """How a direct convolution is cut: the register tile and which operand stays in cache."""

    tile: RegisterTile
    weights_stay: bool  # loop over panels of filters outside, over rows inside


def weights_stay(conv: Conv, panels: int, tasks_per_panel: int, traits: TargetTraits) -> bool:
    """Whether each panel of weights should be used for all positions before the next one.

    Whichever operand is inside is read once per step of the outer loop: from L2 where it fits there
    (cheap), else from beyond (dear).
    """
    weights = 4 * conv.filters * conv.channels * conv.kernel[0] * conv.kernel[1]
    image = 4 * conv.batch * conv.channels * conv.height * conv.width
    budget = 0.6 * traits.l2_bytes

    def cost(moved: float, resident: float) -> float:
        return moved * (0.25 if resident < budget else 1.0)

    outside_weights = weights + cost(image * panels, image)
    outside_image = image + cost(weights * tasks_per_panel * conv.batch, weights)
    return outside_weights < outside_image


def plan(conv: Conv, traits: TargetTraits) -> DirectPlan:
    """The default cut for `conv`."""
    blocks = ceil_div(conv.filters, traits.lanes)
    tile = choose_tile(conv.out_width, blocks, traits)
    return DirectPlan(tile, weights_stay(conv, blocks // tile.vectors, conv.out_height, traits))


class _Direct:
    """Emits the tiles of one direct convolution."""

    def __init__(self, conv: Conv, traits: TargetTraits, cut: DirectPlan, kernel: Kernel) -> None:
        self.conv, self.cut, self.kernel = conv, cut, kernel
        self.lanes = traits.lanes
        self.rows, self.columns = vertical(conv), horizontal(conv)
        self.image: Buffer = kernel.image
        self.weights: Buffer = kernel.weights

    def taps(self, row: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
        """First vertical tap that reads inside at output `row`, and how many do."""
        axis = self.rows
        if axis.interior(0, axis.out):
            return 0, axis.kernel
        top = row * axis.stride
        first = (tirx.max(axis.before - top, 0) + axis.dilation - 1) // axis.dilation
        inside = tirx.max(axis.size + axis.before - top, 0)
        last = tirx.min((inside + axis.dilation - 1) // axis.dilation, axis.kernel)
        return first, tirx.max(last - first, 0)

    def tile(
        self, n: PrimExpr, panel: PrimExpr, row: PrimExpr, start: PrimExpr, run: Run, block: int
    ) -> Stmt:
        """One tile of a row, from output column `start`; borders as `run` says."""
        conv, lanes, vectors = self.conv, self.lanes, self.cut.tile.vectors
        acc = Accumulators(run.width, vectors, lanes)
        first, count = self.taps(row)

        def step(ic: PrimExpr, kh: PrimExpr, kw: int, ii: PrimExpr) -> Stmt | None:
            y = row * conv.strides[0] - conv.padding[0] + kh * conv.dilation[0]

            def term(p: PrimExpr, v: PrimExpr, x: PrimExpr) -> PrimExpr:
                column = (start + p) * conv.strides[1] - conv.padding[1] + kw * conv.dilation[1]
                pixel = nest.read(self.image, n, ic, y, column, *([ii] if block else []))
                taps = (kh, kw, ii) if block else (kw, kh, 0)
                return pixel * nest.read(self.weights, panel, ic, *taps, v * lanes + x)

            low, high = 0, run.width
            if not run.interior:
                low, high = self.columns.valid(run.start, run.width, kw)
            return acc.add(term, low, high) if low < high else None

        columns = [
            kw
            for kw in range(conv.kernel[1])
            if run.interior or self.columns.valid(run.start, run.width, kw) != (0, 0)
        ]

        def channels(ic: PrimExpr, inner: int) -> Stmt:
            if not block:
                # The loop over vertical taps inside keeps LLVM from holding the pixels that
                # neighbouring horizontal taps share in registers, which there are not.
                return nest.sequence(
                    *[
                        nest.serial(count, lambda kh, kw=kw: step(ic, first + kh, kw, 0), "kh")
                        for kw in columns
                    ]
                )
            return nest.serial(
                count,
                lambda kh: nest.sequence(
                    *[
                        nest.serial(inner, partial(step, ic, first + kh, kw), "ii")
                        for kw in columns
                    ]
                ),
                "kh",
            )

        def write(p: PrimExpr, v: PrimExpr, x: PrimExpr) -> Stmt:
            index = (n, panel * vectors + v, row, start + p, x)
            return self.kernel.finish(acc.value(p, v, x), index)

        return nest.sequence(acc.start(), over_channels(conv.channels, block, channels), acc.each(write))

    def row(self, n: PrimExpr, panel: PrimExpr, row: PrimExpr, block: int) -> Stmt:
        """All tiles of one output row."""

        def tiles(run: Run) -> Stmt:
            return nest.serial(
                run.count,
                lambda t: self.tile(n, panel, row, run.start + t * run.width, run, block),
                "wt",
            )

        return nest.sequence(*map(tiles, runs(self.columns, self.cut.tile.pixels)))


def emit(
    workload: Workload, conv: Conv, traits: TargetTraits, cut: DirectPlan, source: Layout
) -> PrimFunc:
    """The kernel that reads its input in layout `source`."""
    lanes, vectors = traits.lanes, cut.tile.vectors
    panels = ceil_div(conv.filters, lanes) // vectors
    block = source.block
    blocks = ceil_div(conv.channels, block or 1)
    taps = conv.kernel if block else conv.kernel[::-1]
    packed = (panels, blocks, *taps, block or 1, lanes * vectors)
    kernel = Kernel(workload, source, packed, Layout(lanes))
    direct = _Direct(conv, traits, cut, kernel)
    if cut.weights_stay:
        nest = parallel_grid(
            (conv.batch, panels, conv.out_height), lambda n, o, h: direct.row(n, o, h, block)
        )
    else:
        nest = parallel_grid(
            (conv.batch, conv.out_height, panels), lambda n, h, o: direct.row(n, o, h, block)
        )
    return kernel.function(nest)


def _statements(axis: Axis, tile: RegisterTile) -> int:
    return sum(run.width * tile.vectors * axis.kernel for run in runs(axis, tile.pixels))


def efficiency(conv: Conv, cut: DirectPlan, traits: TargetTraits) -> float:
    """Share of peak measured for kernels of this shape."""
    return 0.85


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Direct convolutions for a conv2d with one group; the input blocked, or row-major if narrow."""
    conv = parse(workload)
    if conv is None or conv.groups != 1 or conv.pointwise or not workload.op.constant[1]:
        return ()
    lanes = traits.lanes
    cut = plan(conv, traits)
    if _statements(horizontal(conv), cut.tile) > _MAX_STATEMENTS:
        return ()
    sources = [Layout(lanes)] if conv.channels > 4 else []
    if conv.channels < 2 * lanes:
        sources.append(PLAIN)
    cost = Cost(2.0 * conv.macs, traffic(workload), efficiency(conv, cut, traits))
    operands = operand_layouts(workload.epilogue, workload.output, Layout(lanes))
    return tuple(
        Candidate(
            name=f"conv2d.direct[{'blocked' if source.block else 'plain'}]",
            layouts=(
                source,
                DirectWeights(lanes * cut.tile.vectors, source.block),
                *operands,
            ),
            output=Layout(lanes),
            cost=cost,
            compute=lambda source=source: emit(workload, conv, traits, cut, source),  # type: ignore[misc]
            schedule=as_written,
        )
        for source in sources
    )
