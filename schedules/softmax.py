"""softmax and log_softmax along any axis, numerically safe.

Three passes over a slice that stays in cache: its maximum, the exponentials (kept in scratch) and
their sum, the scaling with the epilogue. Along the last axis vectors run over the slice; along
another axis over neighbouring slices. The error against float64 is below 1e-6 of the largest
magnitude of the output.
A slice that is all −inf, or holds NaN or +inf, gives NaN, as the definition does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.scalar_math import exp_of_negative, log
from schedules.scalar_values import lowest
from schedules.vectors import (
    Frame,
    RowReduction,
    accumulator,
    blocks_of,
    candidate,
    lanes_of,
    let_vars,
    load_as,
    of_type,
    over_vectors,
    parallel,
    parallel_grid,
    scratch,
)

_RUN = 64  # terms added in a row


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major only: an axis of channels would have to cross the blocks."""
    kind = workload.op.kind
    if kind not in ("softmax", "log_softmax"):
        return ()
    compute = partial(_compute, workload, traits)
    return (candidate(kind, workload, (PLAIN,), PLAIN, compute, flops_per_element=20.0),)


def _exp(x: PrimExpr, dtype: str) -> PrimExpr:
    return exp_of_negative(x) if dtype == "float32" else tirx.call_pure_extern(dtype, "exp", x)


def _log(x: PrimExpr, dtype: str) -> PrimExpr:
    return log(x) if dtype == "float32" else tirx.call_pure_extern(dtype, "log", x)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    shape = op.output.shape
    axis = op.attr("axis")
    frame = Frame(workload, (PLAIN,), PLAIN)
    dtype = accumulator(op.output.dtype)
    softmax = _Softmax(frame, dtype, lanes_of(traits, dtype))
    outer, length, inner = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])

    def index(o: PrimExpr, i: PrimExpr, r: PrimExpr) -> list[PrimExpr]:
        before = nest.unflatten(o, shape[:axis]) if axis else ()
        after = nest.unflatten(r, shape[axis + 1 :]) if axis + 1 < len(shape) else ()
        return [*before, i, *after]

    if inner == 1:
        zero = nest.integer(0)
        return frame.function(
            parallel(outer, lambda o: softmax.row(length, lambda i: index(o, i, zero)))
        )
    nests = [
        parallel_grid(
            (outer, count),
            lambda o, run, start=start, size=size: softmax.columns(
                length, size, lambda i, x: index(o, i, run * size + (x + start))
            ),
        )
        for start, count, size in blocks_of(inner, softmax.lanes)
    ]
    return frame.function(*nests)


class _Softmax:
    def __init__(self, frame: Frame, dtype: str, lanes: int) -> None:
        self.frame, self.dtype, self.lanes = frame, dtype, lanes
        self.log = frame.workload.op.kind == "log_softmax"

    def _read(self, at: Sequence[PrimExpr]) -> PrimExpr:
        return load_as(self.frame.inputs[0], self.dtype, *at)

    def _store(self, value: PrimExpr, at: Sequence[PrimExpr]) -> Stmt:
        return self.frame.finish(of_type(value, self.frame.workload.op.output), at)

    def row(self, length: int, index: Callable[[PrimExpr], list[PrimExpr]]) -> Stmt:
        """One contiguous slice."""
        largest = RowReduction(self.dtype, self.lanes, lowest(self.dtype), tirx.max)
        total = RowReduction(self.dtype, self.lanes, tirx.const(0, self.dtype), lambda a, b: a + b)
        kept = scratch((length,), self.dtype, "kept")

        def finish(top: PrimExpr) -> Stmt:
            def keep(i: PrimExpr) -> Stmt:
                shifted = self._read(index(i)) - top
                return nest.write(kept, shifted if self.log else _exp(shifted, self.dtype), i)

            def term(i: PrimExpr) -> PrimExpr:
                value = nest.read(kept, i)
                return _exp(value, self.dtype) if self.log else value

            def scale(factor: PrimExpr) -> Stmt | None:
                def store(i: PrimExpr) -> Stmt:
                    value = nest.read(kept, i)
                    return self._store(value - factor if self.log else value * factor, index(i))

                return over_vectors(length, self.lanes, store)

            one = tirx.const(1, self.dtype)
            result = total.result
            factor = _log(result, self.dtype) if self.log else one / result
            return nest.sequence(
                over_vectors(length, self.lanes, keep, unroll=2),
                total.start(),
                total.add(length, term),
                total.finish(),
                let_vars([factor], scale),
            )

        return nest.sequence(
            nest.allocate(kept),
            largest.start(),
            largest.add(length, lambda i: self._read(index(i))),
            largest.finish(),
            let_vars([largest.result], finish),
        )

    def columns(
        self, length: int, size: int, index: Callable[[PrimExpr, PrimExpr], list[PrimExpr]]
    ) -> Stmt:
        """`size` neighbouring slices across the contiguous axis."""
        kept = scratch((length, size), self.dtype, "kept")
        largest = scratch((size,), self.dtype, "largest")
        total = scratch((size,), self.dtype, "total")
        zero = tirx.const(0, self.dtype)

        def each(body: Callable[[PrimExpr], Stmt]) -> Stmt:
            return nest.vectorized(size, body)

        def over(body: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
            return nest.serial(length, lambda i: each(lambda x: body(i, x)))

        def top(i: PrimExpr, x: PrimExpr) -> Stmt:
            # tirx.max keeps its second argument where one is NaN; the sum then is NaN anyway.
            return nest.write(largest, tirx.max(nest.read(largest, x), self._read(index(i, x))), x)

        def keep(i: PrimExpr, x: PrimExpr) -> Stmt:
            shifted = self._read(index(i, x)) - nest.read(largest, x)
            return nest.write(kept, shifted if self.log else _exp(shifted, self.dtype), i, x)

        part = scratch((size,), self.dtype, "part")

        def add(i: PrimExpr, x: PrimExpr) -> Stmt:
            value = nest.read(kept, i, x)
            value = _exp(value, self.dtype) if self.log else value
            return nest.write(part, nest.read(part, x) + value, x)

        def add_run(start: PrimExpr, count: int) -> Stmt:
            # Sums of short sums: one long chain of additions would lose digits.
            return nest.sequence(
                each(lambda x: nest.write(part, zero, x)),
                nest.serial(count, lambda i: each(lambda x: add(start + i, x))),
                each(lambda x: nest.write(total, nest.read(total, x) + nest.read(part, x), x)),
            )

        def factor(x: PrimExpr) -> Stmt:
            result = nest.read(total, x)
            one = tirx.const(1, self.dtype)
            return nest.write(total, _log(result, self.dtype) if self.log else one / result, x)

        def store(i: PrimExpr, x: PrimExpr) -> Stmt:
            value, scale = nest.read(kept, i, x), nest.read(total, x)
            return self._store(value - scale if self.log else value * scale, index(i, x))

        return nest.sequence(
            nest.allocate(kept, largest, total, part),
            each(lambda x: nest.write(largest, lowest(self.dtype), x)),
            each(lambda x: nest.write(total, zero, x)),
            over(top),
            over(keep),
            *[
                nest.serial(count, lambda r, at=at, run=run: add_run(r * run + at, run), "run")  # type: ignore[misc]
                for at, count, run in blocks_of(length, _RUN)
            ],
            each(factor),
            over(store),
        )
