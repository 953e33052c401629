"""nonzero and compress: what a condition selects, in order, padded to all there could be.

The last output counts what was selected; elements behind it are zeros. Chunks are counted by all
workers, one adds the counts up, then all write their chunk's positions where the counts before it
end (Blelloch, "Prefix Sums and Their Applications", 1990). Exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.plain import (
    CHUNK,
    Parameters,
    alone,
    each_chunk,
    each_element,
    elements,
    plain_candidate,
    read_flat,
    rows_of,
    write_flat,
)
from schedules.scalar_values import cast
from schedules.sorting import Scalar, key_of
from schedules.vectors import lanes_of, over_vectors, parallel_grid

Holds = Callable[[PrimExpr], PrimExpr]
Take = Callable[[PrimExpr, PrimExpr], Stmt]


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate of each kind."""
    op = workload.op
    kinds = {"nonzero": _nonzero, "compress": _compress}
    if op.kind not in kinds:
        return ()
    compute = partial(kinds[op.kind], workload, traits)
    operations = 2.0 * sum(sig.elements for sig in op.inputs) + op.output.elements
    return (plain_candidate(f"{op.kind}.chunks", workload, compute, operations, 4),)


class Selection:
    """Finds which of `size` positions satisfy a condition, in order.

    Args:
        holds: whether a position does.
        total: where to put how many do, int64 of one element.
    """

    def __init__(self, size: int, holds: Holds, total: Buffer) -> None:
        self._size, self._holds, self._total = size, holds, total
        self._counts: Buffer = nest.buffer((max(1, -(-size // CHUNK)),), "int32", "counts")

    def nests(self, take: Take) -> list[Stmt]:
        """The nests; take(number, position) uses the selected position that comes `number`-th."""
        if not self._size:
            return [alone(nest.write(self._total, tirx.const(0, "int64"), 0))]
        return [
            nest.allocate(self._counts),
            each_chunk(self._size, self._count),
            self._add_up(),
            each_chunk(self._size, partial(self._take, take)),
        ]

    def _count(self, start: PrimExpr, end: PrimExpr) -> Stmt:
        count = Scalar("int32", "count")
        return nest.sequence(
            nest.allocate(count.buffer),
            count.set(0),
            nest.serial(
                end - start,
                lambda i: count.set(count.get() + cast(self._holds(start + i), "int32")),
            ),
            nest.write(self._counts, count.get(), _chunk(start)),
        )

    def _add_up(self) -> Stmt:
        before, here = Scalar("int32", "before"), Scalar("int32", "here")

        def chunk(c: PrimExpr) -> Stmt:
            return nest.sequence(
                here.set(nest.read(self._counts, c)),
                nest.write(self._counts, before.get(), c),
                before.set(before.get() + here.get()),
            )

        return alone(
            nest.sequence(
                before.set(0),
                nest.serial(elements(self._counts), chunk, "chunk"),
                nest.write(self._total, cast(before.get(), "int64"), 0),
            ),
            nest.allocate(before.buffer, here.buffer),
        )

    def _take(self, take: Take, start: PrimExpr, end: PrimExpr) -> Stmt:
        number = Scalar("int32", "number")

        def offer(i: PrimExpr) -> Stmt:
            found = nest.sequence(take(number.get(), start + i), number.set(number.get() + 1))
            return tirx.IfThenElse(self._holds(start + i), found, None)

        return nest.sequence(
            nest.allocate(number.buffer),
            number.set(nest.read(self._counts, _chunk(start))),
            nest.serial(end - start, offer),
        )


def _chunk(start: PrimExpr) -> PrimExpr:
    return tirx.floordiv(start, nest.integer(CHUNK))


def clear_rest(target: Buffer, rows: int, length: int, total: Buffer) -> Stmt | None:
    """A nest that zeroes what lies past `total` in each of `rows` rows of `length`."""
    if not rows * length:
        return None
    pieces = -(-length // CHUNK)

    def piece(row: PrimExpr, p: PrimExpr) -> Stmt:
        start, end = p * CHUNK, tirx.min((p + 1) * CHUNK, nest.integer(length))
        first = tirx.max(start, cast(nest.read(total, 0), "int32"))
        zero = tirx.const(0, str(target.dtype))
        return nest.serial(
            tirx.max(end - first, nest.integer(0)),
            lambda i: write_flat(target, zero, row * length + first + i),
        )

    return parallel_grid((rows, pieces), piece)


def _nonzero(workload: Workload, traits: TargetTraits) -> PrimFunc:
    to = Parameters(workload)
    [source], [target, total] = to.inputs, to.outputs
    sig = workload.op.inputs[0]
    rank, length = workload.op.output.shape
    zero = key_of(tirx.const(0, sig.dtype), sig.dtype)

    def take(number: PrimExpr, position: PrimExpr) -> Stmt:
        shape = sig.shape or (1,)
        at = nest.unflatten(position, shape)
        return nest.sequence(
            *[nest.write(target, cast(at[d], "int64"), d, number) for d in range(rank)]
        )

    selection = Selection(
        sig.elements, lambda i: tirx.NE(key_of(read_flat(source, i), sig.dtype), zero), total
    )
    return to.function(*selection.nests(take), clear_rest(target, rank, length, total))


def _compress(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op, to = workload.op, Parameters(workload)
    source, condition = to.inputs
    target, total = to.outputs
    outer, length, inner = rows_of(op.output, op.attr("axis"))
    size = op.inputs[0].elements // max(1, outer * inner)
    taken: Buffer = nest.buffer((max(1, length),), "int32", "taken")
    selection = Selection(length, lambda i: read_flat(condition, i), total)
    nests = selection.nests(lambda number, at: nest.write(taken, at, number))
    lanes = lanes_of(traits, op.output.dtype)
    zero = tirx.const(0, op.output.dtype)

    def moved(o: PrimExpr, j: PrimExpr, i: PrimExpr) -> PrimExpr:
        return read_flat(source, (o * size + nest.read(taken, j)) * inner + i)

    def within(j: PrimExpr) -> PrimExpr:
        return j < cast(nest.read(total, 0), "int32")

    def row(o: PrimExpr, j: PrimExpr) -> Stmt:
        at = (o * length + j) * inner

        def each(value: Callable[[PrimExpr], PrimExpr]) -> Stmt:
            stmt = over_vectors(inner, lanes, lambda i: write_flat(target, value(i), at + i))
            assert stmt is not None
            return stmt

        return tirx.IfThenElse(within(j), each(lambda i: moved(o, j, i)), each(lambda _: zero))

    def single(t: PrimExpr) -> Stmt:
        o, j = nest.unflatten(t, (outer, length))
        return tirx.IfThenElse(
            within(j),
            write_flat(target, moved(o, j, nest.integer(0)), t),
            write_flat(target, zero, t),
        )

    if not op.output.elements:
        move = None
    elif inner == 1:
        move = each_element(outer * length, 1, single)
    else:
        move = parallel_grid((outer, length), row)
    return to.function(nest.allocate(taken), *nests, move)
