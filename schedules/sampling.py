"""grid_sample and deform_columns: images read at positions that are computed at run time.

One worker takes a block of neighbouring positions: it computes the source and weight of every tap
once into tables in cache, then goes through the channels, a vector of positions at a time. Sums
are kept in float32 (float64 where an input is), in the order of the taps: within 4e-6 of the
largest input, besides the rounding of the coordinates themselves. Positions far outside or not a
number never read outside the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.scalar_values import cast
from schedules.vectors import (
    Frame,
    accumulator,
    blocks_of,
    candidate,
    lanes_of,
    load_as,
    of_type,
    parallel_grid,
    scratch,
)

_BLOCK = 4  # vectors of positions that share their tables
_FAR = 2.0**30  # coordinates beyond are as good as there, and fit an int32
_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
_CUBIC_A = -0.75


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major."""
    op = workload.op
    if op.kind == "grid_sample":
        compute, taps = _grid_sample, _TAPS[op.attr("method")] ** len(op.attr("spatial"))
    elif op.kind == "deform_columns":
        compute, taps = _deform_columns, 4
    else:
        return ()
    return (
        candidate(
            op.kind,
            workload,
            (PLAIN,) * len(op.inputs),
            PLAIN,
            partial(compute, workload, traits),
            flops_per_element=6.0 * taps,
        ),
    )


class _Tables:
    """Flat source positions (−1: nothing is there) and weights of a block's taps."""

    def __init__(self, spatial: Sequence[int], taps: int, width: int, dtype: str) -> None:
        self.spatial, self.taps, self.width, self.dtype = spatial, taps, width, dtype
        rank = len(spatial)
        self.axis_at: Buffer = scratch((rank, taps, width), "int32", "axis_at")
        self.axis_weight: Buffer = scratch((rank, taps, width), dtype, "axis_weight")
        self.at: Buffer = scratch((taps**rank, width), "int32", "at")
        self.weight: Buffer = scratch((taps**rank, width), dtype, "weight")

    def fill(
        self,
        axis: Callable[[int, PrimExpr], tuple[list[PrimExpr], list[PrimExpr]]],
        factor: Callable[[PrimExpr], PrimExpr] | None = None,
    ) -> Stmt:
        """Tables of positions and weights that axis(d, lane) gives per spatial axis.

        `factor` scales all weights of a lane.
        """
        rank = len(self.spatial)

        def one_axis(d: int, lane: PrimExpr) -> Stmt:
            at, weights = axis(d, lane)
            return nest.sequence(
                *[nest.write(self.axis_at, p, d, t, lane) for t, p in enumerate(at)],
                *[nest.write(self.axis_weight, w, d, t, lane) for t, w in enumerate(weights)],
            )

        def combined(lane: PrimExpr) -> Stmt:
            stores = []
            for index, chosen in enumerate(itertools.product(range(self.taps), repeat=rank)):
                at: PrimExpr = nest.integer(0)
                weight = factor(lane) if factor else None
                missing: PrimExpr = nest.integer(0)
                for d, t in enumerate(chosen):
                    position = nest.read(self.axis_at, d, t, lane)
                    missing = tirx.min(missing, position)
                    at = at * self.spatial[d] + position
                    along = nest.read(self.axis_weight, d, t, lane)
                    weight = along if weight is None else weight * along
                found = tirx.Select(missing < 0, nest.integer(-1), at)
                stores += [
                    nest.write(self.at, found, index, lane),
                    nest.write(self.weight, weight, index, lane),
                ]
            return nest.sequence(*stores)

        width = self.width
        return nest.sequence(
            *[nest.vectorized(width, partial(one_axis, d)) for d in range(rank)],
            nest.vectorized(width, combined),
        )

    def allocate(self) -> Stmt:
        return nest.allocate(self.axis_at, self.axis_weight, self.at, self.weight)

    def value(self, read: Callable[[PrimExpr], PrimExpr], lane: PrimExpr, exact: bool) -> PrimExpr:
        """The sum over the taps of weight · read(position); `exact`: the only tap, unweighted."""
        total: PrimExpr = None
        for t in range(self.taps ** len(self.spatial)):
            at = nest.read(self.at, t, lane)
            found = read(tirx.max(at, 0))
            kept = tirx.Select(at >= 0, found, tirx.const(0, str(found.ty.dtype)))
            term = kept if exact else nest.read(self.weight, t, lane) * kept
            total = term if total is None else total + term
        return total


