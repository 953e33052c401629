"""Grouped convolution whose groups are narrower than a vector, as many filters in each as channels.

A vector of filters then reads the channels of the same vector of the image: each lane those of its
own group. So the image's vector is loaded once, and for each channel of a group a shuffle gives
every lane that channel of its group; a register tile of `pixels` neighbouring outputs of one row
stays in registers meanwhile. Rows outside the image are skipped by the bounds of the loop over
taps, tiles at the left and right border are emitted for the taps that they have. No channel is ever
multiplied by the zero of another group.

Numerics: products are summed in the order (row tap, channel, column); the error against float64 is
at most 5e-6 of the largest output for up to 288 terms of standard-normal data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.conv_common import Conv, axes, ceil_div, parse, traffic
from schedules.conv_depthwise import choose_pixels
from schedules.conv_grouped import GatheredWeights
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

_MAX_STATEMENTS = 4000
"""Unrolled multiply-adds in one kernel: above this, it would take seconds to compile."""


def emit(workload: Workload, conv: Conv, traits: TargetTraits, pixels: int) -> PrimFunc:
    """The kernel, from and to the blocked layout."""
    lanes = traits.lanes
    kernel = Kernel(workload, Layout(lanes), GatheredWeights(lanes), Layout(lanes))
    rows, columns = axes(conv)
    each = conv.channels // conv.groups
    vector = tirx.Ramp(nest.integer(0), nest.integer(1), lanes)

    def spread(value: PrimExpr, channel: int) -> PrimExpr:
        """Channel `channel` of its group in every lane."""
        order = [nest.integer(lane // each * each + channel) for lane in range(lanes)]
        return tirx.Shuffle([value], order)

    def readers(run: Run) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """The columns that a tile reads, from that of its first output and tap on, each with the
        (output, tap) pairs that read it."""
        found: dict[int, list[tuple[int, int]]] = {}
        for tap in range(columns.taps):
            low, high = (0, run.width) if run.interior else columns.valid(run.start, run.width, tap)
            for p in range(low, high):
                found.setdefault(p * columns.stride + tap * columns.dilation, []).append((p, tap))
        yield from sorted(found.items())

    def tile(n: PrimExpr, block: PrimExpr, row: PrimExpr, start: PrimExpr, run: Run) -> Stmt:
        sums = nest.buffer((run.width, lanes), "float32", "sums", "local")
        first, count = rows.inside(row)

        def line(kh: PrimExpr) -> Stmt:
            y, left = rows.source(row, kh), columns.source(start, 0)
            statements = []
            for channel in range(each):
                for column, pairs in readers(run):
                    image = nest.read(kernel.image, n, block, y, left + column, vector)
                    value = tirx.Var("spread", f"float32x{lanes}")
                    statements.append(tirx.Bind(value, spread(image, channel)))
                    for p, kw in pairs:
                        weight = nest.read(kernel.weights, block, channel, kh, kw, vector)
                        total = nest.read(sums, p, vector) + value * weight
                        statements.append(nest.write(sums, total, p, vector))
            return nest.sequence(*statements, tirx.Evaluate(0))

        zero = tirx.const(0.0, "float32")
        clear = nest.unrolled(
            run.width, lambda p: nest.vectorized(lanes, lambda x: nest.write(sums, zero, p, x))
        )
        write = nest.unrolled(
            run.width,
            lambda p: nest.vectorized(
                lanes,
                lambda x: kernel.finish(nest.read(sums, p, x), (n, block, row, start + p, x)),
            ),
        )
        reduction = nest.serial(count, lambda kh: line(first + kh), "kh")
        return nest.sequence(nest.allocate(sums), clear, reduction, write)

    def task(n: PrimExpr, block: PrimExpr, row: PrimExpr) -> Stmt:
        def tiles(run: Run) -> Stmt:
            return nest.serial(
                run.count, lambda t: tile(n, block, row, run.start + t * run.width, run), "wt"
            )

        return nest.sequence(*map(tiles, runs(columns, pixels)))

    blocks = ceil_div(conv.filters, lanes)
    return kernel.function(parallel_grid((conv.batch, blocks, conv.out_height), task))


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for a conv2d whose groups divide a vector, with as many filters as channels."""
    conv = parse(workload)
    if conv is None or conv.channels != conv.filters or not workload.op.constant[1]:
        return ()
    each = conv.channels // conv.groups
    if each == 1 or each >= traits.lanes or traits.lanes % each:
        return ()
    default = choose_pixels(axes(conv)[1], traits)
    if _is_long(conv, default):
        return ()
    most = min(conv.out_width, traits.vector_registers - 4)
    knob = Knob("pixels", tuple(range(1, max(most, 1) + 1)))
    make = partial(_decided, workload, conv, traits)
    return (tunable([knob], {"pixels": default}, make),)


def _is_long(conv: Conv, pixels: int) -> bool:
    """Whether the code for tiles of so many pixels takes long to compile."""
    columns = axes(conv)[1]
    code = sum(run.width * columns.taps for run in runs(columns, pixels))
    return code * (conv.channels // conv.groups) > _MAX_STATEMENTS


def _decided(
    workload: Workload, conv: Conv, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel with these decisions."""
    pixels = values["pixels"]
    if _is_long(conv, pixels):
        return None
    layout = Layout(traits.lanes)
    # One shuffle, on a port that multiplies as well, for as many multiply-adds.
    shared = max(1.0, conv.kernel[1] / conv.strides[1])
    fill = conv.filters / (ceil_div(conv.filters, traits.lanes) * traits.lanes)
    share = 0.8 * fill * shared / (shared + 1)
    operands = operand_layouts(workload.epilogue, workload.output, layout)
    return Candidate(
        name="conv2d.grouped[narrow]",
        layouts=(layout, GatheredWeights(traits.lanes), *operands),
        output=layout,
        cost=Cost(2.0 * conv.macs, traffic(workload), share),
        compute=lambda: emit(workload, conv, traits, pixels),
        schedule=as_written,
    )
