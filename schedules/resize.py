"""resize2d: nearest, linear and cubic interpolation as ONNX defines Resize, over both spatial axes.

For each output row and column the source positions and weights are computed here, at compile time;
kernels write them to small tables in a first phase (they are constants to the code generator) and a
second phase combines 1, 2 or 4 rows by as many columns. Coordinates follow ONNX Runtime in float32,
so that nearest picks the same pixel; linear and cubic are within 2e-6 of the largest input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.interface import (
    PLAIN,
    Candidate,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
    channel_layouts,
)
from schedules.nest import Buffer, Stmt
from schedules.vectors import (
    Frame,
    accumulator,
    candidate,
    lanes_of,
    load_as,
    of_type,
    over_vectors,
    parallel_grid,
    scratch,
)


@dataclass(frozen=True)
class Taps:
    """For each output position along an axis: `taps` source positions and their weights."""

    positions: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]

    @property
    def count(self) -> int:
        return len(self.positions[0])

    def affine(self) -> tuple[int, int, int] | None:
        """(a, b, d) with position[i] = (i·a + b) // d for single taps, if there is one."""
        if self.count > 1:
            return None
        found = [p[0] for p in self.positions]
        for divisor in range(1, 9):
            for factor in range(1, 9):
                offset = found[0] * divisor
                for shift in range(offset, offset + divisor):
                    if all((i * factor + shift) // divisor == p for i, p in enumerate(found)):
                        return factor, shift, divisor
        return None


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major, and blocked for float images."""
    op = workload.op
    if op.kind != "resize2d":
        return ()
    layouts = (PLAIN, *channel_layouts(op.output.shape[1], [op.inputs[0].dtype], traits))
    method = op.attr("method")
    flops = {"nearest": 1.0, "linear": 8.0, "cubic": 40.0}[method]
    return tuple(
        candidate(
            f"resize2d.{method}",
            workload,
            (layout,),
            layout,
            partial(_compute, workload, layout, traits),
            flops_per_element=flops,
            passes=2,
        )
        for layout in layouts
    )


def taps_of(workload: Workload, axis: int) -> Taps:
    """Source positions and weights along spatial axis 0 (rows) or 1 (columns)."""
    op = workload.op
    size, out = op.inputs[0].shape[2 + axis], op.output.shape[2 + axis]
    source = _coordinates(op.attr("coordinate"), size, out, op.attr("scales")[axis])
    if size == out and all(float(x) == i for i, x in enumerate(source)):
        return Taps(tuple((i,) for i in range(out)), ((1.0,),) * out)
    method = op.attr("method")
    if method == "nearest":
        picked = _rounded(source, op.attr("rounding"))
        return Taps(tuple((int(min(max(p, 0), size - 1)),) for p in picked), ((1.0,),) * out)
    if method == "linear":
        return _linear(source, size)
    return _cubic(source, size, op.attr("cubic_a"), op.attr("exclude_outside"))


def _coordinates(mode: str, size: int, out: int, factor: float) -> list[np.float32]:
    """Where each output position lies in the input, in float32 as ONNX Runtime computes it."""
    one, half, scale = np.float32(1), np.float32(0.5), np.float32(factor)
    shift = np.float32(size / 2 * (1 - out / (factor * size)))
    result = []
    for i in range(out):
        x = np.float32(i)
        if mode == "asymmetric":
            value = x / scale
        elif mode == "align_corners":
            value = np.float32(0) if out == 1 else x * np.float32(size - 1) / np.float32(out - 1)
        elif mode == "pytorch_half_pixel":
            value = (x + half) / scale - half if out > 1 else np.float32(0)
        elif mode == "tf_half_pixel_for_nn":
            value = (x + half) / scale
        elif mode == "half_pixel_symmetric":
            # The centre of the input stays the centre of an output whose size was rounded.
            value = shift + (x + half) / scale - half
        else:
            value = (x + half) / scale - half
        result.append(np.float32(value * one))
    return result


def _rounded(source: Sequence[np.float32], rounding: str) -> list[int]:
    def pick(x: float) -> int:
        if rounding == "floor":
            return math.floor(x)
        if rounding == "ceil":
            return math.ceil(x)
        if rounding == "round_prefer_ceil":
            return math.floor(x + 0.5)
        return math.ceil(x - 0.5)

    return [pick(float(x)) for x in source]


def _linear(source: Sequence[np.float32], size: int) -> Taps:
    positions, weights = [], []
    for x in source:
        clamped = min(max(float(x), 0.0), size - 1.0)
        low = min(int(clamped), size - 1)
        high = min(low + 1, size - 1)
        fraction = clamped - low if high != low else 0.0
        positions.append((low, high))
        weights.append((1.0 - fraction, fraction))
    return Taps(tuple(positions), tuple(weights))


def _cubic(source: Sequence[np.float32], size: int, a: float, exclude: bool) -> Taps:
    positions, weights = [], []
    for x in source:
        base = math.floor(float(x))
        t = float(x) - base
        near = [
            ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
            ((a + 2) * t - (a + 3)) * t * t + 1,
            ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
            ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
        ]
        at = [base - 1 + k for k in range(4)]
        if exclude:
            near = [w if 0 <= p < size else 0.0 for w, p in zip(near, at, strict=True)]
            total = sum(near)
            near = [w / total for w in near]
        positions.append(tuple(min(max(p, 0), size - 1) for p in at))
        weights.append(tuple(near))
    return Taps(tuple(positions), tuple(weights))


class _Table:
    """Positions and weights of one axis as the kernel reads them."""

    def __init__(self, taps: Taps, dtype: str, name: str) -> None:
        self.taps = taps
        self.formula = taps.affine()
        shape = (len(taps.positions) * taps.count,)
        self.positions: Buffer = nest.buffer(shape, "int32", f"{name}_positions")
        self.weights: Buffer = nest.buffer(shape, dtype, f"{name}_weights")
        self.dtype = dtype

    def allocate(self) -> list[Stmt]:
        """The memory of the tables; none where a formula does."""
        if self.formula:
            return []
        weights = [nest.allocate(self.weights)] if self.taps.count > 1 else []
        return [nest.allocate(self.positions), *weights]

    def fill(self) -> list[Stmt]:
        """Statements that write the tables."""
        if self.formula:
            return []
        statements = []
        flat = [p for group in self.taps.positions for p in group]
        statements += [nest.write(self.positions, nest.integer(p), i) for i, p in enumerate(flat)]
        if self.taps.count > 1:
            values = [w for group in self.taps.weights for w in group]
            statements += [
                nest.write(self.weights, tirx.const(w, self.dtype), i) for i, w in enumerate(values)
            ]
        return statements

    def position(self, i: PrimExpr, tap: int) -> PrimExpr:
        """Source position of output i."""
        if self.formula:
            factor, shift, divisor = self.formula
            return tirx.floordiv(i * factor + shift, nest.integer(divisor))
        return nest.read(self.positions, i * self.taps.count + tap)

    def weight(self, i: PrimExpr, tap: int) -> PrimExpr:
        """Weight of a tap of output i."""
        return nest.read(self.weights, i * self.taps.count + tap)

    def combined(self, i: PrimExpr, load: Callable[[PrimExpr], PrimExpr]) -> PrimExpr:
        """The taps of output i, of what load(source position) gives."""
        terms = [load(self.position(i, tap)) for tap in range(self.taps.count)]
        if len(terms) == 1:
            return terms[0]
        return _sum([self.weight(i, tap) * term for tap, term in enumerate(terms)])


def _sum(terms: Sequence[PrimExpr]) -> PrimExpr:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class Sampler:
    """The kernel's buffers, and what interpolation takes from its input and the tables."""

    def __init__(self, workload: Workload, layout: Layout) -> None:
        op = workload.op
        self.op, self.frame = op, Frame(workload, (layout,), layout)
        dtype = accumulator(op.output.dtype)
        self.wide = dtype if dtype.startswith("float") else "float32"
        self.rows, self.columns = (
            _Table(taps_of(workload, axis), self.wide, "rc"[axis]) for axis in (0, 1)
        )

    def value(
        self, n: PrimExpr, c: PrimExpr, y: PrimExpr, x: PrimExpr, *lane: PrimExpr
    ) -> PrimExpr:
        """An output, in the op's dtype."""
        image = self.frame.inputs[0]
        if self.op.attr("method") == "nearest":
            at = (self.rows.position(y, 0), self.columns.position(x, 0))
            return nest.read(image, n, c, *at, *lane)

        def load(h: PrimExpr, w: PrimExpr) -> PrimExpr:
            return load_as(image, self.wide, n, c, h, w, *lane)

        value = self.rows.combined(y, lambda h: self.columns.combined(x, lambda w: load(h, w)))
        return of_type(value, self.op.output)

    def function(self, body: Stmt) -> PrimFunc:
        """The finished function: the tables are filled, then comes `body`."""
        tables = (self.rows, self.columns)
        # One parallel loop around all the stores: at the top level each would be a nest of its own.
        fills = [nest.sequence(*table.fill()) for table in tables if table.fill()]
        filled = (
            [
                nest.parallel(
                    2, lambda t: nest.branch(t < 1, fills[0], fills[-1] if fills[1:] else None)
                )
            ]
            if fills
            else []
        )
        allocated = [statement for table in tables for statement in table.allocate()]
        return self.frame.function(*allocated, *filled, body)


def _compute(workload: Workload, layout: Layout, traits: TargetTraits) -> PrimFunc:
    op, sampler = workload.op, Sampler(workload, layout)
    frame, wide, columns = sampler.frame, sampler.wide, sampler.columns
    lanes = layout.block or lanes_of(traits, wide, op.output.dtype)
    width = op.output.shape[3]

    def blocked_row(n: PrimExpr, c: PrimExpr, y: PrimExpr) -> Stmt:
        def store(x: PrimExpr, lane: PrimExpr) -> Stmt:
            return frame.finish(sampler.value(n, c, y, x, lane), [n, c, y, x, lane])

        return nest.serial(
            width, lambda x: nest.vectorized(lanes, lambda lane: store(x, lane)), "ow"
        )

    def plain_row(n: PrimExpr, c: PrimExpr, y: PrimExpr) -> Stmt | None:
        if columns.taps.count == 1:

            def copy(x: PrimExpr) -> Stmt:
                return frame.finish(sampler.value(n, c, y, x), [n, c, y, x])

            return over_vectors(width, lanes, copy)
        # Rows are combined first, by contiguous vectors; only their result is gathered from.
        source_width = op.inputs[0].shape[3]
        line = scratch((source_width,), wide, "line")

        def combine(w: PrimExpr) -> Stmt:
            value = sampler.rows.combined(y, lambda h: load_as(frame.inputs[0], wide, n, c, h, w))
            return nest.write(line, value, w)

        def store(x: PrimExpr) -> Stmt:
            value = columns.combined(x, lambda w: nest.read(line, w))
            return frame.finish(of_type(value, op.output), [n, c, y, x])

        return nest.sequence(
            nest.allocate(line),
            over_vectors(source_width, lanes, combine),
            over_vectors(width, lanes, store),
        )

    row = blocked_row if layout.block else plain_row
    return sampler.function(parallel_grid(frame.shape[:3], row))
