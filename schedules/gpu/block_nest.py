"""Matrix products by blocks of threads: pieces of both operands in shared memory.

A block computes `height` × `width` sums. Its threads bring pieces of both operands, `depth` steps
of the reduction at a time, to shared memory, and each adds up a tile in registers: Volkov and
Demmel, "Benchmarking GPUs to tune dense linear algebra" (2008).

Sums are kept in float32 (float64 for float64, int32 for integers, where they wrap) and added in
order of the reduction's steps.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from schedules import nest
from schedules.gpu.threads import barrier, grid, registers, shared
from schedules.gpu.tiles import Finish, Tiles
from schedules.gpu.tilings import ceildiv
from schedules.interface import PrimExpr
from schedules.nest import Buffer, Stmt


class BlockNest:
    """Many threads: both operands in shared memory, the sums in registers."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles, self.product, self.t = tiles, tiles.product, tiles.tiling
        t, dtype = self.t, tiles.product.dtype
        self.left = shared((t.depth, t.height), dtype, "left_piece")
        self.right = shared((t.depth, t.width), dtype, "right_piece")
        self.sums = registers((t.tall, t.vectors, t.lanes), dtype, "sums")

    def nest(self, finish: Finish) -> Stmt:
        """The whole kernel."""
        groups, down, across = self.tiles.blocks()

        def block(b: PrimExpr, thread: PrimExpr) -> Stmt:
            at = nest.unflatten(b, (groups, down, across))
            return self._block(at[0], at[1] * self.t.height, at[2] * self.t.width, thread, finish)

        return grid(groups * down * across, self.t.threads, block)

    def _block(
        self, group: PrimExpr, row: PrimExpr, column: PrimExpr, thread: PrimExpr, finish: Finish
    ) -> Stmt:
        t = self.t
        x, y = thread % t.across, thread // t.across
        zero = tirx.const(0, self.product.dtype)
        left = Loader(self.tiles, False, self.left, t.height, self.tiles.left_steps_first, thread)
        right = Loader(self.tiles, True, self.right, t.width, self.tiles.right_steps_first, thread)

        def piece(number: PrimExpr) -> Stmt:
            step = number * t.depth
            return nest.sequence(
                left.load(group, step, row),
                right.load(group, step, column),
                barrier(),
                nest.serial(t.depth, lambda k: self.multiply(k, x, y), "k"),
                barrier(),
            )

        def store(i: PrimExpr, v: PrimExpr, lane: PrimExpr) -> Stmt:
            m, n = row + y * t.tall + i, column + (v * t.across + x) * t.lanes + lane
            stored = finish(self.value(i, v, lane), group, m, n)
            return inside(self.tiles, m, n, stored)

        return nest.sequence(
            nest.allocate(self.left, self.right, self.sums),
            self._each(lambda i, v, lane: nest.write(self.sums, zero, i, v, lane)),
            self.start(),
            left.prepare(group, row),
            right.prepare(group, column),
            nest.serial(ceildiv(self.product.steps, t.depth), piece, "piece"),
            self._each(store),
        )

    def _each(self, body: Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt]) -> Stmt:
        t = self.t
        return nest.unrolled(
            t.tall,
            lambda i: nest.unrolled(
                t.vectors, lambda v: nest.unrolled(t.lanes, lambda x: body(i, v, x))
            ),
        )

    def start(self) -> Stmt | None:
        """What a thread does first besides clearing its sums: nothing."""
        return None

    def multiply(self, k: PrimExpr, x: PrimExpr, y: PrimExpr) -> Stmt:
        """Add step k of the pieces to the sums of the thread at (x, y)."""

        def add(i: PrimExpr, v: PrimExpr, lane: PrimExpr) -> Stmt:
            sums = nest.read(self.sums, i, v, lane)
            a, b = self.left_element(k, y, i), self.right_element(k, x, v, lane)
            return nest.write(self.sums, self.added(sums, a, b), i, v, lane)

        return self._each(add)

    def left_element(self, k: PrimExpr, y: PrimExpr, i: PrimExpr) -> PrimExpr:
        """Of a thread's row i."""
        return nest.read(self.left, k, y * self.t.tall + i)

    def right_element(self, k: PrimExpr, x: PrimExpr, v: PrimExpr, lane: PrimExpr) -> PrimExpr:
        """Of a thread's column (v, lane)."""
        return nest.read(self.right, k, (v * self.t.across + x) * self.t.lanes + lane)

    def added(self, sums: PrimExpr, a: PrimExpr, b: PrimExpr) -> PrimExpr:
        """A sum and the next product."""
        return sums + a * b

    def value(self, i: PrimExpr, v: PrimExpr, lane: PrimExpr) -> PrimExpr:
        """The finished sum."""
        return nest.read(self.sums, i, v, lane)


def inside(tiles: Tiles, row: PrimExpr, column: PrimExpr, stored: Stmt) -> Stmt:
    """`stored` where the product has that sum."""
    tests = []
    if tiles.product.rows % tiles.tiling.height:
        tests.append(row < tiles.product.rows)
    if tiles.product.columns % tiles.tiling.width:
        tests.append(column < tiles.product.columns)
    for test in tests:
        stored = tirx.IfThenElse(test, stored, None)
    return stored


class Loader:
    """Brings pieces of one operand to shared memory, `size` lines at a time."""

    def __init__(
        self,
        tiles: Tiles,
        right: bool,
        target: Buffer,
        size: int,
        steps_first: bool,
        thread: PrimExpr,
    ) -> None:
        """steps_first: neighbouring threads read successive steps, else successive lines."""
        self.tiles, self.right, self.target, self.size = tiles, right, target, size
        self.operand = tiles.right if right else tiles.left
        self.threads, self.depth = tiles.tiling.threads, tiles.tiling.depth
        self.steps_first, self.thread = steps_first, thread
        # Where the numbers divide, a thread keeps to the same lines.
        self.slots = -(-size // self.threads) if self._fixed else 1

    @property
    def _fixed(self) -> bool:
        even = self.threads % self.size == 0 or self.size % self.threads == 0
        return not self.steps_first and even

    def prepare(self, group: PrimExpr, first: PrimExpr) -> Stmt | None:
        """What can be computed ahead about the lines from `first` on."""
        if not self._fixed:
            return None
        return self.operand.prepare(
            group, lambda slot: first + self.thread % self.size + slot * self.threads, self.slots
        )

    def load(self, group: PrimExpr, step: PrimExpr, first: PrimExpr) -> Stmt:
        """Copy `depth` steps from `step` on of the lines from `first` on."""
        size, threads, depth = self.size, self.threads, self.depth

        def place(k: PrimExpr, line: PrimExpr, slot: PrimExpr) -> Stmt:
            value = self.tiles.element(self.right, group, step + k, first + line, slot)
            return nest.write(self.target, value, k, line)

        if self._fixed and size >= threads:
            return nest.serial(
                depth,
                lambda k: nest.unrolled(
                    size // threads, lambda s: place(k, self.thread + s * threads, s)
                ),
            )
        total = depth * size

        def element(i: PrimExpr) -> Stmt:
            e = i * threads + self.thread
            if self.steps_first:
                k, line = e % depth, e // depth
            else:
                k, line = e // size, e % size
            stmt = place(k, line, nest.integer(0))
            return stmt if total % threads == 0 else tirx.IfThenElse(e < total, stmt, None)

        return nest.serial(-(-total // threads), element)
