"""layer_norm and rms_norm over trailing axes on a device; see gpu/rows.py.

Two reductions (the mean, then the squared deviations from it), so that a large mean costs no
accuracy. Error against float64 below 2e-6 of the largest output for rows up to 10⁴ elements.
"""

from __future__ import annotations

from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.gpu.rows import Row, Total, add, rows
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.vectors import Frame, accumulator, candidate, let_vars, load_as, of_type


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate."""
    op = workload.op
    if op.kind not in ("layer_norm", "rms_norm") or not workload.output.elements:
        return ()
    inputs = (PLAIN,) * len(op.inputs)
    compute = partial(_compute, workload, traits)
    return (candidate(f"gpu.{op.kind}", workload, inputs, PLAIN, compute, flops_per_element=8.0),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    assert traits.gpu is not None
    op = workload.op
    shape, split = op.output.shape, min(op.attr("axes"))
    count, length = prod(shape[:split]), prod(shape[split:])
    dtype = accumulator(op.output.dtype)
    frame = Frame(workload, (PLAIN,) * len(op.inputs), PLAIN)
    share, zero = tirx.const(1 / length, dtype), tirx.const(0, dtype)
    epsilon = tirx.const(op.attr("epsilon"), dtype)

    def one(number: PrimExpr, row: Row) -> Stmt:
        outer = nest.unflatten(number, shape[:split]) if split else ()

        def at(i: PrimExpr) -> tuple[PrimExpr, ...]:
            return (*outer, *nest.unflatten(i, shape[split:]))

        def read(i: PrimExpr) -> PrimExpr:
            return load_as(frame.inputs[0], dtype, *at(i))

        def parameter(which: int, i: PrimExpr) -> PrimExpr:
            own = op.inputs[which].shape
            return load_as(frame.inputs[which], dtype, *nest.unflatten(i, own))

        total, squares = Total(row, dtype, zero, add), Total(row, dtype, zero, add)

        def centred(i: PrimExpr) -> PrimExpr:
            return read(i) if op.kind == "rms_norm" else read(i) - total.result * share

        def scaled(factor: PrimExpr) -> Stmt:
            def store(i: PrimExpr) -> Stmt:
                value = centred(i) * factor * parameter(1, i)
                if len(op.inputs) > 2:
                    value = value + parameter(2, i)
                return frame.finish(of_type(value, op.output), at(i))

            return row.each(store)

        root = tirx.sqrt(squares.result * share + epsilon)
        return nest.sequence(
            None if op.kind == "rms_norm" else total.reduce(read),
            squares.reduce(lambda i: centred(i) * centred(i)),
            let_vars([tirx.const(1, dtype) / root], scaled),
        )

    return frame.function(rows(count, length, traits.gpu, one))
