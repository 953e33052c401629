"""Convolution of any kind in row-major layouts, with vectors along the rows of the output.

The family that leaves no convolution uncovered, and the best one where vectors of filters would be
mostly empty (one filter, eight filters) or filters are long (hundreds of taps, as in audio).

First the rows of the input are copied with zeros around them, and cut by the phases of the stride,
so that neighbouring outputs read neighbouring values whatever the stride is; where they do already
and nothing is outside, the input is read in place. Then a register tile
of some filters × some vectors of outputs runs over channels and taps in loops: each step loads a
vector of inputs at an offset that grows with the tap, and multiplies it with one weight of each
filter, broadcast. Nothing is unrolled over taps, so code stays small for the longest filters. The
weights are read as the model has them and may be computed at run time.

Numerics: products are summed in the order (channel, row tap, phase, column tap); the error against
float64 is at most 1e-5 of the largest output for up to 4608 terms of standard-normal data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import gcd

from tvm import tirx

from schedules import nest
from schedules.conv_common import Axis, Conv, PerLane, axes, ceil_div, parse, traffic
from schedules.conv_loops import Kernel, parallel_grid
from schedules.epilogue import operand_layouts
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Knob,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Split, Stmt, as_written
from schedules.space import tunable


@dataclass(frozen=True)
class Phases:
    """How taps along a row fall on the phases of the stride.

    Tap kw = a·period + b reads input x·stride − before + kw·dilation for output x, which is element
    x + a·step + offset(b) of the line of phase b. `count` phases are read at all.
    """

    columns: Axis

    @property
    def period(self) -> int:
        return self.columns.stride // gcd(self.columns.stride, self.columns.dilation)

    @property
    def step(self) -> int:
        return self.period * self.columns.dilation // self.columns.stride

    @property
    def count(self) -> int:
        return min(self.period, self.columns.taps)

    def offset(self, b: PrimExpr) -> PrimExpr:
        return b * self.columns.dilation // self.columns.stride

    def source(self, b: PrimExpr, element: PrimExpr) -> PrimExpr:
        """The input position of an element of the line of phase b, inside or not."""
        first = tirx.floormod(b * self.columns.dilation, self.columns.stride)
        return element * self.columns.stride + first - self.columns.before

    def taps(self, b: PrimExpr) -> PrimExpr:
        """How many taps phase b has."""
        return (self.columns.taps - b + self.period - 1) // self.period

    @property
    def length(self) -> int:
        """Elements of a line: up to what the last output reads with the last tap."""
        return (
            self.columns.out
            + (self.columns.taps - 1) * self.columns.dilation // self.columns.stride
        )

    @property
    def in_place(self) -> bool:
        """Whether a row of the input is the line of the only phase."""
        return self.columns.stride == 1 and self.columns.interior(0, self.columns.out)


@dataclass(frozen=True)
class LinesPlan:
    """The register tile: `filters` × `vectors` of neighbouring outputs of a row."""

    filters: int
    vectors: int


def plan(conv: Conv, traits: TargetTraits) -> LinesPlan:
    """The default cut for `conv`: the tile with the least modelled time."""
    tiles = [
        LinesPlan(filters, vectors)
        for vectors in range(1, 9)
        for filters in range(1, conv.filters // conv.groups + 1)
        if (filters + 1) * vectors + 1 <= traits.vector_registers
    ]
    return min(tiles, key=lambda tile: _time(conv, traits, tile))


def _time(conv: Conv, traits: TargetTraits, tile: LinesPlan) -> float:
    """Modelled cycles for one output row of a group's filters, per channel and tap.

    Two multiply-adds and two loads per cycle; most vectors of inputs straddle two cache lines and
    count twice.
    """

    def step(vectors: int) -> float:
        loads = tile.filters + 2 * vectors
        return max(tile.filters * vectors / 2, loads / 2, 4.0) + 1.0

    whole, rest = divmod(ceil_div(conv.out_width, traits.lanes), tile.vectors)
    row = whole * step(tile.vectors) + (step(rest) if rest else 0.0)
    return row * ceil_div(conv.filters // conv.groups, tile.filters)


def emit(workload: Workload, conv: Conv, traits: TargetTraits, tile: LinesPlan) -> PrimFunc:
    """The kernel, from and to row-major layouts, weights as in the model."""
    kernel = Kernel(workload, PLAIN, PLAIN, PLAIN)
    lanes = traits.lanes
    # The pixels of an image are one long row for a 1×1 filter.
    image = (conv.height, conv.width)
    if conv.pointwise:
        size = conv.height * conv.width
        conv = replace(conv, height=1, width=size, out_height=1, out_width=size)
    rows, columns = axes(conv)
    phases = Phases(columns)
    lines = Lines(kernel, conv, phases)
    channels, filters = conv.channels // conv.groups, conv.filters // conv.groups
    blocks = Split.of(filters, tile.filters)
    width = tile.vectors * lanes
    whole, rest = divmod(conv.out_width, width)

    def block(
        n: PrimExpr,
        row: PrimExpr,
        group: PrimExpr,
        first: PrimExpr,
        count: int,
        x: PrimExpr,
        outputs: int,
    ) -> Stmt:
        sums = nest.buffer((count, ceil_div(outputs, lanes), lanes), "float32", "sums", "local")
        base = group * filters + first
        kh_first, kh_count = rows.inside(row)

        def each(body: PerLane) -> Stmt:
            # No loop over vectors: the sums live in registers, which have no index.
            parts = [(v, min(lanes, outputs - v * lanes)) for v in range(ceil_div(outputs, lanes))]
            return nest.unrolled(
                count,
                lambda p: nest.sequence(
                    *[nest.vectorized(n, partial(body, p, nest.integer(v))) for v, n in parts]
                ),
            )

        def taps(j: PrimExpr, kh: PrimExpr) -> Stmt:
            y = rows.source(row, kh)

            def phase(b: PrimExpr) -> Stmt:
                begin = x + phases.offset(b)

                def tap(a: PrimExpr) -> Stmt:
                    def add(p: PrimExpr, v: PrimExpr, lane: PrimExpr) -> Stmt:
                        place = begin + a * phases.step + v * lanes + lane
                        value = lines.read(n, group * channels + j, y, b, place)
                        weight = nest.read(kernel.weights, base + p, j, kh, b + a * phases.period)
                        total = nest.read(sums, p, v, lane) + value * weight
                        return nest.write(sums, total, p, v, lane)

                    return each(add)

                return nest.serial(phases.taps(b), tap, "a")

            return nest.serial(phases.count, phase, "b")

        def finish(p: PrimExpr, v: PrimExpr, lane: PrimExpr) -> Stmt:
            place = x + v * lanes + lane
            position = nest.unflatten(place, image) if conv.pointwise else (row, place)
            return kernel.finish(nest.read(sums, p, v, lane), (n, base + p, *position))

        zero = tirx.const(0.0, "float32")
        return nest.sequence(
            nest.allocate(sums),
            each(lambda *index: nest.write(sums, zero, *index)),
            nest.serial(
                channels,
                lambda j: nest.serial(kh_count, lambda kh: taps(j, kh_first + kh), "kh"),
                "ic",
            ),
            each(finish),
        )

    def task(n: PrimExpr, row: PrimExpr, t: PrimExpr, group: PrimExpr, index: PrimExpr) -> Stmt:
        def part(first: PrimExpr, count: int) -> Stmt:
            full = block(n, row, group, first, count, t * width, width) if whole else None
            if not rest:
                return full
            last = block(n, row, group, first, count, nest.integer(whole * width), rest)
            return nest.sequence(nest.branch(t < whole, full, last) if whole else last)

        return blocks.part(index, part)

    grid = (conv.batch, conv.out_height, whole + (rest > 0), conv.groups, blocks.count)
    return kernel.function(*lines.copy(), parallel_grid(grid, task))


class Lines:
    """The input's rows by phases, with zeros where a tap reads outside; or the input itself."""

    def __init__(self, kernel: Kernel, conv: Conv, phases: Phases) -> None:
        self._image, self._phases = kernel.image, phases
        self._rows = (conv.batch, conv.channels, conv.height)
        self._size = tuple(int(dim) for dim in kernel.image.shape[2:])
        self._flat = conv.pointwise
        self._lines = nest.buffer((*self._rows, phases.count, phases.length), "float32", "lines")

    def read(
        self, n: PrimExpr, c: PrimExpr, y: PrimExpr, b: PrimExpr, element: PrimExpr
    ) -> PrimExpr:
        """An element of the line of phase b of row y."""
        if not self._phases.in_place:
            return nest.read(self._lines, n, c, y, b, element)
        if self._flat:
            return nest.read(self._image, n, c, *nest.unflatten(element, self._size))
        return nest.read(self._image, n, c, y, element)

    def copy(self) -> tuple[Stmt, ...]:
        """What fills the lines; nothing where the input is read in place."""
        if self._phases.in_place:
            return ()

        def row(n: PrimExpr, c: PrimExpr, y: PrimExpr) -> Stmt:
            return nest.serial(self._phases.count, lambda b: self._line(n, c, y, b), "b")

        return nest.allocate(self._lines), parallel_grid(self._rows, row)

    def _line(self, n: PrimExpr, c: PrimExpr, y: PrimExpr, b: PrimExpr) -> Stmt:
        columns, length = self._phases.columns, self._phases.length
        first = self._phases.source(b, 0)
        last = columns.stride - 1
        start = tirx.min(tirx.max(last - first, 0) // columns.stride, length)
        room = tirx.max(columns.size + last - first, 0) // columns.stride
        end = tirx.max(tirx.min(room, length), start)
        zero = tirx.const(0.0, "float32")

        def inside(i: PrimExpr) -> Stmt:
            value = nest.read(self._image, n, c, y, self._phases.source(b, start + i))
            return nest.write(self._lines, value, n, c, y, b, start + i)

        return nest.sequence(
            nest.serial(start, lambda i: nest.write(self._lines, zero, n, c, y, b, i)),
            nest.serial(end - start, inside),
            nest.serial(length - end, lambda i: nest.write(self._lines, zero, n, c, y, b, end + i)),
        )


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The row-major kernel for any float32 conv2d."""
    conv = parse(workload)
    if conv is None:
        return ()
    default = plan(conv, traits)
    knobs = (
        Knob("filters", tuple(range(1, min(conv.filters // conv.groups, 16) + 1))),
        Knob("vectors", tuple(range(1, 9))),
    )
    values = {"filters": default.filters, "vectors": default.vectors}
    return (tunable(knobs, values, partial(_decided, workload, conv, traits)),)


def _decided(
    workload: Workload, conv: Conv, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The row-major kernel with these decisions."""
    tile = LinesPlan(values["filters"], values["vectors"])
    if (tile.filters + 1) * tile.vectors + 1 > traits.vector_registers:
        return None
    terms = conv.channels // conv.groups * conv.kernel[0] * conv.kernel[1]
    ideal = conv.out_width / traits.lanes * (conv.filters // conv.groups) / 2
    share = 0.7 * ideal / _time(conv, traits, tile) * terms / (terms + 12)
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    copied = 0 if Phases(axes(conv)[1]).in_place else 2 * workload.inputs[0].nbytes
    return Candidate(
        name="conv2d.lines",
        layouts=(PLAIN, PLAIN, *operands),
        output=PLAIN,
        cost=Cost(2.0 * conv.macs, traffic(workload) + copied, share),
        compute=lambda: emit(workload, conv, traits, tile),
        schedule=as_written,
    )