def _whole(x: PrimExpr) -> PrimExpr:
    """A whole number as an int32; one that is too large or no number becomes some int32."""
    limit = tirx.const(_FAR, str(x.ty.dtype))
    return tirx.Cast("int32", tirx.max(tirx.min(x, limit), -limit))


def _inside(position: PrimExpr, size: int, padding: str, align_corners: bool) -> PrimExpr:
    """Where a tap reads; −1 for nowhere."""
    last = size - 1
    if padding == "zeros":
        outside = tirx.any(position < 0, position > last)
        return tirx.Select(outside, nest.integer(-1), position)
    if padding == "reflection":
        # Mirrored at the middle, or at the edge, of the first and last element.
        period = 2 * last if align_corners else 2 * size
        if period:
            position = tirx.floormod(position, nest.integer(period))
            mirrored = period - position if align_corners else period - 1 - position
            position = tirx.Select(position > last, mirrored, position)
    return tirx.max(tirx.min(position, last), 0)


def _along(
    x: PrimExpr, method: str, size: int, padding: str, align_corners: bool
) -> tuple[list[PrimExpr], list[PrimExpr]]:
    """Positions and weights of the taps at coordinate `x`, 0 being the first element's middle."""
    dtype = str(x.ty.dtype)
    one = tirx.const(1, dtype)
    low = tirx.floor(x)
    first = _whole(low)
    t = x - low
    if method == "nearest":
        # The middle between two goes to the even one.
        half = tirx.const(0.5, dtype)
        odd = tirx.bitwise_and(first, nest.integer(1)) > 0
        up = tirx.any(t > half, tirx.all(t >= half, odd))
        near = first + tirx.Select(up, nest.integer(1), nest.integer(0))
        return [_inside(near, size, padding, align_corners)], [one]
    if method == "linear":
        weights, offsets = [one - t, t], [0, 1]
    else:
        weights, offsets = _keys(t), [-1, 0, 1, 2]
    return [_inside(first + o, size, padding, align_corners) for o in offsets], weights


def _keys(t: PrimExpr) -> list[PrimExpr]:
    """Weights of cubic convolution (Keys, 1981) for the four neighbours of a point at `t`."""
    dtype = str(t.ty.dtype)

    def c(value: float) -> PrimExpr:
        return tirx.const(value, dtype)

    a = _CUBIC_A

    def near(d: PrimExpr) -> PrimExpr:
        return (c(a + 2) * d - c(a + 3)) * d * d + c(1)

    def far(d: PrimExpr) -> PrimExpr:
        return ((c(a) * d - c(5 * a)) * d + c(8 * a)) * d - c(4 * a)

    return [far(t + c(1)), near(t), near(c(1) - t), far(c(2) - t)]


def _wide(workload: Workload) -> str:
    """The dtype of coordinates, weights and sums."""
    dtypes = [accumulator(sig.dtype) for sig in workload.op.inputs]
    return "float64" if "float64" in dtypes else "float32"


def _over_positions(width: int, lanes: int, body: Callable[[PrimExpr], Stmt]) -> Stmt:
    """body(lane) for a block, by vectors."""
    runs = [
        nest.serial(
            count,
            lambda v, start=start, size=size: nest.vectorized(  # type: ignore[misc]
                size, lambda x: body(v * size + (x + start))
            ),
            "vector",
        )
        for start, count, size in blocks_of(width, lanes)
    ]
    return nest.sequence(*runs)


