"""Transposition: rows where the innermost axis stays, squares in registers where it moves. Exact.

Axes that stay adjacent are merged first. Where the innermost axis changes, the kernel walks squares
spanned by the innermost axes of input and output, so that both are read and written in whole
vectors (layout_change.transpose_square); what is left over goes element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import numpy as np

from schedules import nest
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.layout_change import transpose_square
from schedules.movement import rows
from schedules.nest import Buffer, Stmt
from schedules.vectors import Frame, candidate, parallel_grid

Place = Callable[[PrimExpr, PrimExpr], list[PrimExpr]]


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major only."""
    if workload.op.kind != "transpose":
        return ()
    compute = partial(_compute, workload, traits)
    return (candidate("transpose", workload, (PLAIN,), PLAIN, compute, flops_per_element=0.0),)


def merged(shape: Sequence[int], axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Groups of input axes that stay adjacent, in the order of the output; none of extent 1."""
    groups: list[list[int]] = []
    for axis in axes:
        if shape[axis] == 1:
            continue
        follows = groups and all(shape[between] == 1 for between in range(groups[-1][-1] + 1, axis))
        if follows and axis > groups[-1][-1]:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return [tuple(group) for group in groups]


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    shape, axes = op.inputs[0].shape, op.attr("axes")
    frame = Frame(workload, (PLAIN,), PLAIN)
    source = frame.inputs[0]
    groups = merged(shape, axes)
    place = {axis: i for i, axis in enumerate(axes)}
    innermost = max((axis for axis in range(len(shape)) if shape[axis] > 1), default=-1)
    if not groups or innermost in groups[-1]:
        split = place[groups[-1][0]] if groups else 0

        def value(index: Sequence[PrimExpr]) -> PrimExpr:
            return nest.read(source, *[index[place[a]] for a in range(len(shape))])

        return frame.function(*rows(frame, traits, split, value))
    return frame.function(_Squares(frame, traits, groups, innermost).body())


class _Squares:
    def __init__(
        self,
        frame: Frame,
        traits: TargetTraits,
        groups: Sequence[tuple[int, ...]],
        innermost: int,
    ) -> None:
        op = frame.workload.op
        self.frame = frame
        self.shape = op.inputs[0].shape
        self.axes = op.attr("axes")
        self.dtype = op.inputs[0].dtype
        # Merged axes in the output's order; `inner` holds the input's innermost axis, the last
        # one is innermost in the output.
        self.groups = list(groups)
        self.sizes = [prod(self.shape[a] for a in group) for group in groups]
        self.inner = next(i for i, group in enumerate(groups) if innermost in group)
        self.lanes = traits.lanes
        self.square = np.dtype(self.dtype).itemsize == 4

    def _copy(self, at: Sequence[PrimExpr]) -> tuple[PrimExpr, list[PrimExpr]]:
        """Input element and output index for coordinates of the merged axes."""
        where: dict[int, PrimExpr] = {a: nest.integer(0) for a in range(len(self.shape))}
        for group, i in zip(self.groups, at, strict=True):
            where.update(zip(group, nest.unflatten(i, [self.shape[a] for a in group]), strict=True))
        value = nest.read(self.frame.inputs[0], *[where[a] for a in range(len(self.shape))])
        return value, [where[a] for a in self.axes]

    def body(self) -> Stmt:
        lanes = self.lanes
        columns, across = self.sizes[-1], self.sizes[self.inner]
        others = [i for i in range(len(self.sizes) - 1) if i != self.inner]
        strips = -(-columns // lanes)

        def strip(*task: PrimExpr) -> Stmt:
            *outer, index = task

            def at(j: PrimExpr, i: PrimExpr) -> list[PrimExpr]:
                """Merged coordinates: j along the input's innermost axis, i along the output's."""
                coordinates = dict(zip(others, outer, strict=True))
                coordinates[self.inner] = j
                coordinates[len(self.sizes) - 1] = i
                return [coordinates[g] for g in range(len(self.sizes))]

            def part(width: int) -> Stmt:
                start = index * lanes
                tiles = across // lanes if self.square and width == lanes else 0

                def line(j: PrimExpr) -> Stmt:
                    def store(x: PrimExpr) -> Stmt:
                        value, target = self._copy(at(j + tiles * lanes, start + x))
                        return self.frame.finish(value, target)

                    return nest.serial(width, store, "x")

                rest = across - tiles * lanes
                return nest.sequence(
                    nest.serial(tiles, lambda t: self._tile(at, t * lanes, start))
                    if tiles
                    else None,
                    nest.serial(rest, line, "y") if rest else None,
                )

            full, rest = divmod(columns, lanes)
            if not rest:
                return part(lanes)
            if not full:
                return part(rest)
            return nest.branch(index < full, part(lanes), part(rest))

        return parallel_grid([*(self.sizes[i] for i in others), strips], strip)

    def _tile(self, at: Place, top: PrimExpr, left: PrimExpr) -> Stmt:
        lanes = self.lanes
        before: Buffer = nest.buffer((lanes * lanes,), self.dtype, "before", "local")
        after: Buffer = nest.buffer((lanes * lanes,), self.dtype, "after", "local")
        load, store = [], []
        for i in range(lanes):
            load.append(
                nest.vectorized(
                    lanes,
                    lambda x, i=i: nest.write(  # type: ignore[misc]
                        before, self._copy(at(top + x, left + i))[0], x + i * lanes
                    ),
                )
            )
            store.append(
                nest.vectorized(
                    lanes,
                    lambda x, j=i: self.frame.finish(  # type: ignore[misc]
                        nest.read(after, x + j * lanes), self._copy(at(top + j, left + x))[1]
                    ),
                )
            )
        middle = transpose_square(before, after, self.dtype, lanes)
        return nest.sequence(nest.allocate(before, after), *load, *middle, *store)
