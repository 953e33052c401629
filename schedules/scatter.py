"""scatter_elements and scatter_nd: a copy of a tensor with elements or slices replaced or combined.

Where several updates meet one element they are applied in their order, whatever the number of
workers. scatter_elements: updates with different coordinates off the axis never meet, so those are
shared; along the axis they are applied in turn. scatter_nd: each worker copies a range of
destinations and then applies all updates that fall into it. Indices count from the end where
negative; those out of range are left out. maximum and minimum propagate NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.plain import (
    Parameters,
    copy_tensor,
    plain_candidate,
    read_flat,
    workers,
    write_flat,
)
from schedules.scalar_binary import BINARY
from schedules.scalar_values import cast
from schedules.sorting import Scalar
from schedules.vectors import lanes_of, over_vectors, parallel

Combine = Callable[[PrimExpr, PrimExpr], PrimExpr]

_FUNCTIONS: Mapping[str, str] = {
    "add": "add",
    "mul": "multiply",
    "max": "maximum",
    "min": "minimum",
}
_OF_BOOL: Mapping[str, Combine] = {
    "add": tirx.any,
    "max": tirx.any,
    "mul": tirx.all,
    "min": tirx.all,
}


def elements_candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """scatter_elements."""
    if workload.op.kind != "scatter_elements":
        return ()
    return _offer("scatter_elements.lines", workload, partial(_elements, workload, traits))


def nd_candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """scatter_nd."""
    if workload.op.kind != "scatter_nd":
        return ()
    return _offer("scatter_nd.ranges", workload, partial(_nd, workload, traits))


def _offer(name: str, workload: Workload, compute: Callable[[], PrimFunc]) -> tuple[Candidate, ...]:
    op = workload.op
    operations = 4.0 * op.inputs[2].elements + 0.1 * op.output.elements
    return (plain_candidate(name, workload, compute, operations, 2),)


def _combined(workload: Workload, old: PrimExpr, new: PrimExpr) -> PrimExpr:
    reduction, dtype = workload.op.attr("reduction"), workload.op.output.dtype
    if reduction == "none":
        return new
    if dtype == "bool":
        return _OF_BOOL[reduction](old, new)
    return cast(BINARY[_FUNCTIONS[reduction]](old, new), dtype)


def from_front(index: PrimExpr, size: int) -> PrimExpr:
    """An index counted from the front, in its own type."""
    dtype = str(index.ty.dtype)
    if dtype.startswith("uint"):
        return index
    return tirx.Select(index < tirx.const(0, dtype), index + tirx.const(size, dtype), index)


def _elements(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op, to = workload.op, Parameters(workload)
    data, indices, updates = to.inputs
    [target] = to.outputs
    axis, shape = op.attr("axis"), op.inputs[1].shape
    size = op.output.shape[axis]
    lead, trail = shape[:axis], shape[axis + 1 :]
    copied = copy_tensor(data, target, lanes_of(traits, op.output.dtype))
    if not prod(shape):
        return to.function(copied)
    inner = prod(trail)
    tasks = max(1, 4 * traits.threads // max(1, prod(lead)))
    split = nest.Split.of(inner, max(16, -(-inner // tasks)))

    def line(o: PrimExpr, first: PrimExpr, count: int) -> Stmt:
        at = Scalar("int32", "at")

        def update(j: PrimExpr, i: PrimExpr) -> Stmt:
            before, behind = nest.unflatten(o, lead), nest.unflatten(first + i, trail)
            index = (*before, j, *behind)
            found = from_front(nest.read(indices, *index), size)
            dtype = str(found.ty.dtype)
            place = (*before, at.get(), *behind)
            value = _combined(workload, nest.read(target, *place), nest.read(updates, *index))
            valid = tirx.all(found >= tirx.const(0, dtype), found < tirx.const(size, dtype))
            return tirx.IfThenElse(
                valid,
                nest.sequence(at.set(cast(found, "int32")), nest.write(target, value, *place)),
                None,
            )

        return nest.sequence(
            nest.allocate(at.buffer),
            nest.serial(
                shape[axis],
                lambda j: nest.serial(count, lambda i: update(j, i), "i"),
                "j",
            ),
        )

    def task(t: PrimExpr) -> Stmt:
        o, block = nest.unflatten(t, (prod(lead), split.count))
        return split.part(block, lambda first, count: line(o, first, count))

    return to.function(copied, parallel(prod(lead) * split.count, task))


def _nd(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op, to = workload.op, Parameters(workload)
    data, indices, updates = to.inputs
    [target] = to.outputs
    depth = op.inputs[1].shape[-1]
    sizes, length = op.output.shape[:depth], prod(op.output.shape[depth:])
    rows, tuples = prod(sizes), prod(op.inputs[1].shape[:-1])
    lanes = lanes_of(traits, op.output.dtype)
    split = nest.Split.of(rows, -(-rows // workers(traits, op.output.elements)))

    def vectors(count: int, body: Callable[[PrimExpr], Stmt]) -> Stmt:
        stmt = over_vectors(count, lanes, body)
        assert stmt is not None
        return stmt

    def part(start: PrimExpr, count: int) -> Stmt:
        row, valid = Scalar("int32", "row"), Scalar("bool", "valid")

        def copy(i: PrimExpr) -> Stmt:
            at = start * length + i
            return write_flat(target, read_flat(data, at), at)

        def coordinate(t: PrimExpr, d: int) -> Stmt:
            index = from_front(read_flat(indices, t * depth + d), sizes[d])
            dtype = str(index.ty.dtype)
            inside = tirx.all(index >= tirx.const(0, dtype), index < tirx.const(sizes[d], dtype))
            return nest.sequence(
                valid.set(tirx.all(valid.get(), inside)),
                row.set(row.get() * sizes[d] + tirx.Select(inside, cast(index, "int32"), 0)),
            )

        def update(t: PrimExpr) -> Stmt:
            def one(i: PrimExpr) -> Stmt:
                at = row.get() * length + i
                value = _combined(
                    workload, read_flat(target, at), read_flat(updates, t * length + i)
                )
                return write_flat(target, value, at)

            mine = tirx.all(valid.get(), row.get() >= start, row.get() < start + count)
            return nest.sequence(
                row.set(0),
                valid.set(tirx.const(True, "bool")),
                *[coordinate(t, d) for d in range(depth)],
                tirx.IfThenElse(mine, vectors(length, one), None),
            )

        return nest.sequence(
            nest.allocate(row.buffer, valid.buffer),
            vectors(count * length, copy),
            nest.serial(tuples, update, "t") if tuples else None,
        )

    return to.function(parallel(split.count, lambda p: split.part(p, part)))