def _grid_sample(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    frame = Frame(workload, (PLAIN, PLAIN), PLAIN)
    x, grid = frame.inputs
    batch, channels, points = op.output.shape
    spatial, method = op.attr("spatial"), op.attr("method")
    dtype = _wide(workload)
    lanes = lanes_of(traits, dtype)
    exact = method == "nearest"

    def block(n: PrimExpr, first: PrimExpr, width: int) -> Stmt:
        tables = _Tables(spatial, _TAPS[method], width, dtype)

        def axis(d: int, lane: PrimExpr) -> tuple[list[PrimExpr], list[PrimExpr]]:
            # The grid names the last axis first.
            where = load_as(grid, dtype, n, first + lane, len(spatial) - 1 - d)
            size = spatial[d]
            half, one = tirx.const(0.5, dtype), tirx.const(1, dtype)
            if op.attr("align_corners"):
                source = (where + one) * half * tirx.const(size - 1, dtype)
            else:
                source = ((where + one) * tirx.const(size, dtype) - one) * half
            return _along(source, method, size, op.attr("padding"), op.attr("align_corners"))

        def channel(c: PrimExpr) -> Stmt:
            def store(lane: PrimExpr) -> Stmt:
                def read(at: PrimExpr) -> PrimExpr:
                    found = nest.read(x, n, c, at)
                    return found if exact else cast(found, dtype)

                value = tables.value(read, lane, exact)
                return frame.finish(of_type(value, op.output), (n, c, first + lane))

            return _over_positions(width, lanes, store)

        return nest.sequence(
            tables.allocate(), tables.fill(axis), nest.serial(channels, channel, "channel")
        )

    return frame.function(
        *[
            parallel_grid(
                (batch, count),
                lambda n, b, start=start, width=width: block(n, b * width + start, width),
            )
            for start, count, width in blocks_of(points, _BLOCK * lanes)
        ]
    )


def _deform_columns(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    frame = Frame(workload, (PLAIN,) * len(op.inputs), PLAIN)
    x, offset = frame.inputs[:2]
    batch, channels, taps, points = op.output.shape
    groups = op.inputs[1].shape[1]
    share = channels // groups
    spatial, out, kernel = op.attr("spatial"), op.attr("out"), op.attr("kernel")
    strides, before, dilation = op.attr("strides"), op.attr("before"), op.attr("dilation")
    dtype = _wide(workload)
    lanes = lanes_of(traits, dtype)

    def block(n: PrimExpr, g: PrimExpr, k: PrimExpr, first: PrimExpr, width: int) -> Stmt:
        tables = _Tables(spatial, 2, width, dtype)
        tap = nest.unflatten(k, kernel)

        def axis(d: int, lane: PrimExpr) -> tuple[list[PrimExpr], list[PrimExpr]]:
            point = nest.unflatten(first + lane, out)[d]
            origin = point * strides[d] + (tap[d] * dilation[d] - before[d])
            moved = load_as(offset, dtype, n, g, k, d, first + lane)
            source = tirx.Cast(dtype, origin) + moved
            return _along(source, "linear", spatial[d], "zeros", False)

        def factor(lane: PrimExpr) -> PrimExpr:
            return load_as(frame.inputs[2], dtype, n, g, k, first + lane)

        def channel(c: PrimExpr) -> Stmt:
            at = g * share + c

            def store(lane: PrimExpr) -> Stmt:
                value = tables.value(lambda p: load_as(x, dtype, n, at, p), lane, False)
                return frame.finish(of_type(value, op.output), (n, at, k, first + lane))

            return _over_positions(width, lanes, store)

        return nest.sequence(
            tables.allocate(),
            tables.fill(axis, factor if len(frame.inputs) > 2 else None),
            nest.serial(share, channel, "channel"),
        )

    return frame.function(
        *[
            parallel_grid(
                (batch, groups, taps, count),
                lambda n, g, k, b, start=start, width=width: block(
                    n, g, k, b * width + start, width
                ),
            )
            for start, count, width in blocks_of(points, _BLOCK * lanes)
        ]
    )
