"""Matrix products in tiles on a device: the loop nest of its convolutions and matmuls.

A block computes `height` × `width` sums. Its threads bring pieces of both operands, `depth` steps
of the reduction at a time, to shared memory, and each adds up a tile in registers: Volkov and
Demmel, "Benchmarking GPUs to tune dense linear algebra" (2008).

Where threads are iterations of a loop (GpuTraits.loops) a block is one thread, whose tile is a few
rows of vectors. It keeps its piece of the right operand in its own memory and takes blocks of rows
one after the other, so that what was gathered once serves all of them: Goto and van de Geijn,
"Anatomy of high-performance matrix multiplication" (2008).

Sums are kept in float32 (float64 for float64, int32 for integers, where they wrap) and added in
order of the reduction's steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from tvm import tirx

from schedules import nest
from schedules.gpu_threads import barrier, grid, registers, shared
from schedules.interface import Candidate, Knob, PrimExpr, TargetTraits
from schedules.nest import Buffer, Stmt
from schedules.space import tunable


class Operand(Protocol):
    """Reads one side of a product."""

    def prepare(self, group: PrimExpr, lines: Callable[[int], PrimExpr], count: int) -> Stmt | None:
        """What a thread computes once about the `count` lines that it reads, lines(0), …"""
        ...

    def value(self, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr) -> PrimExpr:
        """The element of `line` (a row or column) at `step` of the reduction, for both inside the
        product; `slot` is the line's number among those that were prepared."""
        ...


@dataclass(frozen=True)
class Product:
    """`groups` products of (rows, steps) by (steps, columns)."""

    groups: int
    rows: int
    columns: int
    steps: int
    dtype: str  # of the sums

    @property
    def flops(self) -> float:
        return 2.0 * self.groups * self.rows * self.columns * self.steps


@dataclass(frozen=True)
class Tiling:
    """How a product is cut.

    Attributes:
        across, down: threads of a block along columns and rows.
        vectors, lanes: of a thread's columns.
        tall: a thread's rows at a time.
        turns: how often it takes so many rows.
        depth: steps of the reduction between two barriers.
    """

    across: int
    down: int
    vectors: int
    lanes: int
    tall: int
    turns: int
    depth: int

    @property
    def threads(self) -> int:
        return self.across * self.down

    @property
    def width(self) -> int:
        """Columns of a block."""
        return self.across * self.vectors * self.lanes

    @property
    def height(self) -> int:
        """Rows of a block."""
        return self.down * self.tall * self.turns

    @property
    def row_block(self) -> int:
        """Rows that lie together where the left operand is packed."""
        return self.down * self.tall


_DEPTH = 16
_THREADS = 256
_LANES = 4
_ITEM = 8  # bytes of the widest sums
_KNOBS = (
    ("across", (4, 8, 16, 32)),
    ("down", (1, 2, 4, 8, 16, 32)),
    ("vectors", (1, 2, 4)),
    ("tall", (1, 2, 4, 8)),
    ("turns", (1,)),
    ("depth", (4, 8, 16, 32)),
)
_LOOP_KNOBS = (
    ("across", (1,)),
    ("down", (1,)),
    ("vectors", (1, 2, 3, 4)),
    ("tall", (1, 2, 3, 4, 6, 8, 10, 12, 14)),
    ("turns", (1, 2, 4, 8, 12, 16)),
    ("depth", (32, 64, 128, 256, 512)),
)
_LOOP_DEPTH = 128
_LOOP_ROWS = 96


