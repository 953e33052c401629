"""Matrix products where the threads of a block are iterations of a loop (GpuTraits.loops).

A block is one thread, whose tile is a few rows of vectors. It keeps its piece of the right operand
in its own memory and takes blocks of rows one after the other, so that what was gathered once
serves all of them: Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"
(2008). Sums as in gpu/block_nest.py.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from schedules import nest
from schedules.gpu.threads import grid, registers
from schedules.gpu.tiles import Finish, Tiles
from schedules.interface import PrimExpr
from schedules.nest import Stmt


class LoopNest:
    """One thread: its piece of the right operand in its own memory, rows in turns of vectors."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles, self.product, self.t = tiles, tiles.product, tiles.tiling
        t, dtype = self.t, tiles.product.dtype
        self.right = registers((t.depth, t.width), dtype, "right_piece")
        self.sums = registers((t.height, t.width), dtype, "sums")
        # Vectors as such: as parts of an array they would not stay in registers.
        self.tile = registers((t.tall, t.vectors), f"{dtype}x{t.lanes}", "tile")

    def nest(self, finish: Finish) -> Stmt:
        """The whole kernel."""
        groups, down, across = self.tiles.blocks()

        def block(b: PrimExpr, _: PrimExpr) -> Stmt:
            at = nest.unflatten(b, (groups, across, down))
            return self._block(at[0], at[2] * self.t.height, at[1] * self.t.width, finish)

        return grid(groups * across * down, 1, block)

    def _block(self, group: PrimExpr, row: PrimExpr, column: PrimExpr, finish: Finish) -> Stmt:
        t, product = self.t, self.product
        full, rest = divmod(product.steps, t.depth)

        def piece(start: PrimExpr, depth: int) -> Stmt:
            return nest.sequence(
                self._gather(group, start, depth, column),
                nest.serial(
                    t.turns, lambda turn: self._turn(group, start, depth, row, turn, column), "turn"
                ),
            )

        def store(i: PrimExpr) -> Stmt:
            m = row + i

            def element(j: PrimExpr) -> Stmt:
                n = column + j
                stored = finish(nest.read(self.sums, i, j), group, m, n)
                if product.columns % t.width:
                    stored = tirx.IfThenElse(n < product.columns, stored, None)
                return stored

            line = nest.serial(t.width, element, "j")
            if product.rows % t.height:
                line = tirx.IfThenElse(m < product.rows, line, None)
            return line

        zero = tirx.const(0, product.dtype)
        lines = self.tiles.right.prepare(group, lambda slot: column + slot, t.width)
        return nest.sequence(
            nest.allocate(self.right, self.sums, self.tile),
            nest.serial(
                t.height, lambda i: self._vectors(lambda j: nest.write(self.sums, zero, i, j))
            ),
            None if self.tiles.right_packed else lines,
            nest.serial(full, lambda p: piece(p * t.depth, t.depth), "piece") if full else None,
            piece(nest.integer(full * t.depth), rest) if rest else None,
            nest.serial(t.height, store, "i"),
        )

    def _vectors(self, body: Callable[[PrimExpr], Stmt]) -> Stmt:
        t = self.t
        return nest.unrolled(
            t.vectors, lambda v: nest.vectorized(t.lanes, lambda x: body(v * t.lanes + x))
        )

    def _gather(
        self, group: PrimExpr, start: PrimExpr, depth: int, column: PrimExpr
    ) -> Stmt | None:
        if self.tiles.right_packed:
            return None

        def step(k: PrimExpr) -> Stmt:
            def element(j: PrimExpr) -> Stmt:
                value = self.tiles.element(True, group, start + k, column + j, j)
                return nest.write(self.right, value, k, j)

            return nest.serial(self.t.width, element, "j")

        return nest.serial(depth, step, "k")

    def _turn(
        self,
        group: PrimExpr,
        start: PrimExpr,
        depth: int,
        row: PrimExpr,
        turn: PrimExpr,
        column: PrimExpr,
    ) -> Stmt:
        t, product = self.t, self.product
        top = turn * t.tall

        def each(body: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
            return nest.unrolled(t.tall, lambda i: nest.unrolled(t.vectors, lambda v: body(i, v)))

        def sums(i: PrimExpr, v: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
            return top + i, tirx.Ramp(v * t.lanes, nest.integer(1), t.lanes)

        def multiply(k: PrimExpr) -> Stmt:
            right = [self._right(group, start + k, k, column, v) for v in range(t.vectors)]
            names = [tirx.Var(f"right{v}", value.ty) for v, value in enumerate(right)]
            bound = [tirx.Bind(name, value) for name, value in zip(names, right, strict=True)]

            def row_of(i: int) -> Stmt:
                m = row + top + i
                if not self.tiles.left_packed:
                    m = tirx.min(m, product.rows - 1)
                a = self.tiles.left.value(group, start + k, m, nest.integer(0))
                a = tirx.Broadcast(self._number(a), t.lanes)
                return nest.sequence(
                    *[
                        nest.write(self.tile, nest.read(self.tile, i, v) + a * names[v], i, v)
                        for v in range(t.vectors)
                    ]
                )

            return nest.sequence(*bound, *[row_of(i) for i in range(t.tall)])

        work = nest.sequence(
            each(lambda i, v: nest.write(self.tile, nest.read(self.sums, *sums(i, v)), i, v)),
            nest.serial(depth, multiply, "k"),
            each(lambda i, v: nest.write(self.sums, nest.read(self.tile, i, v), *sums(i, v))),
        )
        if product.rows % t.height:
            work = tirx.IfThenElse(row + top < product.rows, work, None)
        return work

    def _number(self, value: PrimExpr) -> PrimExpr:
        dtype = self.product.dtype
        return value if str(value.ty.dtype) == dtype else tirx.Cast(dtype, value)

    def _right(
        self, group: PrimExpr, step: PrimExpr, k: PrimExpr, column: PrimExpr, v: int
    ) -> PrimExpr:
        """Vector `v` of the right operand at `step`, which is step `k` of the gathered piece."""
        lanes = self.t.lanes
        if self.tiles.right_packed:
            first = self.tiles.right.value(group, step, column + v * lanes, nest.integer(0))
        else:
            first = nest.read(self.right, k, v * lanes)
        own = str(first.ty.dtype)
        # Devices of this kind speak OpenCL, whose vload needs no aligned address.
        zero = nest.integer(0)
        read = tirx.call_pure_extern(
            f"{own}x{lanes}", f"vload{lanes}", zero, tirx.address_of(first)
        )
        return (
            read if own == self.product.dtype else tirx.Cast(f"{self.product.dtype}x{lanes}", read)
        )
