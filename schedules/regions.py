"""roi_align and max_roi_pool, blocked by channels or, far slower, row-major.

Regions come at run time: a worker takes one row of bins of one region, computes positions and
weights of a sample once for all channels, and adds whole blocks of channels. Sums are in float32
(float64 for float64): means are within 4e-6 of the largest input. Batch indices and positions are
brought into range, so that a wrong region cannot read elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from tvm import tirx

from schedules import nest
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
from schedules.nest import Stmt
from schedules.scalar_binary import maximum
from schedules.scalar_values import lowest
from schedules.vectors import (
    Frame,
    accumulator,
    candidate,
    let_vars,
    load_as,
    of_type,
    parallel_grid,
    scratch,
)

_FAR = 2.0**30


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Blocked by channels, and row-major for devices; regions and indices are row-major."""
    op = workload.op
    kernel = {"roi_align": _Align, "max_roi_pool": _MaxPool}.get(op.kind)
    if kernel is None:
        return ()
    found = []
    for layout in (Layout(traits.lanes), PLAIN):
        inputs = (layout, *[PLAIN] * (len(op.inputs) - 1))
        compute = partial(_compute, kernel, workload, inputs, layout)
        made = candidate(op.kind, workload, inputs, layout, compute, flops_per_element=32.0)
        found.append(made if layout.block else replace(made, cost=_scalar(made.cost)))
    return tuple(found)


def _scalar(cost: Cost) -> Cost:
    """What it costs to take channels one by one, far from each other."""
    return replace(cost, efficiency=cost.efficiency / 16)


def _compute(
    kernel: Callable[..., _Pool], workload: Workload, inputs: Sequence[Layout], layout: Layout
) -> PrimFunc:
    return kernel(workload, inputs, layout).function()


def _integer(x: PrimExpr) -> PrimExpr:
    """A whole float as an int32, limited so that the conversion is defined."""
    limit = tirx.const(_FAR, str(x.ty.dtype))
    return tirx.Cast("int32", tirx.max(tirx.min(x, limit), -limit))


def _between(x: PrimExpr, low: PrimExpr | float, high: PrimExpr | float) -> PrimExpr:
    return tirx.max(tirx.min(x, high), low)


