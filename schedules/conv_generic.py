"""Transposed convolutions of every kind in row-major layouts: the family that leaves none out.

A task computes one row of one filter in a scratch row: for each weight, it adds the weight times a
row of the input over exactly the columns where that tap reads inside, phase by phase (see
conv_transposed). The weights may be computed at run time. LLVM vectorises the loop over columns.

Numerics: products are summed in the order (channel, row tap, column tap); the error against float64
is at most 1e-5 of the largest output for up to 4608 terms of standard-normal data.
"""

from __future__ import annotations

from tvm import tirx

from schedules import nest
from schedules.conv_common import Axis, Conv, parse, traffic
from schedules.conv_loops import Kernel, parallel_grid
from schedules.conv_transposed import phases
from schedules.epilogue import operand_layouts
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Stmt, as_written
from schedules.tile import by_vectors


def emit(workload: Workload, conv: Conv, traits: TargetTraits) -> PrimFunc:
    """The kernel, from and to row-major layouts, weights as in the model."""
    kernel = Kernel(workload, PLAIN, PLAIN, PLAIN)
    rows, columns = phases(conv, 0), phases(conv, 1)
    channels, filters = conv.channels // conv.groups, conv.filters // conv.groups
    scope = "local" if 4 * conv.out_width <= 16 << 10 else "global"

    def task(n: PrimExpr, o: PrimExpr, row: PrimExpr) -> Stmt:
        def output_row(vertical: Axis) -> Stmt | None:
            sums = nest.buffer((conv.out_width,), "float32", "sums", scope)
            first, count = vertical.inside(row)

            def channel(j: PrimExpr) -> Stmt:
                c = o // filters * channels + j
                return nest.serial(count, lambda kh: taps(c, first + kh), "kh")

            def taps(c: PrimExpr, kh: PrimExpr) -> Stmt:
                y = vertical.source(row, kh)
                return nest.sequence(
                    *[
                        tap(c, kh, y, horizontal, kw)
                        for horizontal in columns
                        for kw in range(horizontal.taps)
                    ],
                    tirx.Evaluate(0),
                )

            def tap(
                c: PrimExpr, kh: PrimExpr, y: PrimExpr, horizontal: Axis, kw: int
            ) -> Stmt | None:
                low, high = horizontal.valid(0, horizontal.out, kw)
                if low == high:
                    return None
                where = (vertical.weight(kh), horizontal.weight(kw))

                def add(i: PrimExpr) -> Stmt:
                    x = low + i
                    place = horizontal.place(x)
                    term = nest.read(kernel.image, n, c, y, horizontal.source(x, kw))
                    term = term * nest.read(kernel.weights, c, o % filters, *where)
                    return nest.write(sums, nest.read(sums, place) + term, place)

                return nest.serial(high - low, add, "x")

            place = vertical.place(row)
            zero = tirx.const(0.0, "float32")
            body = nest.sequence(
                nest.allocate(sums),
                by_vectors(conv.out_width, traits.lanes, lambda x: nest.write(sums, zero, x)),
                nest.serial(channels, channel, "ic"),
                by_vectors(
                    conv.out_width,
                    traits.lanes,
                    lambda x: kernel.finish(nest.read(sums, x), (n, o, place, x)),
                ),
            )
            return nest.branch(row < vertical.out if vertical.out < rows[0].out else True, body)

        return nest.sequence(*map(output_row, rows))

    return kernel.function(parallel_grid((conv.batch, conv.filters, rows[0].out), task))


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The row-major kernel for any float32 conv2d_transpose."""
    conv = parse(workload, "conv2d_transpose")
    if conv is None:
        return ()
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    flops = 2.0 * conv.macs / (conv.strides[0] * conv.strides[1])
    share = 0.08 if conv.strides == (1, 1) else 0.03
    return (
        Candidate(
            name="conv2d_transpose.rows",
            layouts=(PLAIN, PLAIN, *operands),
            output=PLAIN,
            cost=Cost(flops, traffic(workload), share),
            compute=lambda: emit(workload, conv, traits),
            schedule=as_written,
        ),
    )
