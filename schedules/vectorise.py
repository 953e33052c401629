"""Loop transformations of memory-bound kernels: vectors with remainders, even parallel shares.

A loop whose extent is no multiple of the vector is split with a predicate, and marked so that
TVM's loop partitioning separates full vectors from the predicated remainder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from schedules.interface import Schedule, TargetTraits

Loop = Any

PARALLEL_ITERATIONS = 16
"""Iterations of a parallel loop that give few workers even shares."""


def extent(sch: Schedule, loop: Loop) -> int:
    """Number of iterations of a loop."""
    return int(sch.get(loop).extent)


def vector_lanes(traits: TargetTraits, dtypes: Iterable[str]) -> int:
    """Elements per vector such that the widest of `dtypes` fills a register."""
    sizes = [2 if d == "bfloat16" else np.dtype(d).itemsize for d in dtypes]
    return traits.vector_bytes // max(sizes, default=4)


def split_vector(sch: Schedule, loop: Loop, lanes: int) -> Loop | None:
    """Vectorise `loop` by `lanes`; returns the loop over vectors (None: it is a single one)."""
    count = extent(sch, loop)
    if count <= lanes:
        if count > 1:
            sch.vectorize(loop)
        return None
    outer, inner = sch.split(loop, [None, lanes])
    sch.vectorize(inner)
    if count % lanes:
        sch.annotate(outer, "pragma_loop_partition_hint", 1)
    return outer


def smallest_divisor(number: int, at_least: int) -> int:
    """The smallest divisor of `number` that is no less than `at_least`; else `number`."""
    return next((d for d in range(at_least, number // 2 + 1) if number % d == 0), number)


def fuse(sch: Schedule, loops: Sequence[Loop]) -> Loop:
    """One loop in place of adjacent loops."""
    return loops[0] if len(loops) == 1 else sch.fuse(*loops)


def parallel_vectors(sch: Schedule, block: object, groups: Sequence[int], lanes: int) -> None:
    """Schedule a block of spatial loops: vectors innermost, an even parallel loop outermost.

    groups: how many adjacent loops to fuse into one, outermost group first; each group must be
        contiguous in all buffers, and the last one is vectorised.
    """
    loops = sch.get_loops(block)
    if not loops:
        return
    fused, start = [], 0
    for size in groups:
        fused.append(fuse(sch, loops[start : start + size]))
        start += size
    *outer, row = fused
    leading: list[Loop] = []
    rows = 1
    while outer and rows < PARALLEL_ITERATIONS:
        leading.append(outer.pop(0))
        rows *= extent(sch, leading[-1])
    count = extent(sch, row)
    if rows < PARALLEL_ITERATIONS and count >= 4 * lanes and not outer:
        if count % lanes == 0:
            vectors = count // lanes
            pieces = smallest_divisor(vectors, min(vectors, -(-PARALLEL_ITERATIONS // rows)))
            piece, _, vector = sch.split(row, [pieces, None, lanes])
            sch.vectorize(vector)
            leading.append(piece)
        elif rows == 1:
            parallel_vectors_and_tail(sch, row, lanes)
            return
        else:
            split_vector(sch, row, lanes)
    else:
        split_vector(sch, row, lanes)
    if leading:
        sch.parallel(fuse(sch, leading))


def parallel_vectors_and_tail(sch: Schedule, row: Loop, lanes: int) -> None:
    """One long loop of no whole number of vectors: a parallel nest of vectors and a tail.

    Loops around `row` must have extent 1. Consumes the block: later steps cannot refer to it.
    """
    around = sch.get_loops(sch.get_child_blocks(row)[0])
    before = around[: len(around) - 1]
    if before:
        row = sch.fuse(*before, row)
    main, _ = sch.loop_partition(row, [extent(sch, row) // lanes * lanes, None])
    outer, vector = sch.split(main, [None, lanes])
    sch.vectorize(vector)
    sch.parallel(outer)


def mergeable_groups(shapes: Sequence[Sequence[int]], output: Sequence[int]) -> list[int]:
    """Sizes of the maximal groups of adjacent axes that can be one loop for all buffers.

    shapes: physical shapes of the operands, aligned with `output`; a 1 where the output's
    dimension is larger is a broadcast. Two axes merge if each operand has or broadcasts both.
    """

    def pattern(axis: int) -> tuple[bool, ...]:
        return tuple(shape[axis] == 1 for shape in shapes)

    groups: list[int] = []
    last: tuple[bool, ...] | None = None
    for axis, size in enumerate(output):
        if groups and (size == 1 or last is None or pattern(axis) == last):
            groups[-1] += 1
        else:
            groups.append(1)
        if size != 1:
            last = pattern(axis)
    return groups
