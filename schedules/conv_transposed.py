"""Transposed convolution in blocked layouts, split into phases that multiply no inserted zeros.

Outputs whose coordinates are equal modulo the strides use the same taps: each such phase is an
ordinary convolution of stride 1 with a part of the kernel, whose outputs are `stride` apart (the
sub-pixel view of Shi et al., arXiv:1609.07009). The tiles are those of conv_direct_tiles.

Numerics: as conv_direct.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from schedules import nest
from schedules.conv_common import (
    Axis,
    Conv,
    RegisterTile,
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
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Stmt, as_written


@dataclass(frozen=True)
class TransposedWeights:
    """Weights (I, O, KH, KW) packed as DirectWeights of (O, I, KH, KW)."""

    panel: int
    block: int

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of packed weights of logical `shape` (I, O, KH, KW)."""
        return DirectWeights(self.panel, self.block).packed_shape((shape[1], shape[0], *shape[2:]))

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Pack weights of logical shape (I, O, KH, KW)."""
        return DirectWeights(self.panel, self.block).pack(array.swapaxes(0, 1))


def phases(conv: Conv, axis: int) -> tuple[Axis, ...]:
    """The phases of one spatial axis: one per residue of the output coordinate that occurs."""
    size, out = (conv.height, conv.out_height) if axis == 0 else (conv.width, conv.out_width)
    kernel, stride, before = conv.kernel[axis], conv.strides[axis], conv.padding[axis]
    dilation = conv.dilation[axis]
    result = []
    for first in range(min(stride, out)):
        count = ceil_div(out - first, stride)
        taps = [k for k in range(kernel) if (first + before - k * dilation) % stride == 0]
        if not taps:
            result.append(Axis(size, count, 0, 1, 0, 1, first, stride))
            continue
        step = stride // gcd(stride, dilation)
        # The last tap reads the first input position, so taps run backwards.
        start = (first + before - taps[-1] * dilation) // stride
        result.append(
            Axis(
                size,
                count,
                len(taps),
                1,
                -start,
                step * dilation // stride,
                first,
                stride,
                taps[-1],
                -step,
            )
        )
    return tuple(result)


def emit(workload: Workload, conv: Conv, traits: TargetTraits, tile: RegisterTile) -> PrimFunc:
    """The kernel, from and to the blocked layout."""
    lanes = traits.lanes
    panels = ceil_div(conv.filters, lanes) // tile.vectors
    packing = TransposedWeights(lanes * tile.vectors, lanes)
    kernel = Kernel(workload, Layout(lanes), packing, Layout(lanes))
    rows, columns = phases(conv, 0), phases(conv, 1)

    def task(n: PrimExpr, panel: PrimExpr, row: PrimExpr) -> Stmt:
        def phase(vertical: Axis) -> Stmt | None:
            tiles = nest.sequence(
                *[
                    DirectTiles(
                        kernel, vertical, horizontal, tile, lanes, lanes, conv.channels
                    ).row(n, panel, row, row)
                    for horizontal in columns
                ]
            )
            return nest.branch(row < vertical.out if vertical.out < rows[0].out else True, tiles)

        return nest.sequence(*map(phase, rows))

    return kernel.function(parallel_grid((conv.batch, panels, rows[0].out), task))


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The phase convolutions for a conv2d_transpose with one group."""
    conv = parse(workload, "conv2d_transpose")
    if conv is None or conv.groups != 1 or not workload.op.constant[1]:
        return ()
    lanes = traits.lanes
    columns = phases(conv, 1)
    tile = choose_tile(columns[0].out, ceil_div(conv.filters, lanes), traits)
    copies = len(phases(conv, 0)) if len(phases(conv, 0)) * len(columns) <= 16 else 10**6
    if any(too_many_statements(axis, tile, copies * len(columns)) for axis in columns):
        return ()
    layout = Layout(lanes)
    operands = operand_layouts(workload.epilogue, workload.output, layout)
    macs = conv.batch * conv.channels * conv.height * conv.width
    macs *= conv.filters * conv.kernel[0] * conv.kernel[1]
    terms = conv.channels * max(axis.taps for axis in columns)
    share = modelled_share(tile, columns[0].out, conv.filters, terms, traits)
    return (
        Candidate(
            name="conv2d_transpose.phases",
            layouts=(layout, TransposedWeights(lanes * tile.vectors, lanes), *operands),
            output=layout,
            cost=Cost(2.0 * macs, traffic(workload), share),
            compute=lambda: emit(workload, conv, traits, tile),
            schedule=as_written,
        ),
    )
