"""scan: running sums and products along an axis, from either end, with or without the element.

Lines along the axis are independent and shared among the workers; where they lie side by side in
memory, vectors take several at once. Each line is added up in order, float16 in float32, so that
the error against float64 is that of adding in sequence: n·2⁻²⁴ of the largest partial result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.plain import Parameters, plain_candidate, rows_of
from schedules.scalar_values import cast
from schedules.vectors import accumulator, lanes_of, load_as, over_vectors, parallel, scratch

_BLOCK = 16
"""Vectors of lines that one task takes."""

FUNCTIONS: Mapping[str, tuple[int, Callable[[PrimExpr, PrimExpr], PrimExpr]]] = {
    "sum": (0, lambda a, b: a + b),
    "prod": (1, lambda a, b: a * b),
}
"""What a total begins with and how an element joins it."""


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate."""
    op = workload.op
    if op.kind != "scan":
        return ()
    compute = partial(_compute, workload, traits)
    return (plain_candidate("scan.lines", workload, compute, 2.0 * op.output.elements),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op, to = workload.op, Parameters(workload)
    outer, length, inner = rows_of(op.output, op.attr("axis"))
    start, combine = FUNCTIONS[op.attr("function")]
    dtype, wide = op.output.dtype, accumulator(op.output.dtype)
    lanes = lanes_of(traits, wide)
    [source], [target] = to.inputs, to.outputs
    shape = op.output.shape
    split = nest.Split.of(inner, _BLOCK * lanes)

    def lines(o: PrimExpr, first: PrimExpr, count: int) -> Stmt:
        total: Buffer = scratch((count,), wide, "total")

        def each(body: Callable[[PrimExpr], Stmt]) -> Stmt:
            stmt = over_vectors(count, lanes, body)
            assert stmt is not None
            return stmt

        def step(t: PrimExpr) -> Stmt:
            j = nest.integer(length - 1) - t if op.attr("reverse") else t

            def at(i: PrimExpr) -> tuple[PrimExpr, ...]:
                return nest.unflatten((o * length + j) * inner + (first + i), shape)

            def add(i: PrimExpr) -> Stmt:
                more = combine(nest.read(total, i), load_as(source, wide, *at(i)))
                return nest.write(total, more, i)

            def store(i: PrimExpr) -> Stmt:
                return nest.write(target, cast(nest.read(total, i), dtype), *at(i))

            parts = (each(store), each(add)) if op.attr("exclusive") else (each(add), each(store))
            return nest.sequence(*parts)

        return nest.sequence(
            nest.allocate(total),
            each(lambda i: nest.write(total, tirx.const(start, wide), i)),
            nest.serial(length, step, "step"),
        )

    def task(t: PrimExpr) -> Stmt:
        o, block = nest.unflatten(t, (outer, split.count))
        return split.part(block, lambda first, count: lines(o, first, count))

    return to.function(parallel(outer * split.count, task))
