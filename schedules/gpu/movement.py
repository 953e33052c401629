"""Kernels that only move data on a device: concat, slice, pad, take. Exact.

A thread for each element of the result, so that writes are of neighbours whatever the shape, and
reads wherever the innermost axis is kept. On a CPU these are rows that a worker copies each
(movement.py), of which there may be few.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.gpu.elements import Index, each_element
from schedules.interface import (
    PLAIN,
    Candidate,
    Op,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.movement import SOURCES, slice_value, take_value
from schedules.nest import Stmt
from schedules.vectors import Frame, candidate

_MOST_JOINED = 16
"""Inputs of a concat, among which each thread looks for its own."""


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate where threads are threads."""
    op, gpu = workload.op, traits.gpu
    value = _VALUES.get(op.kind)
    if value is None or gpu is None or gpu.loops or not op.output.elements:
        return ()
    if op.kind == "concat" and len(op.inputs) > _MOST_JOINED:
        return ()
    layouts = (PLAIN,) * len(op.inputs)
    compute = partial(_compute, workload, value, traits)
    return (candidate(f"gpu.{op.kind}", workload, layouts, PLAIN, compute, 0.0),)


def _compute(
    workload: Workload, value: Callable[[Frame, Op, Index], PrimExpr], traits: TargetTraits
) -> PrimFunc:
    frame = Frame(workload, (PLAIN,) * len(workload.op.inputs), PLAIN)

    def element(index: Index) -> Stmt:
        return frame.finish(value(frame, workload.op, index), index)

    return frame.function(each_element(workload.output.shape, traits, element))


def _joined(frame: Frame, op: Op, index: Index) -> PrimExpr:
    axis = op.attr("axis")
    found: PrimExpr | None = None
    end = op.output.shape[axis]
    for buffer, sig in zip(frame.inputs[::-1], op.inputs[::-1], strict=True):
        size = sig.shape[axis]
        if not size:
            continue
        start, end = end - size, end - size
        value = nest.read(buffer, *index[:axis], index[axis] - start, *index[axis + 1 :])
        behind = start + size
        found = value if found is None else tirx.if_then_else(index[axis] < behind, value, found)
    return found


def _padded(frame: Frame, op: Op, index: Index) -> PrimExpr:
    mode, before, shape = op.attr("mode"), op.attr("before"), op.inputs[0].shape
    at, tests = list(index), []
    for axis, size in enumerate(shape):
        if not before[axis] and size == op.output.shape[axis]:
            continue
        at[axis] = SOURCES[mode](index[axis] - before[axis], size)
        tests += [at[axis] >= 0, at[axis] < size]
    value = nest.read(frame.inputs[0], *at)
    if mode != "constant" or not tests:
        return value
    if len(frame.inputs) > 1:
        fill = nest.read(frame.inputs[1], *[0] * len(op.inputs[1].shape))
    else:
        fill = tirx.const(op.attr("value"), op.output.dtype)
    return tirx.if_then_else(tirx.all(*tests), value, fill)


def _sliced(frame: Frame, op: Op, index: Index) -> PrimExpr:
    return slice_value(frame, op.attr("begin"), op.attr("strides"), index)


def _taken(frame: Frame, op: Op, index: Index) -> PrimExpr:
    return take_value(frame, index)


_VALUES: dict[str, Callable[[Frame, Op, Index], PrimExpr]] = {
    "concat": _joined,
    "slice": _sliced,
    "pad": _padded,
    "take": _taken,
}
"""(frame, op, index) → the element of the result, by kind."""
