"""Counts of n-grams, with gaps, in rows of integers: brute force over rows and n-grams."""

from __future__ import annotations

from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.scalar_values import cast
from schedules.vectors import Frame, candidate, parallel_grid


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major."""
    op = workload.op
    if op.kind != "count_ngrams":
        return ()
    gaps = int(op.attr("skips")) + 1
    compute = partial(_compute, workload)
    per_output = 2.0 * op.inputs[0].shape[1] * gaps * op.inputs[1].shape[1]
    layouts = (PLAIN,) * len(op.inputs)
    return (candidate("count_ngrams", workload, layouts, PLAIN, compute, per_output),)


def _compute(workload: Workload) -> PrimFunc:
    op = workload.op
    frame = Frame(workload, (PLAIN, PLAIN), PLAIN)
    x, pool = frame.inputs
    rows, columns = op.inputs[0].shape
    grams, size = op.inputs[1].shape
    # A gap means nothing to single tokens.
    steps = int(op.attr("skips")) + 1 if size > 1 else 1

    def one(row: PrimExpr, gram: PrimExpr) -> Stmt:
        count = nest.buffer((1,), "int32", "count", "local")

        def at(step: int, place: PrimExpr) -> Stmt:
            same = tirx.const(True, "bool")
            for i in range(size):
                same = tirx.all(
                    same, nest.read(x, row, place + i * step) == nest.read(pool, gram, i)
                )
            return nest.write(count, nest.read(count, 0) + tirx.Cast("int32", same), 0)

        def spread(step: int) -> Stmt | None:
            places = columns - (size - 1) * step
            return nest.serial(places, partial(at, step), "place") if places > 0 else None

        return nest.sequence(
            nest.allocate(count),
            nest.write(count, nest.integer(0), 0),
            *[spread(step) for step in range(1, steps + 1)],
            frame.finish(cast(nest.read(count, 0), op.output.dtype), [row, gram]),
        )

    return frame.function(parallel_grid((rows, grams), one))