def default_tiling(product: Product, traits: TargetTraits) -> Tiling:
    """A tiling within the device's limits that keeps its units busy."""
    assert traits.gpu is not None
    gpu = traits.gpu
    if gpu.loops:
        return _loop_tiling(product, traits)
    threads = 1 << (min(gpu.max_threads, _THREADS).bit_length() - 1)
    down = 1 << (threads.bit_length() // 2)
    if product.rows <= 8:
        down = min(down, 4)
    down = min(down, threads)
    tiling = Tiling(threads // down, down, 1, _LANES, 4, 1, min(_DEPTH, product.steps))
    for wider in (replace(tiling, vectors=2), replace(tiling, vectors=2, tall=8)):
        if _blocks(product, wider) >= 2 * gpu.units:
            tiling = wider
    while shared_bytes(tiling) > gpu.shared_bytes:
        smaller = _smaller(tiling)
        if smaller == tiling:
            raise ValueError(f"{gpu.shared_bytes} bytes of shared memory are too few for a product")
        tiling = smaller
    return tiling


def _smaller(tiling: Tiling) -> Tiling:
    """A tiling that needs less shared memory; the same if there is none."""
    if tiling.depth > 4:
        return replace(tiling, depth=tiling.depth // 2)
    if tiling.tall > 1:
        return replace(tiling, tall=tiling.tall // 2, vectors=1)
    if tiling.threads > 1:
        side = "across" if tiling.across >= tiling.down else "down"
        return replace(tiling, **{side: getattr(tiling, side) // 2})
    return replace(tiling, depth=1)


def _blocks(product: Product, tiling: Tiling) -> int:
    """Blocks that a product is cut into."""
    across = _ceil(product.columns, tiling.width)
    return product.groups * across * _ceil(product.rows, tiling.height)


def tuned_over(
    product: Product, traits: TargetTraits, make: Callable[[Tiling], Candidate]
) -> Candidate:
    """make(tiling) of the default tiling, open to all others that the device allows."""
    default = default_tiling(product, traits)
    gpu = traits.gpu
    assert gpu is not None
    values = _LOOP_KNOBS if gpu.loops else _KNOBS

    def decided(chosen: Mapping[str, int]) -> Candidate | None:
        tiling = Tiling(lanes=default.lanes, **chosen)
        fits = tiling.threads <= gpu.max_threads and (
            gpu.loops or shared_bytes(tiling) <= gpu.shared_bytes
        )
        # Sums of one thread in more than its registers, or most of them outside the product.
        sums = tiling.vectors * tiling.lanes * tiling.tall
        crowded = sums > (64 if not gpu.loops else 28 * tiling.lanes)
        wasteful = tiling.width >= 2 * max(product.columns, default.width)
        if tiling != default and (not fits or crowded or wasteful):
            return None
        return make(tiling)

    knobs = [Knob(name, found) for name, found in values]
    return tunable(knobs, {name: getattr(default, name) for name, _ in values}, decided)


def _loop_tiling(product: Product, traits: TargetTraits) -> Tiling:
    assert traits.gpu is not None
    lanes = traits.lanes
    most = 12 if traits.vector_bytes == 64 else 4
    vectors = 2 if product.columns > lanes else 1
    tall = min(range(1, most + 1), key=lambda t: (_ceil(product.rows, t) * (t + 1.5), -t))
    blocks = product.groups * _ceil(product.columns, vectors * lanes)
    turns = _ceil(product.rows, tall)
    turns = min(turns, max(1, _LOOP_ROWS // tall))
    while turns > 1 and blocks * _ceil(product.rows, tall * turns) < 4 * traits.gpu.units:
        turns = _ceil(turns, 2)
    return Tiling(1, 1, vectors, lanes, tall, turns, min(_LOOP_DEPTH, product.steps))


def shared_bytes(tiling: Tiling) -> int:
    """Of a block's pieces of both operands."""
    return _ITEM * tiling.depth * (tiling.width + tiling.height)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


Finish = Callable[[PrimExpr, PrimExpr, PrimExpr, PrimExpr], Stmt]
"""Stores a sum: (value, group, row, column)."""


@dataclass(frozen=True)
class Tiles:
    """The nest of a product.

    left, right: the operands. packed: whether each lies in blocks of lines padded with zeros, so
    that its lines and steps need no test (`right` then is read in place in a loop).
    """

    product: Product
    tiling: Tiling
    left: Operand
    right: Operand
    left_packed: bool
    right_packed: bool
    left_steps_first: bool
    right_steps_first: bool
    loops: bool

    def nest(self, finish: Finish) -> Stmt:
        """The whole kernel."""
        return _LoopNest(self).nest(finish) if self.loops else _BlockNest(self).nest(finish)

    def blocks(self) -> tuple[int, int, int]:
        """Groups, and blocks along rows and columns."""
        p, t = self.product, self.tiling
        return p.groups, _ceil(p.rows, t.height), _ceil(p.columns, t.width)

    def element(
        self, right: bool, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr
    ) -> PrimExpr:
        """An element as a number of the sums' type, zero outside the product."""
        p, t = self.product, self.tiling
        operand, packed = (
            (self.right, self.right_packed) if right else (self.left, self.left_packed)
        )
        lines, block = (p.columns, t.width) if right else (p.rows, t.height)
        value = operand.value(group, step, line, slot)
        value = value if str(value.ty.dtype) == p.dtype else tirx.Cast(p.dtype, value)
        tests = []
        if lines % block and not packed:
            tests.append(line < lines)
        if p.steps % t.depth:
            tests.append(step < p.steps)
        return guarded(tests, value, p.dtype)


def guarded(tests: list[PrimExpr], value: PrimExpr, dtype: str) -> PrimExpr:
    """`value` where all tests hold, else zero; nothing is read where they do not."""
    if not tests:
        return value
    test = tests[0]
    for each in tests[1:]:
        test = tirx.all(test, each)
    return tirx.if_then_else(test, value, tirx.const(0, dtype))


class _BlockNest:
    """Many threads: both operands in shared memory, the sums in registers."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles, self.product, self.t = tiles, tiles.product, tiles.tiling
        t, dtype = self.t, tiles.product.dtype
        self.left = shared((t.depth, t.height), dtype, "left_piece")
        self.right = shared((t.depth, t.width), dtype, "right_piece")
        self.sums = registers((t.tall, t.vectors, t.lanes), dtype, "sums")

    def nest(self, finish: Finish) -> Stmt:
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
        left = _Loader(self.tiles, False, self.left, t.height, self.tiles.left_steps_first, thread)
        right = _Loader(self.tiles, True, self.right, t.width, self.tiles.right_steps_first, thread)

        def piece(number: PrimExpr) -> Stmt:
            step = number * t.depth
            return nest.sequence(
                left.load(group, step, row),
                right.load(group, step, column),
                barrier(),
                nest.serial(t.depth, lambda k: self._multiply(k, x, y), "k"),
                barrier(),
            )

        def store(i: PrimExpr, v: PrimExpr, lane: PrimExpr) -> Stmt:
            m, n = row + y * t.tall + i, column + (v * t.across + x) * t.lanes + lane
            stored = finish(nest.read(self.sums, i, v, lane), group, m, n)
            return self._inside(m, n, stored)

        return nest.sequence(
            nest.allocate(self.left, self.right, self.sums),
            self._each(lambda i, v, lane: nest.write(self.sums, zero, i, v, lane)),
            left.prepare(group, row),
            right.prepare(group, column),
            nest.serial(_ceil(self.product.steps, t.depth), piece, "piece"),
            self._each(store),
        )

    def _inside(self, m: PrimExpr, n: PrimExpr, stored: Stmt) -> Stmt:
        tests = []
        if self.product.rows % self.t.height:
            tests.append(m < self.product.rows)
        if self.product.columns % self.t.width:
            tests.append(n < self.product.columns)
        for test in tests:
            stored = tirx.IfThenElse(test, stored, None)
        return stored

    def _each(self, body: Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt]) -> Stmt:
        t = self.t
        return nest.unrolled(
            t.tall,
            lambda i: nest.unrolled(
                t.vectors, lambda v: nest.unrolled(t.lanes, lambda x: body(i, v, x))
            ),
        )

    def _multiply(self, k: PrimExpr, x: PrimExpr, y: PrimExpr) -> Stmt:
        t = self.t

        def add(i: PrimExpr, v: PrimExpr, lane: PrimExpr) -> Stmt:
            a = nest.read(self.left, k, y * t.tall + i)
            b = nest.read(self.right, k, (v * t.across + x) * t.lanes + lane)
            return nest.write(self.sums, nest.read(self.sums, i, v, lane) + a * b, i, v, lane)

        return self._each(add)


class _Loader:
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


class _LoopNest:
    """One thread: its piece of the right operand in its own memory, rows in turns of vectors."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles, self.product, self.t = tiles, tiles.product, tiles.tiling
        t, dtype = self.t, tiles.product.dtype
        self.right = registers((t.depth, t.width), dtype, "right_piece")
        self.sums = registers((t.height, t.width), dtype, "sums")
        self.tile = registers((t.tall, t.width), dtype, "tile")

    def nest(self, finish: Finish) -> Stmt:
        groups, down, across = self.tiles.blocks()

        def block(b: PrimExpr, _: PrimExpr) -> Stmt:
            at = nest.unflatten(b, (groups, across, down))
            return self._block(at[0], at[2] * self.t.height, at[1] * self.t.width, finish)

        return grid(groups * across * down, 1, block)

    def _block(self, group: PrimExpr, row: PrimExpr, column: PrimExpr, finish: Finish) -> Stmt:
        t, product = self.t, self.product
        full, rest = divmod(product.steps, t.depth)

        def piece(start: PrimExpr, depth: int, first: PrimExpr | bool) -> Stmt:
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
            nest.serial(full, lambda p: piece(p * t.depth, t.depth, p == 0), "piece")
            if full
            else None,
            piece(nest.integer(full * t.depth), rest, False) if rest else None,
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

        def rows(body: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
            return nest.unrolled(t.tall, lambda i: self._vectors(lambda j: body(i, j)))

        def multiply(k: PrimExpr) -> Stmt:
            def b(j: PrimExpr) -> PrimExpr:
                if not self.tiles.right_packed:
                    return nest.read(self.right, k, j)
                return self.tiles.right.value(group, start + k, column + j, j)

            def a(i: PrimExpr) -> PrimExpr:
                m = row + top + i
                if not self.tiles.left_packed:
                    m = tirx.min(m, product.rows - 1)
                value = self.tiles.left.value(group, start + k, m, nest.integer(0))
                return (
                    value
                    if str(value.ty.dtype) == product.dtype
                    else tirx.Cast(product.dtype, value)
                )

            return rows(
                lambda i, j: nest.write(self.tile, nest.read(self.tile, i, j) + a(i) * b(j), i, j)
            )

        work = nest.sequence(
            rows(lambda i, j: nest.write(self.tile, nest.read(self.sums, top + i, j), i, j)),
            nest.serial(depth, multiply, "k"),
            rows(lambda i, j: nest.write(self.sums, nest.read(self.tile, i, j), top + i, j)),
        )
        if product.rows % t.height:
            work = tirx.IfThenElse(row + top < product.rows, work, None)
        return work
