"""Depthwise convolution (groups = C = O) in a blocked layout, without a padded copy of the input.

Vectors run over channels; a register tile is `pixels` neighbouring outputs of one row of one
channel block. Few operations meet each byte, so the input is read once, in place: rows outside are
skipped by the bounds of the loop over taps, tiles at the left and right border are emitted for the
taps that they have. A worker takes consecutive rows of one channel block: the input rows that they
share stay in L1.

Numerics: KH·KW products in order; the error against float64 is at most 2e-6 of the largest output
for up to 49 taps of standard-normal data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.conv_common import (
    Accumulators,
    Axis,
    Conv,
    axes,
    ceil_div,
    parse,
    traffic,
)
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
from schedules.space import tunable
from schedules.windows import Run, runs


@dataclass(frozen=True)
class DepthwiseWeights:
    """Weights (C, 1, KH, KW) as (C / block, KH, KW, block), padded with zeros."""

    block: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Pack weights of logical shape (C, 1, KH, KW)."""
        channels, _, kh, kw = array.shape
        blocks = ceil_div(channels, self.block)
        padded = np.zeros((blocks * self.block, kh, kw), array.dtype)
        padded[:channels] = array[:, 0]
        split = padded.reshape(blocks, self.block, kh, kw)
        return np.ascontiguousarray(split.transpose(0, 2, 3, 1))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        return (ceil_div(shape[0], self.block), *shape[2:], self.block)


def choose_pixels(columns: Axis, traits: TargetTraits) -> int:
    """Outputs per register tile: equal tiles of the row, half the registers at most."""
    most = traits.vector_registers // 2
    return ceil_div(columns.out, ceil_div(columns.out, most))


def emit(workload: Workload, conv: Conv, traits: TargetTraits, pixels: int) -> PrimFunc:
    """The kernel, from and to the blocked layout."""
    lanes = traits.lanes
    blocks = ceil_div(conv.channels, lanes)
    kernel = Kernel(workload, Layout(lanes), DepthwiseWeights(lanes), Layout(lanes))
    rows, columns = axes(conv)

    def tile(n: PrimExpr, c: PrimExpr, row: PrimExpr, start: PrimExpr, run: Run) -> Stmt:
        acc = Accumulators(run.width, 1, lanes)
        first, count = rows.inside(row)

        def tap(kh: PrimExpr, kw: int) -> Stmt | None:
            low, high = (0, run.width) if run.interior else columns.valid(run.start, run.width, kw)
            if low == high:
                return None
            y = rows.source(row, kh)
            return acc.add(
                lambda p, v, x: (
                    nest.read(kernel.image, n, c, y, columns.source(start + p, kw), x)
                    * nest.read(kernel.weights, c, kh, kw, x)
                ),
                low,
                high,
            )

        def line(kh: PrimExpr) -> Stmt:
            taps = [tap(first + kh, kw) for kw in range(columns.taps)]
            return nest.sequence(*taps, tirx.Evaluate(0))

        def write(p: PrimExpr, v: PrimExpr, x: PrimExpr) -> Stmt:
            return kernel.finish(acc.value(p, v, x), (n, c, row, start + p, x))

        reduction = nest.serial(count, line, "kh")
        return nest.sequence(acc.start(), reduction, acc.each(write))

    def task(n: PrimExpr, c: PrimExpr, row: PrimExpr) -> Stmt:
        def tiles(run: Run) -> Stmt:
            return nest.serial(
                run.count, lambda t: tile(n, c, row, run.start + t * run.width, run), "wt"
            )

        return nest.sequence(*map(tiles, runs(columns, pixels)))

    return kernel.function(parallel_grid((conv.batch, blocks, conv.out_height), task))


_MAX_STATEMENTS = 2500


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The depthwise kernel for a conv2d with as many groups as input and output channels."""
    conv = parse(workload)
    if conv is None or not conv.groups == conv.channels == conv.filters:
        return ()
    if not workload.op.constant[1]:
        return ()
    columns = axes(conv)[1]
    default = choose_pixels(columns, traits)
    if _is_long(columns, default):
        return ()
    knob = Knob("pixels", tuple(range(1, min(columns.out, traits.vector_registers - 2) + 1)))
    make = partial(_decided, workload, conv, traits)
    return (tunable([knob], {"pixels": default}, make),)


def _is_long(columns: Axis, pixels: int) -> bool:
    """Whether the code for tiles of so many pixels takes long to compile."""
    return sum(run.width * columns.taps for run in runs(columns, pixels)) > _MAX_STATEMENTS


def _decided(
    workload: Workload, conv: Conv, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The depthwise kernel with these decisions."""
    pixels = values["pixels"]
    if _is_long(axes(conv)[1], pixels):
        return None
    layout = Layout(traits.lanes)
    taps = conv.kernel[0] * conv.kernel[1]
    operands = operand_layouts(workload.epilogue, workload.output, layout)
    return Candidate(
        name="conv2d.depthwise",
        layouts=(layout, DepthwiseWeights(traits.lanes), *operands),
        output=layout,
        cost=Cost(2.0 * conv.macs, traffic(workload), 0.65 * taps / (taps + 10)),
        compute=lambda: emit(workload, conv, traits, pixels),
        schedule=as_written,
    )
