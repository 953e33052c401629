"""Reductions over rows on a device: a block for each row, whose threads meet in a tree.

Each thread takes every n-th element of the row, so that neighbours read neighbouring elements, and
the threads' results are combined in shared memory, halving their number each time: Harris,
"Optimizing parallel reduction in CUDA" (2007). Where threads are iterations of a loop, a block is
one thread with several partial results, which its compiler keeps in vectors.

Numerics: a row of n terms is summed in min(n, threads) chains that meet in a tree: the error
against float64 is below 1e-6 of the sum of magnitudes for rows up to 10⁵.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from tvm import tirx

from schedules import nest
from schedules.gpu.threads import barrier, grid, registers, shared
from schedules.interface import GpuTraits, PrimExpr
from schedules.nest import Buffer, Stmt
from schedules.scalar_math import exp_of_negative
from schedules.scalar_values import lowest

_THREADS = 128
_CHAINS = 32

Combine = Callable[[PrimExpr, PrimExpr], PrimExpr]


def add(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """The combination of a sum."""
    return a + b


@dataclass(frozen=True)
class Row:
    """What the threads of a block do to one row of `length` elements."""

    length: int
    threads: int
    loops: bool
    thread: PrimExpr

    def each(self, body: Callable[[PrimExpr], Stmt]) -> Stmt:
        """body(i) for all i < length, shared by the threads."""
        if self.loops:
            return nest.serial(self.length, body)
        rounds, rest = divmod(self.length, self.threads)

        def turn(r: PrimExpr) -> Stmt:
            return body(r * self.threads + self.thread)

        last = self.thread + rounds * self.threads
        return nest.sequence(
            nest.serial(rounds, turn) if rounds else None,
            tirx.IfThenElse(last < self.length, body(last), None) if rest else None,
            None if rounds or rest else tirx.Evaluate(0),
        )


class Total:
    """A reduction over a row. `result` may be read by all threads after reduce()."""

    def __init__(self, row: Row, dtype: str, identity: PrimExpr, combine: Combine) -> None:
        self.row, self.identity, self.combine = row, identity, combine
        self._own: Buffer = registers((_CHAINS if row.loops else 1,), dtype, "own")
        self._all: Buffer = shared((row.threads,), dtype, "all")

    def reduce(self, term: Callable[[PrimExpr], PrimExpr]) -> Stmt:
        """Combine term(i) for all i; allocates what it needs, for as long as the sequence lasts."""
        return self._loops(term) if self.row.loops else self._tree(term)

    @property
    def result(self) -> PrimExpr:
        return nest.read(self._own if self.row.loops else self._all, 0)

    def _loops(self, term: Callable[[PrimExpr], PrimExpr]) -> Stmt:
        own, length = self._own, self.row.length

        def take(i: PrimExpr, chain: PrimExpr) -> Stmt:
            return nest.write(own, self.combine(nest.read(own, chain), term(i)), chain)

        rounds, rest = divmod(length, _CHAINS)
        steps: list[Stmt | None] = [
            nest.allocate(own),
            nest.serial(_CHAINS, lambda c: nest.write(own, self.identity, c)),
            nest.serial(rounds, lambda r: nest.serial(_CHAINS, lambda c: take(r * _CHAINS + c, c)))
            if rounds
            else None,
            nest.serial(rest, lambda c: take(rounds * _CHAINS + c, c)) if rest else None,
        ]
        half = _CHAINS // 2
        while half:
            steps.append(nest.serial(half, lambda c, h=half: self._fold(own, c, h)))  # type: ignore[misc]
            half //= 2
        return nest.sequence(*steps)

    def _fold(self, buffer: Buffer, i: PrimExpr, distance: int) -> Stmt:
        both = self.combine(nest.read(buffer, i), nest.read(buffer, i + distance))
        return nest.write(buffer, both, i)

    def _tree(self, term: Callable[[PrimExpr], PrimExpr]) -> Stmt:
        own, all_, thread = self._own, self._all, self.row.thread
        steps: list[Stmt | None] = [
            nest.allocate(own, all_),
            nest.write(own, self.identity, 0),
            self.row.each(lambda i: nest.write(own, self.combine(nest.read(own, 0), term(i)), 0)),
            nest.write(all_, nest.read(own, 0), thread),
            barrier(),
        ]
        half = self.row.threads // 2
        while half:
            steps.append(tirx.IfThenElse(thread < half, self._fold(all_, thread, half), None))
            steps.append(barrier())
            half //= 2
        return nest.sequence(*steps)


def rows(count: int, length: int, gpu: GpuTraits, body: Callable[[PrimExpr, Row], Stmt]) -> Stmt:
    """A nest of body(row number, Row) for `count` rows of `length` elements."""
    threads = 1
    while not gpu.loops and threads < min(_THREADS, gpu.max_threads // 2 * 2, length):
        threads *= 2
    threads = min(threads, gpu.max_threads)
    return grid(
        count, threads, lambda block, thread: body(block, Row(length, threads, gpu.loops, thread))
    )


def exponential(x: PrimExpr, dtype: str) -> PrimExpr:
    """e to the power of x ≤ 0."""
    return exp_of_negative(x) if dtype == "float32" else tirx.call_pure_extern(dtype, "exp", x)


def softmax_rows(buffer: Buffer, gpu: GpuTraits) -> Stmt:
    """A nest that replaces the rows along the last axis of `buffer` by their softmax."""
    *outer, length = (int(extent) for extent in buffer.shape)
    dtype = str(buffer.ty.dtype)

    def one(number: PrimExpr, row: Row) -> Stmt:
        at = nest.unflatten(number, outer)
        largest = Total(row, dtype, lowest(dtype), tirx.max)
        total = Total(row, dtype, tirx.const(0, dtype), add)

        def read(i: PrimExpr) -> PrimExpr:
            return nest.read(buffer, *at, i)

        def keep(i: PrimExpr) -> Stmt:
            power = exponential(read(i) - largest.result, dtype)
            return nest.write(buffer, power, *at, i)

        return nest.sequence(
            largest.reduce(read),
            row.each(keep),
            total.reduce(read),
            row.each(lambda i: nest.write(buffer, read(i) / total.result, *at, i)),
        )

    return rows(prod(outer), length, gpu, one)
