"""softmax and log_softmax along any axis on a device, numerically safe; see gpu/rows.py.

The error against float64 is below 1e-6 of the largest magnitude of the output. A slice that is all
−inf, or holds NaN or +inf, gives NaN, as the definition does.
"""

from __future__ import annotations

from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.gpu.rows import Row, Total, add, exponential, rows
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.scalar_math import log
from schedules.scalar_values import lowest
from schedules.vectors import Frame, accumulator, candidate, load_as, of_type


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate."""
    kind = workload.op.kind
    if kind not in ("softmax", "log_softmax") or not workload.output.elements:
        return ()
    compute = partial(_compute, workload, traits)
    return (candidate(f"gpu.{kind}", workload, (PLAIN,), PLAIN, compute, flops_per_element=20.0),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    assert traits.gpu is not None
    op = workload.op
    shape, axis = op.output.shape, op.attr("axis")
    frame = Frame(workload, (PLAIN,), PLAIN)
    dtype = accumulator(op.output.dtype)
    others = (*shape[:axis], *shape[axis + 1 :])

    def one(number: PrimExpr, row: Row) -> Stmt:
        rest = nest.unflatten(number, others)

        def at(i: PrimExpr) -> tuple[PrimExpr, ...]:
            return (*rest[:axis], i, *rest[axis:])

        def read(i: PrimExpr) -> PrimExpr:
            return load_as(frame.inputs[0], dtype, *at(i))

        largest = Total(row, dtype, lowest(dtype), tirx.max)
        total = Total(row, dtype, tirx.const(0, dtype), add)

        def power(i: PrimExpr) -> PrimExpr:
            return exponential(read(i) - largest.result, dtype)

        def store(i: PrimExpr) -> Stmt:
            if op.kind == "softmax":
                value = power(i) / total.result
            else:
                sum_ = total.result
                logarithm = (
                    log(sum_) if dtype == "float32" else tirx.call_pure_extern(dtype, "log", sum_)
                )
                value = read(i) - largest.result - logarithm
            return frame.finish(of_type(value, op.output), at(i))

        return nest.sequence(largest.reduce(read), total.reduce(power), row.each(store))

    return frame.function(rows(prod(others), shape[axis], traits.gpu, one))
