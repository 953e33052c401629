"""arg_extremum: the position of the largest or smallest element along an axis.

The first of equal elements wins, or the last where asked for; NaN wins against any number. Lines
along the last axis are read by vectors, each lane keeping its own best; lines side by side in
memory are compared several at once. Exact.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.plain import Parameters, plain_candidate, rows_of
from schedules.scalar_values import cast
from schedules.sorting import Scalar, key_dtype, key_of, reversed_key
from schedules.vectors import lanes_of, over_vectors, parallel, scratch

_BLOCK = 8
"""Vectors of lines that one task takes."""


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate."""
    op = workload.op
    if op.kind != "arg_extremum":
        return ()
    compute = partial(_compute, workload, traits)
    elements = op.inputs[0].elements
    return (plain_candidate("arg_extremum.keys", workload, compute, 0.5 * elements),)


class _Rank:
    """Keys of which the least is the extremum."""

    def __init__(self, workload: Workload) -> None:
        self.dtype = workload.op.inputs[0].dtype
        self.key = key_dtype(self.dtype)
        self._largest = workload.op.attr("function") == "max"
        self._last = bool(workload.op.attr("last"))

    def of(self, value: PrimExpr) -> PrimExpr:
        if self._largest:
            return reversed_key(key_of(value, self.dtype))
        return key_of(value, self.dtype, nan_first=True)

    def beats(self, new: PrimExpr, best: PrimExpr) -> PrimExpr:
        """Whether an element behind the best one so far takes its place."""
        return new <= best if self._last else new < best

    def beats_anywhere(
        self, new: PrimExpr, at: PrimExpr, best: PrimExpr, where: PrimExpr
    ) -> PrimExpr:
        """The same for elements in any order, at positions `at` and `where`."""
        tie = tirx.all(new == best, at > where if self._last else at < where)
        return tirx.any(new < best, tie)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    outer, length, inner = rows_of(op.inputs[0], op.attr("axis"))
    if inner == 1:
        return _rows(workload, traits, outer, length)
    return _columns(workload, traits, outer, length, inner)


def _rows(workload: Workload, traits: TargetTraits, count: int, length: int) -> PrimFunc:
    to, rank = Parameters(workload), _Rank(workload)
    [source], [target] = to.inputs, to.outputs
    shape = workload.op.inputs[0].shape
    lanes = min(lanes_of(traits, rank.key), length)

    def row(r: PrimExpr) -> Stmt:
        best: Buffer = nest.buffer((lanes,), rank.key, "best", "local")
        where: Buffer = nest.buffer((lanes,), "int32", "where", "local")
        found, at = Scalar(rank.key, "found"), Scalar("int32", "at")

        def key(j: PrimExpr) -> PrimExpr:
            return rank.of(nest.read(source, *nest.unflatten(r * length + j, shape)))

        def first(x: PrimExpr) -> Stmt:
            return nest.sequence(nest.write(best, key(x), x), nest.write(where, x, x))

        def compare(start: PrimExpr, x: PrimExpr) -> Stmt:
            old, new = nest.read(best, x), key(start + x)
            wins = rank.beats(new, old)
            return nest.sequence(
                nest.write(where, tirx.Select(wins, start + x, nest.read(where, x)), x),
                nest.write(best, tirx.Select(wins, new, old), x),
            )

        def final(x: PrimExpr) -> Stmt:
            better = rank.beats_anywhere(
                nest.read(best, x), nest.read(where, x), found.get(), at.get()
            )
            take = nest.sequence(found.set(nest.read(best, x)), at.set(nest.read(where, x)))
            return tirx.IfThenElse(better, take, None)

        blocks = length // lanes
        rest = length - blocks * lanes
        return nest.sequence(
            nest.allocate(best, where, found.buffer, at.buffer),
            nest.vectorized(lanes, first),
            nest.serial(
                blocks - 1,
                lambda b: nest.vectorized(lanes, lambda x: compare((b + 1) * lanes, x)),
            )
            if blocks > 1
            else None,
            nest.serial(rest, lambda x: compare(nest.integer(blocks * lanes), x)) if rest else None,
            found.set(nest.read(best, 0)),
            at.set(nest.read(where, 0)),
            nest.serial(lanes - 1, lambda x: final(x + 1)) if lanes > 1 else None,
            nest.write(
                target,
                cast(at.get(), "int64"),
                *nest.unflatten(r, workload.op.output.shape),
            ),
        )

    return to.function(parallel(count, row))


def _columns(
    workload: Workload, traits: TargetTraits, outer: int, length: int, inner: int
) -> PrimFunc:
    to, rank = Parameters(workload), _Rank(workload)
    [source], [target] = to.inputs, to.outputs
    lanes = lanes_of(traits, rank.key)
    split = nest.Split.of(inner, _BLOCK * lanes)

    def lines(o: PrimExpr, first: PrimExpr, count: int) -> Stmt:
        best = scratch((count,), rank.key, "best")
        where = scratch((count,), "int32", "where")

        def key(j: PrimExpr, i: PrimExpr) -> PrimExpr:
            flat = (o * length + j) * inner + (first + i)
            return rank.of(nest.read(source, *nest.unflatten(flat, workload.op.inputs[0].shape)))

        def start(i: PrimExpr) -> Stmt:
            zero = nest.integer(0)
            return nest.sequence(nest.write(best, key(zero, i), i), nest.write(where, zero, i))

        def compare(j: PrimExpr, i: PrimExpr) -> Stmt:
            old, new = nest.read(best, i), key(j, i)
            wins = rank.beats(new, old)
            return nest.sequence(
                nest.write(where, tirx.Select(wins, j, nest.read(where, i)), i),
                nest.write(best, tirx.Select(wins, new, old), i),
            )

        def store(i: PrimExpr) -> Stmt:
            at = nest.unflatten(o * inner + (first + i), workload.op.output.shape)
            return nest.write(target, cast(nest.read(where, i), "int64"), *at)

        return nest.sequence(
            nest.allocate(best, where),
            over_vectors(count, lanes, start),
            nest.serial(
                length - 1, lambda j: _some(over_vectors(count, lanes, lambda i: compare(j + 1, i)))
            )
            if length > 1
            else None,
            over_vectors(count, lanes, store),
        )

    def task(t: PrimExpr) -> Stmt:
        o, block = nest.unflatten(t, (outer, split.count))
        return split.part(block, lambda first, count: lines(o, first, count))

    return to.function(parallel(outer * split.count, task))


def _some(stmt: Stmt | None) -> Stmt:
    assert stmt is not None
    return stmt
