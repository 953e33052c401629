"""What all convolution families share: dimensions, tiles of a row, the register tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from schedules import nest
from schedules.conv_loops import between
from schedules.interface import PrimExpr, TargetTraits, Workload
from schedules.nest import Buffer, Stmt


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up, for b > 0."""
    return -(-a // b)


@dataclass(frozen=True)
class Conv:
    """Dimensions of a conv2d or conv2d_transpose workload; pairs are (vertical, horizontal)."""

    batch: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, left, bottom, right
    dilation: tuple[int, int]
    groups: int
    out_height: int
    out_width: int

    @property
    def macs(self) -> int:
        """Multiply-adds of the direct algorithm, taps that fall on padding included."""
        taps = self.kernel[0] * self.kernel[1] * self.channels // self.groups
        return self.batch * self.filters * self.out_height * self.out_width * taps

    @property
    def pointwise(self) -> bool:
        """Whether it is a plain 1×1 convolution: a matrix product."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.padding)


def parse(workload: Workload, kind: str = "conv2d") -> Conv | None:
    """The dimensions of a float32 convolution with a constant weight; None if it is not one."""
    op = workload.op
    if op.kind != kind or any(sig.dtype != "float32" for sig in (*op.inputs, op.output)):
        return None
    return dimensions(workload)


def dimensions(workload: Workload) -> Conv:
    """The dimensions of a convolution over two axes, whatever its types."""
    op = workload.op
    (n, c, h, w), weight = op.inputs[0].shape, op.inputs[1].shape
    return Conv(
        n,
        c,
        h,
        w,
        op.output.shape[1],
        (weight[2], weight[3]),
        op.attr("strides"),
        op.attr("padding"),
        op.attr("dilation"),
        op.attr("groups"),
        op.output.shape[2],
        op.output.shape[3],
    )


def traffic(workload: Workload) -> float:
    """Bytes of all logical inputs and the output, each counted once."""
    return float(sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes)


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a convolution, or of one phase of a transposed one.

    Output o and tap t read input o·stride − before + t·dilation, where 0 ≤ that < size. In memory
    the output lies at out_first + o·out_step, the tap's weight at tap_first + t·tap_step.
    """

    size: int
    out: int
    taps: int
    stride: int
    before: int
    dilation: int
    out_first: int = 0
    out_step: int = 1
    tap_first: int = 0
    tap_step: int = 1

    def source(self, output: PrimExpr, tap: PrimExpr) -> PrimExpr:
        """The input position that `output` reads with `tap`."""
        return output * self.stride - self.before + tap * self.dilation

    def place(self, output: PrimExpr) -> PrimExpr:
        """Where `output` lies in memory."""
        return output * self.out_step + self.out_first

    def weight(self, tap: PrimExpr) -> PrimExpr:
        """Where the weight of `tap` lies in memory."""
        return tap * self.tap_step + self.tap_first

    def valid(self, first: int, count: int, tap: int) -> tuple[int, int]:
        """Range [low, high) of i < count for which output first + i reads inside with `tap`."""
        inside = [i for i in range(count) if 0 <= self.source(first + i, tap) < self.size]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)

    def interior(self, first: int, count: int) -> bool:
        """Whether all taps of outputs first … first + count − 1 read inside."""
        last = self.source(first + count - 1, self.taps - 1)
        return bool(self.source(first, 0) >= 0 and last < self.size)

    def inner(self) -> tuple[int, int]:
        """First output all of whose taps read inside, and how many such outputs there are."""
        inner = [o for o in range(self.out) if self.interior(o, 1)]
        return (inner[0], len(inner)) if inner else (0, 0)

    def inside(self, output: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
        """First tap that reads inside at `output`, and how many do."""
        if self.interior(0, self.out):
            return nest.integer(0), nest.integer(self.taps)
        top = output * self.stride
        first = (tirx.max(self.before - top, 0) + self.dilation - 1) // self.dilation
        room = tirx.max(self.size + self.before - top, 0)
        last = tirx.min((room + self.dilation - 1) // self.dilation, self.taps)
        return first, tirx.max(last - first, 0)


def axes(conv: Conv) -> tuple[Axis, Axis]:
    """The rows and columns of a convolution."""
    sizes, outs = (conv.height, conv.width), (conv.out_height, conv.out_width)
    rows, columns = (
        Axis(
            sizes[i],
            outs[i],
            conv.kernel[i],
            conv.strides[i],
            conv.padding[i],
            conv.dilation[i],
        )
        for i in (0, 1)
    )
    return rows, columns


@dataclass(frozen=True)
class RegisterTile:
    """Outputs kept in registers: `pixels` positions × `vectors` vectors of channels.

    The positions are in one row, unless whole rows are so short that `rows` of them fit.
    """

    pixels: int
    vectors: int
    rows: int = 1

    def fits(self, traits: TargetTraits) -> bool:
        """Whether the sums, a row of weights and a pixel's value have a register each.

        One vector of weights meets each pixel's value once, so that it may stay in memory. A sum
        without a register goes through the stack in every step, at an address that no one aligns:
        where it crosses a line of the cache, which differs from one program to the next, the
        kernel takes three times as long.
        """
        sums = self.pixels * self.rows * self.vectors
        return sums + self.vectors + (self.vectors > 1) <= traits.vector_registers


def tile_time(outputs: int, blocks: int, pixels: int, vectors: int) -> float:
    """Modelled cycles per step of the reduction for `outputs` positions × `blocks` vectors.

    A tile costs the largest of: its multiply-adds on two ports, its loads (one per weight vector,
    one broadcast per position) on two ports, and the latency of four cycles that too few
    accumulators cannot hide; plus the loop, and its weights' way from L2, which a wide tile goes
    less often. The constants were fitted to 1×1 and 3×3 convolutions on AVX-512 and AVX2.
    """

    def step(width: int) -> float:
        return max(width * vectors / 2, (1.15 * width + vectors) / 2, 4.0) + 0.75

    full, rest = divmod(outputs, pixels)
    time = full * step(pixels) + (step(rest) if rest else 0.0)
    return time * (blocks / vectors) + ceil_div(outputs, pixels) * blocks * 0.35


def choose_tile(outputs: int, blocks: int, traits: TargetTraits) -> RegisterTile:
    """The register tile with the least modelled time; `vectors` divides `blocks`."""
    best, best_time = RegisterTile(1, 1), float("inf")
    for vectors in range(1, 9):
        if blocks % vectors:
            continue
        for pixels in range(1, outputs + 1):
            if (pixels + 2) * vectors > traits.vector_registers:
                break
            time = tile_time(outputs, blocks, pixels, vectors)
            if time < best_time * 0.999:
                best, best_time = RegisterTile(pixels, vectors), time
    return best


def modelled_share(
    tile: RegisterTile, outputs: int, filters: int, terms: int, traits: TargetTraits
) -> float:
    """Share of peak that the tile reaches: lanes without a filter and short reductions cost.

    `terms` is the length of the reduction; starting and finishing a tile takes as long as about
    twelve of its steps (measured with 27 to 2048).
    """
    blocks = ceil_div(filters, traits.lanes)
    ideal = outputs * filters / traits.lanes / 2
    wide, high = tile.pixels * tile.rows, outputs * tile.rows
    time = tile_time(high, blocks, wide, tile.vectors) / tile.rows
    return ideal / time * terms / (terms + 12)


PerLane = Callable[[PrimExpr, PrimExpr, PrimExpr], PrimExpr]
"""A statement or value for (pixel, vector, lane)."""


class Accumulators:
    """The register tile of one piece of code: `pixels` × `vectors` × `lanes` partial sums."""

    def __init__(self, pixels: int, vectors: int, lanes: int) -> None:
        self.pixels, self.vectors, self.lanes = pixels, vectors, lanes
        self._buffer: Buffer = nest.buffer((pixels, vectors, lanes), "float32", "acc", "local")

    def each(self, body: PerLane, low: int = 0, high: int | None = None) -> Stmt:
        """body(pixel, vector, lane), unrolled and vectorised, for low ≤ pixel < high."""

        def vector(p: PrimExpr) -> Stmt:
            return nest.unrolled(
                self.vectors, lambda v: nest.vectorized(self.lanes, lambda x: body(p, v, x))
            )

        return between(low, self.pixels if high is None else high, vector)

    def start(self) -> Stmt:
        """Allocate the sums and set them to zero."""
        zero = tirx.const(0.0, "float32")
        clear = self.each(lambda p, v, x: nest.write(self._buffer, zero, p, v, x))
        return nest.sequence(nest.allocate(self._buffer), clear)

    def value(self, p: PrimExpr, v: PrimExpr, x: PrimExpr) -> PrimExpr:
        """One partial sum."""
        return nest.read(self._buffer, p, v, x)

    def add(self, term: PerLane, low: int = 0, high: int | None = None) -> Stmt:
        """sum[p, v, x] += term(p, v, x) for low ≤ p < high."""
        return self.each(
            lambda p, v, x: nest.write(self._buffer, self.value(p, v, x) + term(p, v, x), p, v, x),
            low,
            high,
        )
