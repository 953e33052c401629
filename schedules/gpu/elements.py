"""Kernels of one thread for each element of the result, neighbours in memory side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from tvm import tirx

from schedules import nest
from schedules.gpu.threads import grid
from schedules.gpu.tilings import ceildiv
from schedules.interface import PrimExpr, TargetTraits
from schedules.nest import Stmt

_THREADS = 256

Index = tuple[PrimExpr, ...]


def each_element(shape: Sequence[int], traits: TargetTraits, body: Callable[[Index], Stmt]) -> Stmt:
    """body(index) for all of a row-major tensor of `shape`, which is not empty."""
    assert traits.gpu is not None
    count = prod(shape)
    threads = min(_THREADS, traits.gpu.max_threads, count)
    blocks = min(ceildiv(count, threads), traits.gpu.max_blocks)
    turns = ceildiv(count, blocks * threads)

    def thread(block: PrimExpr, thread: PrimExpr) -> Stmt:
        def turn(number: PrimExpr) -> Stmt:
            element = (number * blocks + block) * threads + thread
            stmt = body(nest.unflatten(element, shape))
            if count % (blocks * threads) == 0:
                return stmt
            return tirx.IfThenElse(element < count, stmt, None)

        return nest.serial(turns, turn, "turn")

    return grid(blocks, threads, thread)
