"""max_pool_indices: the maxima of windows and where each was, for any number of spatial axes.

The position counts in the whole input, its spatial axes in row-major order or, with `column_major`,
the first axis fastest. The first of equal elements in the window's order wins. Exact.
"""

from __future__ import annotations

from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.plain import Parameters, plain_candidate, read_flat
from schedules.scalar_values import cast
from schedules.sorting import Scalar, key_dtype, key_of
from schedules.vectors import parallel_grid


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate."""
    op = workload.op
    if op.kind != "max_pool_indices":
        return ()
    operations = 6.0 * op.output.elements * prod(op.attr("kernel"))
    compute = partial(_compute, workload)
    return (plain_candidate("max_pool_indices.windows", workload, compute, operations),)


def _compute(workload: Workload) -> PrimFunc:
    op, to = workload.op, Parameters(workload)
    [source], [values, positions] = to.inputs, to.outputs
    dtype, wide = op.output.dtype, key_dtype(op.output.dtype)
    kernel, strides = op.attr("kernel"), op.attr("strides")
    before, dilation = op.attr("before"), op.attr("dilation")
    sizes, shape = op.inputs[0].shape[2:], op.output.shape
    planes, rank = prod(shape[:2]), len(sizes)

    def window(plane: PrimExpr, lead: tuple[PrimExpr, ...], last: PrimExpr) -> Stmt:
        out = (*lead, last)
        best, at = Scalar(wide, "best"), Scalar("int32", "at")

        def look(taps: tuple[PrimExpr, ...]) -> Stmt:
            place = [out[d] * strides[d] + taps[d] * dilation[d] - before[d] for d in range(rank)]
            inside = tirx.all(
                *[place[d] >= 0 for d in range(rank)], *[place[d] < sizes[d] for d in range(rank)]
            )
            flat = plane
            for d in range(rank):
                flat = flat * sizes[d] + tirx.max(tirx.min(place[d], sizes[d] - 1), 0)
            key = key_of(read_flat(source, flat), dtype)
            better = tirx.all(inside, tirx.any(at.get() < 0, key > best.get()))
            return tirx.IfThenElse(better, nest.sequence(best.set(key), at.set(flat)), None)

        def scan(axis: int, taps: tuple[PrimExpr, ...]) -> Stmt:
            if axis == rank:
                return look(taps)
            return nest.serial(kernel[axis], lambda t: scan(axis + 1, (*taps, t)), f"k{axis}")

        flat_out = plane
        for d in range(rank):
            flat_out = flat_out * shape[2 + d] + out[d]
        index = nest.unflatten(flat_out, shape)
        found = tirx.max(at.get(), nest.integer(0))
        return nest.sequence(
            nest.allocate(best.buffer, at.buffer),
            at.set(-1),
            best.set(0),
            scan(0, ()),
            nest.write(values, read_flat(source, found), *index),
            nest.write(positions, cast(_ordered(found), "int64"), *index),
        )

    def _ordered(flat: PrimExpr) -> PrimExpr:
        if not op.attr("column_major"):
            return flat
        plane, *place = nest.unflatten(flat, (planes, *sizes))
        result = plane
        for d in reversed(range(rank)):
            result = result * sizes[d] + place[d]
        return result

    if not op.output.elements:
        raise ValueError("a pooling without results has no kernel")

    def row(plane: PrimExpr, *lead: PrimExpr) -> Stmt:
        return nest.serial(shape[-1], lambda last: window(plane, lead, last), "x")

    return to.function(parallel_grid((planes, *shape[2:-1]), row))
