"""Reductions over any axes: sum, mean, max, min, prod.

Adjacent kept or reduced axes are merged first. Where the innermost group is reduced, each row goes
into several vectors of partial results; where it is kept, vectors of results run over it and the
reduced groups are loops. Bytes are read as numbers of the result's type. Sums of float16 are kept
in float32; the error of sums against float64 is below 1e-6 of the sum of magnitudes for rows up to
10⁵. max and min give NaN where an element is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.interface import (
    PLAIN,
    Candidate,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
    channel_layouts,
)
from schedules.nest import Buffer, Stmt
from schedules.scalar_binary import maximum, minimum
from schedules.scalar_values import highest, lowest
from schedules.vectors import (
    Frame,
    RowReduction,
    accumulator,
    blocks_of,
    candidate,
    lanes_of,
    load_as,
    of_type,
    parallel_grid,
    scratch,
)

_RUN = 64  # terms added in a row


@dataclass(frozen=True)
class Group:
    """Adjacent axes of the physical input that are all reduced or all kept."""

    axes: tuple[int, ...]
    size: int
    reduced: bool


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major; from a blocked input where only spatial axes go, to either layout."""
    if workload.op.kind != "reduce":
        return ()
    op = workload.op
    shape = op.inputs[0].shape
    pairs = [(PLAIN, PLAIN)]
    spatial = len(shape) >= 3 and all(axis >= 2 for axis in op.attr("axes"))
    if spatial and shape[1] > 1:
        for blocked in channel_layouts(shape[1], [op.inputs[0].dtype], traits):
            pairs.append((blocked, PLAIN))
            if len(workload.output.shape) >= 3:
                pairs.append((blocked, blocked))
    return tuple(
        candidate(
            "reduce" + (".from_blocked" if source.block and not target.block else ""),
            workload,
            (source,),
            target,
            partial(_compute, workload, source, target, traits),
        )
        for source, target in pairs
    )


def groups_of(shape: Sequence[int], axes: Sequence[int]) -> list[Group]:
    """Merge adjacent axes of one fate; axes of extent 1 join either."""
    groups: list[Group] = []
    for axis, size in enumerate(shape):
        reduced = axis in axes
        if groups and (groups[-1].reduced == reduced or size == 1):
            last = groups[-1]
            groups[-1] = Group((*last.axes, axis), last.size * size, last.reduced)
        else:
            groups.append(Group((axis,), size, reduced))
    return groups


def combination(
    function: str, dtype: str
) -> tuple[PrimExpr, Callable[[PrimExpr, PrimExpr], PrimExpr]]:
    """Identity and combination of a reduction."""
    if function == "max":
        return lowest(dtype), maximum
    if function == "min":
        return highest(dtype), minimum
    if function == "prod":
        return tirx.const(1, dtype), lambda a, b: a * b
    return tirx.const(0, dtype), lambda a, b: a + b


def _compute(workload: Workload, source: Layout, target: Layout, traits: TargetTraits) -> PrimFunc:
    return _Reduce(workload, source, target, traits).function()


