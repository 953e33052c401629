"""Reductions over any axes on a device: sum, mean, max, min, prod; see gpu/rows.py.

Where the innermost axis is reduced or results are few, a block reduces the elements of one result;
else each thread does those of its own, and neighbours read neighbouring elements. Sums of float16
are kept in float32; max and min give NaN where an element is NaN. Error of sums against float64
below 1e-6 of the sum of magnitudes for up to 10⁵ terms.
"""

from __future__ import annotations

from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.gpu.rows import Row, Total, rows
from schedules.gpu.threads import grid
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.reduce import combination
from schedules.vectors import Frame, accumulator, candidate, load_as, of_type

_THREADS = 128
_FEW_RESULTS = 512


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate."""
    op = workload.op
    if op.kind != "reduce" or not op.inputs[0].elements:
        return ()
    compute = partial(_compute, workload, traits)
    return (candidate("gpu.reduce", workload, (PLAIN,), PLAIN, compute),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    assert traits.gpu is not None
    op, gpu = workload.op, traits.gpu
    shape, axes = op.inputs[0].shape, tuple(op.attr("axes"))
    frame = Frame(workload, (PLAIN,), PLAIN)
    dtype = accumulator(op.output.dtype)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    count, length = prod(shape[a] for a in kept), prod(shape[a] for a in axes)
    identity, combine = combination(op.attr("function"), dtype)

    def read(place: tuple[PrimExpr, ...], i: PrimExpr) -> PrimExpr:
        index: list[PrimExpr] = [nest.integer(0)] * len(shape)
        for axis, value in zip(kept, place, strict=True):
            index[axis] = value
        for axis, value in zip(axes, nest.unflatten(i, [shape[a] for a in axes]), strict=True):
            index[axis] = value
        return load_as(frame.inputs[0], dtype, *index)

    def store(place: tuple[PrimExpr, ...], value: PrimExpr) -> Stmt:
        if op.attr("function") == "mean":
            if dtype.startswith("float"):
                value = value * tirx.const(1 / length, dtype)
            else:
                value = tirx.truncdiv(value, tirx.const(length, dtype))
        index: list[PrimExpr] = list(place)
        if op.attr("keepdims"):
            index = [nest.integer(0)] * len(shape)
            for axis, each in zip(kept, place, strict=True):
                index[axis] = each
        return frame.finish(of_type(value, op.output), index)

    def place_of(number: PrimExpr) -> tuple[PrimExpr, ...]:
        return nest.unflatten(number, [shape[a] for a in kept]) if kept else ()

    def one(number: PrimExpr, row: Row) -> Stmt:
        place = place_of(number)
        total = Total(row, dtype, identity, combine)
        stored = store(place, total.result)
        first = stored if row.threads == 1 else tirx.IfThenElse(row.thread == 0, stored, None)
        return nest.sequence(total.reduce(lambda i: read(place, i)), first)

    def alone(block: PrimExpr, thread: PrimExpr) -> Stmt:
        number = block * threads + thread
        place = place_of(number)
        total = Total(Row(length, 1, True, thread), dtype, identity, combine)
        body = nest.sequence(total.reduce(lambda i: read(place, i)), store(place, total.result))
        return body if count % threads == 0 else tirx.IfThenElse(number < count, body, None)

    last = max((a for a in range(len(shape)) if shape[a] > 1), default=0)
    if last in axes or (count < _FEW_RESULTS and not gpu.loops):
        return frame.function(rows(count, length, gpu, one))
    threads = min(_THREADS, gpu.max_threads, count)
    return frame.function(grid(-(-count // threads), threads, alone))
