"""Products of bytes by blocks of threads: pieces of both operands in shared memory, as words.

As gpu/block_nest.py with four steps of the reduction at a time. A thread also adds up its rows or
its columns, where a zero point asks for that. All sums are exact modulo 2³².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from schedules import nest
from schedules.gpu.block_nest import BlockNest
from schedules.gpu.threads import registers
from schedules.gpu.tiles import Finish, Tiles
from schedules.gpu.words import dot, ones
from schedules.interface import PrimExpr
from schedules.nest import Stmt


@dataclass(frozen=True)
class Zeros:
    """What the kernel subtracts from the bytes of each operand, over so many steps."""

    left: int
    right: int
    steps: int

    def nest(self, tiles: Tiles, loops: bool, finish: Finish) -> Stmt:
        """The kernel of a product of words."""
        assert not loops
        return _DotNest(tiles, self).nest(finish)


class _DotNest(BlockNest):
    def __init__(self, tiles: Tiles, zeros: Zeros) -> None:
        super().__init__(tiles)
        self.zeros = zeros
        dtype, t = self.product.dtype, self.t
        self.rows = registers((t.tall,), dtype, "rows")
        self.columns = registers((t.vectors, t.lanes), dtype, "columns")

    def start(self) -> Stmt | None:
        zero, t = tirx.const(0, self.product.dtype), self.t
        parts = []
        if self.zeros.right:
            clear = nest.unrolled(t.tall, lambda i: nest.write(self.rows, zero, i))
            parts += [nest.allocate(self.rows), clear]
        if self.zeros.left:
            clear = self._columns(lambda v, lane: zero)
            parts += [nest.allocate(self.columns), clear]
        return nest.sequence(*parts) if parts else None

    def multiply(self, k: PrimExpr, x: PrimExpr, y: PrimExpr) -> Stmt:
        dtype, t = self.product.dtype, self.t

        def row(i: PrimExpr) -> Stmt:
            a, total = self.left_element(k, y, i), nest.read(self.rows, i)
            return nest.write(self.rows, dot(a, ones(dtype), total, dtype), i)

        def column(v: PrimExpr, lane: PrimExpr) -> PrimExpr:
            b, total = self.right_element(k, x, v, lane), nest.read(self.columns, v, lane)
            return dot(b, ones(dtype), total, dtype)

        return nest.sequence(
            nest.unrolled(t.tall, row) if self.zeros.right else None,
            self._columns(column) if self.zeros.left else None,
            super().multiply(k, x, y),
        )

    def _columns(self, value: Callable[[PrimExpr, PrimExpr], PrimExpr]) -> Stmt:
        return nest.unrolled(
            self.t.vectors,
            lambda v: nest.unrolled(
                self.t.lanes, lambda lane: nest.write(self.columns, value(v, lane), v, lane)
            ),
        )

    def added(self, sums: PrimExpr, a: PrimExpr, b: PrimExpr) -> PrimExpr:
        return dot(a, b, sums, self.product.dtype)

    def value(self, i: PrimExpr, v: PrimExpr, lane: PrimExpr) -> PrimExpr:
        zeros = self.zeros
        value = tirx.Cast("int32", super().value(i, v, lane))
        if zeros.right:
            value -= tirx.Cast("int32", nest.read(self.rows, i)) * nest.integer(zeros.right)
        if zeros.left:
            columns = nest.read(self.columns, v, lane)
            value -= tirx.Cast("int32", columns) * nest.integer(zeros.left)
        if zeros.left and zeros.right:
            value += _wrapped(zeros.steps * zeros.left * zeros.right)
        return value


def _wrapped(value: int) -> PrimExpr:
    """A constant modulo 2³²."""
    return nest.integer((value + (1 << 31)) % (1 << 32) - (1 << 31))