class _Reduce:
    def __init__(
        self, workload: Workload, source: Layout, target: Layout, traits: TargetTraits
    ) -> None:
        op = workload.op
        self.op = op
        self.frame = Frame(workload, (source,), target)
        self.source, self.target = source, target
        self.shape = source.physical(op.inputs[0].shape)
        self.axes = tuple(op.attr("axes"))
        self.groups = groups_of(self.shape, self.axes)
        self.dtype = accumulator(op.output.dtype)
        self.identity, self.combine = combination(op.attr("function"), self.dtype)
        self.count = prod(op.inputs[0].shape[a] for a in self.axes)
        self.lanes = lanes_of(traits, self.dtype)

    def function(self) -> PrimFunc:
        if self.groups[-1].reduced:
            return self.frame.function(self._rows())
        return self.frame.function(self._columns())

    def _index(self, coordinates: Sequence[PrimExpr | int]) -> list[PrimExpr]:
        """Physical index of the input from one coordinate per group."""
        index: list[PrimExpr] = []
        for group, at in zip(self.groups, coordinates, strict=True):
            at = nest.integer(at) if isinstance(at, int) else at
            index += nest.unflatten(at, [self.shape[a] for a in group.axes])
        return index

    def _read(self, coordinates: Sequence[PrimExpr | int]) -> PrimExpr:
        return load_as(self.frame.inputs[0], self.dtype, *self._index(coordinates))

    def _write(self, value: PrimExpr, coordinates: Sequence[PrimExpr | int]) -> Stmt | None:
        """Store the result for the kept coordinates (those of reduced groups are ignored)."""
        if self.op.attr("function") == "mean":
            if self.dtype.startswith("float"):
                value = value * tirx.const(
                    1 / self.count if self.count else float("nan"), self.dtype
                )
            else:
                value = tirx.truncdiv(value, tirx.const(self.count, self.dtype))
        index = self._index(coordinates)
        logical = list(index)
        if self.source.block:
            logical = [index[0], index[1] * self.source.block + index[-1], *index[2:-1]]
        keep = self.op.attr("keepdims")
        out = [
            nest.integer(0) if axis in self.axes else i
            for axis, i in enumerate(logical)
            if keep or axis not in self.axes
        ]
        if self.target.block:
            out = [out[0], index[1], *out[2:], index[-1]]
        stored = self.frame.finish(of_type(value, self.op.output), out)
        if self.source.block and not self.target.block:
            channels = self.op.inputs[0].shape[1]
            if channels % self.source.block:
                return nest.branch(logical[1] < channels, stored)
        return stored

    def _over_reduced(self, groups: Sequence[Group], body: Callable[..., Stmt | None]) -> Stmt:
        """Serial loops over the reduced ones of `groups`; body takes their coordinates."""
        sizes = [g.size for g in groups if g.reduced]

        def loop(known: tuple[PrimExpr, ...]) -> Stmt:
            if len(known) == len(sizes):
                return body(*known)
            return nest.serial(sizes[len(known)], lambda i: loop((*known, i)), "r")

        return loop(())

    def _merge(
        self, groups: Sequence[Group], kept: Sequence[PrimExpr], reduced: Sequence[PrimExpr]
    ) -> list[PrimExpr]:
        """One coordinate per group from those of kept and reduced groups."""
        kept_left, reduced_left = list(kept), list(reduced)
        return [(reduced_left if g.reduced else kept_left).pop(0) for g in groups]

    def _rows(self) -> Stmt:
        *outer, row = self.groups
        total = RowReduction(self.dtype, self.lanes, self.identity, self.combine)

        def one(*kept: PrimExpr) -> Stmt:
            def inner(*reduced: PrimExpr) -> Stmt | None:
                at = self._merge(outer, kept, reduced)
                return total.add(row.size, lambda i: self._read([*at, i]))

            zeros = [nest.integer(0)] * sum(g.reduced for g in outer)
            at = [*self._merge(outer, kept, zeros), nest.integer(0)]
            return nest.sequence(
                total.start(),
                self._over_reduced(outer, inner),
                total.finish(),
                self._write(total.result, at),
            )

        extents = [g.size for g in outer if not g.reduced]
        return parallel_grid(extents, one)

    def _columns(self) -> Stmt:
        *outer, row = self.groups
        extents = [g.size for g in outer if not g.reduced]
        # Few vectors per task where there are few tasks, more where rows are plenty.
        vectors = 1 if row.size // self.lanes * prod(extents) < 64 else 4
        nests = [
            self._chunk(outer, extents, start, count, size)
            for start, count, size in blocks_of(row.size, self.lanes * vectors)
        ]
        return nest.sequence(*nests)

    def _chunk(
        self, outer: Sequence[Group], extents: Sequence[int], start: int, count: int, size: int
    ) -> Stmt:
        """Results for `count` runs of `size` columns."""

        def one(*kept: PrimExpr) -> Stmt:
            *rows, run = kept
            reduced_groups = [g for g in outer if g.reduced]
            if not reduced_groups:
                reduced_groups = [Group((), 1, True)]
            total = scratch((size,), self.dtype, "total")
            base = run * size + start

            def each(body: Callable[[PrimExpr], Stmt | None]) -> Stmt:
                parts = []
                for at, vectors, width in blocks_of(size, self.lanes):
                    for v in range(vectors):
                        first = at + v * width
                        parts.append(nest.vectorized(width, lambda x, f=first: body(x + f)))  # type: ignore[misc]
                return nest.sequence(*parts)

            part = scratch((size,), self.dtype, "part")

            def into(target: Buffer, value: Callable[[PrimExpr], PrimExpr]) -> Stmt:
                return each(
                    lambda x: nest.write(target, self.combine(value(x), nest.read(target, x)), x)
                )

            def step(target: Buffer, *reduced: PrimExpr) -> Stmt:
                at = self._merge(outer, rows, reduced)
                return into(target, lambda x: self._read([*at, base + x]))

            def run_of(known: tuple[PrimExpr, ...], start: PrimExpr, count: int) -> Stmt:
                # Sums of short sums: one long chain of additions would lose digits.
                return nest.sequence(
                    each(lambda x: nest.write(part, self.identity, x)),
                    nest.serial(count, lambda i: step(part, *known, start + i), "r"),
                    into(total, lambda x: nest.read(part, x)),
                )

            def innermost(*known: PrimExpr) -> Stmt:
                length = reduced_groups[-1].size
                if length <= 2 * _RUN:
                    return nest.serial(length, lambda i: step(total, *known, i), "r")
                return nest.sequence(
                    *[
                        nest.serial(runs, lambda r, at=at, n=n: run_of(known, r * n + at, n), "run")  # type: ignore[misc]
                        for at, runs, n in blocks_of(length, _RUN)
                    ]
                )

            zeros = [nest.integer(0)] * sum(g.reduced for g in outer)
            at = self._merge(outer, rows, zeros)
            return nest.sequence(
                nest.allocate(total, part),
                each(lambda x: nest.write(total, self.identity, x)),
                self._over_reduced(reduced_groups[:-1], innermost),
                each(lambda x: self._write(nest.read(total, x), [*at, base + x])),
            )

        return parallel_grid([*extents, count], one)