class _Pool:
    """What both kinds share: regions by bins, and a sum or maximum over all channels."""

    def __init__(self, workload: Workload, inputs: Sequence[Layout], layout: Layout) -> None:
        self.op = workload.op
        self.frame = Frame(workload, inputs, layout)
        self.batch, _, self.height, self.width = self.op.inputs[0].shape
        self.size = self.op.attr("size")
        self.dtype = accumulator(self.op.output.dtype)
        # Corners in half precision would be pixels off.
        self.wide = "float64" if self.op.inputs[1].dtype == "float64" else "float32"
        # A row-major tensor is one with blocks of one channel, whose lane has no axis.
        self.blocks, self.lanes = self.frame.shape[1], max(1, layout.block)
        self.has_lanes = layout.block > 0
        self.total = scratch((self.blocks, self.lanes), self.dtype, "total")

    def function(self) -> PrimFunc:
        regions = self.op.output.shape[0]
        return self.frame.function(
            parallel_grid(
                (regions, *self.size),
                lambda r, row, column: nest.sequence(
                    nest.allocate(self.total), self.bin(r, row, column)
                ),
            )
        )

    def bin(self, r: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        """Compute and store one bin of region `r`."""
        raise NotImplementedError

    def real(self, value: float) -> PrimExpr:
        return tirx.const(value, self.wide)

    def corner(self, r: PrimExpr, which: int) -> PrimExpr:
        """A coordinate of region `r`, in pixels."""
        return load_as(self.frame.inputs[1], self.wide, r, which) * self.real(self.op.attr("scale"))

    def over_channels(self, value: Callable[[PrimExpr, PrimExpr], PrimExpr]) -> Stmt:
        """total = value(block, lane) for all channels."""
        return nest.serial(
            self.blocks,
            lambda b: nest.vectorized(
                self.lanes, lambda x: nest.write(self.total, value(b, x), b, x)
            ),
            "block",
        )

    def load(self, n: PrimExpr, b: PrimExpr, y: PrimExpr, x: PrimExpr, lane: PrimExpr) -> PrimExpr:
        return load_as(self.frame.inputs[0], self.dtype, n, b, y, x, *self.lane(lane))

    def lane(self, lane: PrimExpr) -> tuple[PrimExpr, ...]:
        """The last coordinate of an element, where there is one."""
        return (lane,) if self.has_lanes else ()

    def store(
        self,
        index: Sequence[PrimExpr],
        value: Callable[[PrimExpr], PrimExpr],
    ) -> Stmt:
        """Store value(total) of every channel at (region, row, column)."""
        r, row, column = index
        return nest.serial(
            self.blocks,
            lambda b: nest.vectorized(
                self.lanes,
                lambda x: self.frame.finish(
                    of_type(value(nest.read(self.total, b, x)), self.op.output),
                    (r, b, row, column, *self.lane(x)),
                ),
            ),
            "block",
        )


class _Align(_Pool):
    """roi_align."""

    def bin(self, r: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        offset = self.real(0.5 if self.op.attr("half_pixel") else 0.0)
        left, top, right, bottom = (self.corner(r, i) - offset for i in range(4))
        extents = [bottom - top, right - left]
        if not self.op.attr("half_pixel"):
            extents = [tirx.max(extent, self.real(1)) for extent in extents]
        bins = [e / self.real(n) for e, n in zip(extents, self.size, strict=True)]
        ratio = self.op.attr("sampling_ratio")
        counts = [
            nest.integer(ratio) if ratio > 0 else tirx.max(_integer(tirx.ceil(b)), 0) for b in bins
        ]
        index = load_as(self.frame.inputs[2], "int32", r)
        batch = _between(index, 0, self.batch - 1)
        starts = [
            top + tirx.Cast(self.wide, row) * bins[0],
            left + tirx.Cast(self.wide, column) * bins[1],
        ]
        values = [*starts, *bins, *counts, batch]

        def sampled(
            y0: PrimExpr,
            x0: PrimExpr,
            high: PrimExpr,
            wide: PrimExpr,
            rows: PrimExpr,
            columns: PrimExpr,
            n: PrimExpr,
        ) -> Stmt:
            def position(start: PrimExpr, bin_: PrimExpr, i: PrimExpr, count: PrimExpr) -> PrimExpr:
                inner = tirx.Cast(self.wide, i) + self.real(0.5)
                return start + inner * bin_ / tirx.Cast(self.wide, count)

            def line(i: PrimExpr) -> Stmt:
                return nest.serial(
                    columns,
                    lambda j: self.sample(
                        n,
                        position(y0, high, i, rows),
                        position(x0, wide, j, columns),
                        tirx.any(i > 0, j > 0),
                    ),
                    "sx",
                )

            samples = tirx.Cast(self.dtype, tirx.max(rows * columns, 1))
            average = self.op.attr("mode") == "avg"
            return nest.sequence(
                self.over_channels(lambda b, x: tirx.const(0, self.dtype)),
                nest.serial(rows, line, "sy"),
                self.store((r, row, column), lambda total: total / samples if average else total),
            )

        return let_vars(values, sampled)

    def sample(self, n: PrimExpr, y: PrimExpr, x: PrimExpr, later: PrimExpr) -> Stmt:
        """Take one bilinear sample into the totals; nothing is there outside the image."""

        def inside(y: PrimExpr, x: PrimExpr) -> Stmt:
            gone = tirx.any(
                y < self.real(-1),
                y > self.real(self.height),
                x < self.real(-1),
                x > self.real(self.width),
            )
            low = [self.low(y, self.height), self.low(x, self.width)]
            return nest.sequence(
                let_vars([*low, *self.fractions(y, x)], partial(self.add, n, gone, later))
            )

        return let_vars([y, x], inside)

    def low(self, at: PrimExpr, size: int) -> PrimExpr:
        return _integer(tirx.floor(_between(at, self.real(0), self.real(size - 1))))

    def fractions(self, y: PrimExpr, x: PrimExpr) -> list[PrimExpr]:
        found = []
        for at, size in ((y, self.height), (x, self.width)):
            clamped = _between(at, self.real(0), self.real(size - 1))
            found.append(clamped - tirx.floor(clamped))
        return found

    def add(
        self,
        n: PrimExpr,
        gone: PrimExpr,
        later: PrimExpr,
        top: PrimExpr,
        left: PrimExpr,
        ly: PrimExpr,
        lx: PrimExpr,
    ) -> Stmt:
        one = self.real(1)
        top, left = _between(top, 0, self.height - 1), _between(left, 0, self.width - 1)
        bottom, right = tirx.min(top + 1, self.height - 1), tirx.min(left + 1, self.width - 1)
        corners = [(top, left), (top, right), (bottom, left), (bottom, right)]
        weights = [(one - ly) * (one - lx), (one - ly) * lx, ly * (one - lx), ly * lx]

        def weighted(*weight: PrimExpr) -> Stmt:
            def taken(b: PrimExpr, lane: PrimExpr) -> list[PrimExpr]:
                return [
                    w * self.load(n, b, *corner, lane)
                    for w, corner in zip(weight, corners, strict=True)
                ]

            def added(b: PrimExpr, lane: PrimExpr) -> PrimExpr:
                total = nest.read(self.total, b, lane)
                terms = taken(b, lane)
                return total + (terms[0] + terms[1] + terms[2] + terms[3])

            def highest(b: PrimExpr, lane: PrimExpr) -> PrimExpr:
                terms = taken(b, lane)
                best = tirx.max(tirx.max(terms[0], terms[1]), tirx.max(terms[2], terms[3]))
                total = nest.read(self.total, b, lane)
                return tirx.Select(later, tirx.max(total, best), best)

            average = self.op.attr("mode") == "avg"
            body = self.over_channels(added if average else highest)
            if average:
                return nest.branch(gone, tirx.Evaluate(0), body)

            def nothing(b: PrimExpr, lane: PrimExpr) -> PrimExpr:
                zero = tirx.const(0, self.dtype)
                return tirx.Select(later, tirx.max(nest.read(self.total, b, lane), zero), zero)

            return nest.branch(gone, self.over_channels(nothing), body)

        return let_vars([tirx.Cast(self.dtype, w) for w in weights], weighted)


class _MaxPool(_Pool):
    """max_roi_pool."""

    def bin(self, r: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        # Half-way corners go away from zero.
        corners = [
            tirx.Select(
                c < self.real(0),
                tirx.ceil(c - self.real(0.5)),
                tirx.floor(c + self.real(0.5)),
            )
            for c in (self.corner(r, i) for i in range(1, 5))
        ]
        left, top, right, bottom = corners
        bounds: list[PrimExpr] = []
        for first, last, place, bins, size in (
            (top, bottom, row, self.size[0], self.height),
            (left, right, column, self.size[1], self.width),
        ):
            share = tirx.max(last - first + self.real(1), self.real(1)) / self.real(bins)
            at = tirx.Cast(self.wide, place)
            low = _integer(tirx.floor(at * share) + first)
            high = _integer(tirx.ceil((at + self.real(1)) * share) + first)
            bounds += [_between(low, 0, size), _between(high, 0, size)]
        index = _integer(load_as(self.frame.inputs[1], self.wide, r, 0))
        batch = _between(index, 0, self.batch - 1)

        def pooled(y0: PrimExpr, y1: PrimExpr, x0: PrimExpr, x1: PrimExpr, n: PrimExpr) -> Stmt:
            def pixel(y: PrimExpr, x: PrimExpr) -> Stmt:
                return self.over_channels(
                    lambda b, lane: maximum(
                        self.load(n, b, y0 + y, x0 + x, lane), nest.read(self.total, b, lane)
                    )
                )

            empty = tirx.any(y1 <= y0, x1 <= x0)
            zero = tirx.const(0, self.dtype)
            return nest.sequence(
                self.over_channels(lambda b, x: lowest(self.dtype)),
                nest.serial(
                    tirx.max(y1 - y0, 0),
                    lambda y: nest.serial(tirx.max(x1 - x0, 0), lambda x: pixel(y, x), "x"),
                    "y",
                ),
                self.store((r, row, column), lambda total: tirx.Select(empty, zero, total)),
            )

        return let_vars([*bounds, batch], pooled)
