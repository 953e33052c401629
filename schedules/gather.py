"""gather_elements, gather_nd, reverse_sequence, tensor_scatter: each element read from one place.

Indices count from the end where negative; what is out of range reads the nearest element, so that
no kernel reads outside of its inputs. Data is only moved; epilogues are fused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.movement import rows
from schedules.nest import Buffer
from schedules.scalar_values import cast
from schedules.scatter import from_front
from schedules.vectors import Frame, candidate

Index = Sequence[PrimExpr]
Value = Callable[[Workload, Sequence[Buffer], Index], PrimExpr]


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate of each kind."""
    op = workload.op
    if op.kind not in _KINDS:
        return ()
    layouts = (PLAIN,) * len(op.inputs)
    compute = partial(_compute, workload, traits)
    return (candidate(f"{op.kind}.rows", workload, layouts, PLAIN, compute, 4.0),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    split, value = _KINDS[op.kind]
    frame = Frame(workload, (PLAIN,) * len(op.inputs), PLAIN)

    def element(index: Index) -> PrimExpr:
        if any(not sig.elements for sig in op.inputs[:1]):
            return tirx.const(0, op.output.dtype)
        return value(workload, frame.inputs, index)

    lead = min(split(workload), max(0, len(op.output.shape) - 1))
    return frame.function(*rows(frame, traits, lead, element))


def _inside(index: PrimExpr, size: int) -> PrimExpr:
    """An index in range, as int32."""
    found = from_front(index, size)
    dtype = str(found.ty.dtype)
    low, high = tirx.const(0, dtype), tirx.const(max(size - 1, 0), dtype)
    return cast(tirx.min(tirx.max(found, low), high), "int32")


def _gather_elements(workload: Workload, inputs: Sequence[Buffer], index: Index) -> PrimExpr:
    data, indices = inputs
    axis = workload.op.attr("axis")
    at = _inside(nest.read(indices, *index), workload.op.inputs[0].shape[axis])
    return nest.read(data, *index[:axis], at, *index[axis + 1 :])


def _tuples(workload: Workload) -> int:
    """Leading axes of gather_nd's output that come from the index tuples."""
    return len(workload.op.inputs[1].shape) - 1


def _gather_nd(workload: Workload, inputs: Sequence[Buffer], index: Index) -> PrimExpr:
    data, indices = inputs
    op = workload.op
    batch, lead = op.attr("batch_dims"), _tuples(workload)
    depth = op.inputs[1].shape[-1]
    at = [
        _inside(nest.read(indices, *index[:lead], d), op.inputs[0].shape[batch + d])
        for d in range(depth)
    ]
    return nest.read(data, *index[:batch], *at, *index[lead:])


def _reverse_sequence(workload: Workload, inputs: Sequence[Buffer], index: Index) -> PrimExpr:
    data, lengths = inputs
    batch, time = workload.op.attr("batch_axis"), workload.op.attr("time_axis")
    steps = workload.op.output.shape[time]
    length = cast(nest.read(lengths, index[batch]), "int32")
    length = tirx.min(tirx.max(length, nest.integer(0)), nest.integer(steps))
    t = index[time]
    at = tirx.Select(t < length, length - 1 - t, t)
    return nest.read(data, *index[:time], at, *index[time + 1 :])


def _tensor_scatter(workload: Workload, inputs: Sequence[Buffer], index: Index) -> PrimExpr:
    past, update, starts = inputs
    op, axis = workload.op, workload.op.attr("axis")
    size, count = op.output.shape[axis], op.inputs[1].shape[axis]
    start = nest.read(starts, index[0])
    wide = str(start.ty.dtype)
    step = cast(index[axis], wide) - start
    if op.attr("circular"):
        step = tirx.floormod(step, tirx.const(size, wide))
    zero, end = tirx.const(0, wide), tirx.const(count, wide)
    new = tirx.all(step >= zero, step < end)
    at = cast(tirx.min(tirx.max(step, zero), end - 1), "int32")
    return tirx.Select(
        new, nest.read(update, *index[:axis], at, *index[axis + 1 :]), nest.read(past, *index)
    )


def _last_row(workload: Workload) -> int:
    return len(workload.op.output.shape) - 1


def _behind(*names: str) -> Callable[[Workload], int]:
    """As many leading axes as lie before the last of the named ones, and that one."""
    return lambda workload: 1 + max(int(workload.op.attr(name)) for name in names)


_KINDS: Mapping[str, tuple[Callable[[Workload], int], Value]] = {
    "gather_elements": (_last_row, _gather_elements),
    "gather_nd": (_tuples, _gather_nd),
    "reverse_sequence": (_behind("batch_axis", "time_axis"), _reverse_sequence),
    "tensor_scatter": (_behind("axis"), _tensor_scatter),
}
