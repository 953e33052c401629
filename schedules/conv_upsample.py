"""Transposed convolution whose kernel equals its stride, for few filters, into a row-major layout.

Every output then belongs to exactly one input pixel, so it is a matrix product from channels to
(filter, row tap, column tap), followed by a shuffle into rows. With few filters the taps fill the
lanes that the filters alone would leave empty. Text detectors end so: one filter, kernel 2×2.

Numerics: a plain sum over the channels in order; the error against float64 is at most 5e-6 of the
largest output for up to 512 channels of standard-normal data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from schedules import nest
from schedules.conv_common import (
    Accumulators,
    Axis,
    Conv,
    RegisterTile,
    ceil_div,
    choose_tile,
    parse,
    traffic,
)
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
from schedules.nest import Stmt, as_written
from schedules.tile import by_vectors
from schedules.windows import Run, runs


@dataclass(frozen=True)
class UpsampleWeights:
    """Weights (I, O, KH, KW) as (I, O·KH·KW), padded with zeros to a multiple of `lanes`."""

    lanes: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Pack weights of logical shape (I, O, KH, KW)."""
        packed = np.zeros(self.packed_shape(array.shape), array.dtype)
        flat = array.reshape(array.shape[0], -1)
        packed[:, : flat.shape[1]] = flat
        return packed

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        outputs = shape[1] * shape[2] * shape[3]
        return (shape[0], ceil_div(outputs, self.lanes) * self.lanes)


def emit(workload: Workload, conv: Conv, traits: TargetTraits, tile: RegisterTile) -> PrimFunc:
    """The kernel, from the blocked to the row-major layout."""
    lanes, (kh, kw) = traits.lanes, conv.kernel
    kernel = Kernel(workload, Layout(lanes), UpsampleWeights(lanes), PLAIN)
    columns = Axis(conv.width, conv.width, 1, 1, 0, 1)

    def pixels(n: PrimExpr, row: PrimExpr, start: PrimExpr, width: int) -> Stmt:
        acc = Accumulators(width, tile.vectors, lanes)
        staged = nest.buffer((width, tile.vectors * lanes), "float32", "staged", "local")

        def block(ic: PrimExpr, inner: int) -> Stmt:
            return nest.serial(
                inner,
                lambda ii: acc.add(
                    lambda p, v, x: (
                        nest.read(kernel.image, n, ic, row, start + p, ii)
                        * nest.read(kernel.weights, ic * lanes + ii, v * lanes + x)
                    )
                ),
                "ii",
            )

        def line(o: PrimExpr, tap: PrimExpr) -> Stmt:
            def element(j: PrimExpr) -> Stmt:
                value = nest.read(staged, j // kw, (o * kh + tap) * kw + j % kw)
                return kernel.finish(value, (n, o, row * kh + tap, start * kw + j))

            return by_vectors(width * kw, lanes, element)

        return nest.sequence(
            nest.allocate(staged),
            acc.start(),
            over_channels(conv.channels, lanes, block),
            acc.each(lambda p, v, x: nest.write(staged, acc.value(p, v, x), p, v * lanes + x)),
            nest.serial(
                conv.filters, lambda o: nest.serial(kh, lambda tap: line(o, tap), "kh"), "o"
            ),
        )

    def task(n: PrimExpr, row: PrimExpr) -> Stmt:
        def tiles(run: Run) -> Stmt:
            return nest.serial(
                run.count, lambda t: pixels(n, row, run.start + t * run.width, run.width), "wt"
            )

        return nest.sequence(*map(tiles, runs(columns, tile.pixels)))

    return kernel.function(parallel_grid((conv.batch, conv.height), task))


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The matrix product for a conv2d_transpose with kernel = strides, no padding, few filters."""
    conv = parse(workload, "conv2d_transpose")
    if conv is None or conv.groups != 1 or not workload.op.constant[1]:
        return ()
    (kh, kw), lanes = conv.kernel, traits.lanes
    exact = (conv.height * kh, conv.width * kw) == (conv.out_height, conv.out_width)
    if conv.kernel != conv.strides or any(conv.padding) or not exact:
        return ()
    outputs = conv.filters * kh * kw
    vectors = ceil_div(outputs, lanes)
    if conv.filters >= lanes or vectors > 4 or conv.dilation != (1, 1):
        return ()
    # All vectors in one tile, so that a pixel's outputs are stored together.
    pixels = choose_tile(conv.width, 1, traits).pixels // vectors
    tile = RegisterTile(max(1, pixels), vectors)
    macs = conv.batch * conv.channels * conv.height * conv.width * outputs
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    return (
        Candidate(
            name="conv2d_transpose.pixels",
            layouts=(Layout(lanes), UpsampleWeights(lanes), *operands),
            output=PLAIN,
            cost=Cost(2.0 * macs, traffic(workload), 0.3 * outputs / (vectors * lanes)),
            compute=lambda: emit(workload, conv, traits, tile),
            schedule=as_written,
        ),
    )
