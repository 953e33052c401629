"""Sums of products of bytes, in `tiles` × `vectors` tiles of int32: how they are computed here.

Rows are what is next to each other in an image (pixels) or a matrix; columns are filters. A step
multiplies as many consecutive bytes of each row as `terms` with the weights of as many terms. The
sums are in AMX's tiles, or else in vector registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tvm import tirx

from schedules import amx, nest
from schedules.byte_dots import add_products, add_weights, can_multiply, shifted
from schedules.byte_halves import Halves, has_pairs
from schedules.interface import PrimExpr, TargetTraits
from schedules.nest import Buffer, Stmt

GROUP = 4
"""Terms that lie together: one instruction adds their products to a sum."""
COLUMNS = amx.COLUMNS
"""Columns of a tile; filters of a vector."""
MOST_TERMS = amx.ROW_BYTES
MOST_ROWS = amx.ROWS

Place: TypeAlias = "tuple[PrimExpr | int, ...]"


@dataclass(frozen=True)
class TilePlan:
    """rows: of a tile. terms: of a step, a multiple of 4. tiles, vectors: tiles of rows and of
    columns that are summed at once."""

    rows: int
    terms: int
    tiles: int
    vectors: int

    def fits(self, traits: TargetTraits) -> bool:
        """Whether there are registers enough."""
        if traits.amx:
            return self.tiles * self.vectors + self.tiles + self.vectors <= amx.TILES
        parts = self.vectors * COLUMNS // traits.lanes
        return self.tiles == 1 and self.rows <= most_rows(parts, traits)

    @property
    def panel(self) -> int:
        """Columns that are summed at once."""
        return self.vectors * COLUMNS


def most_rows(parts: int, traits: TargetTraits) -> int:
    """Rows of `parts` vectors of sums for which there are registers."""
    if has_pairs(traits):
        # Beside the sums: a pair of each vector of weights, one of the data, and their product.
        return (traits.vector_registers - 2) // parts - 1
    return (traits.vector_registers - 3) // parts - 1 - shifted(traits)


def usual_tile(width: int, parts: int, filters: int, terms: int, traits: TargetTraits) -> TilePlan:
    """The default for `parts` times `width` rows: equal tiles of each width, as large as fit.

    Args:
        filters: columns in all. terms: of a step.
    """
    vectors = min(2 if traits.lanes == COLUMNS else 1, -(-filters // COLUMNS))
    most = MOST_ROWS
    if not traits.amx:
        most = max(1, most_rows(vectors * COLUMNS // traits.lanes, traits))
    across = -(-width // most)
    tiles = min(2, parts * across) if traits.amx else 1
    return TilePlan(-(-width // across), terms, tiles, vectors)


Step: TypeAlias = "Callable[[Buffer, Sequence[Place], int, Buffer, Place], Stmt]"
"""One step: the source and where the first bytes of each tile's rows are, the bytes from a row to
the next, the packed weights, and the leading coordinates of those (terms / 4, panel, 4) to use. A
source of words (int32) has their byte_halves.word_parts() along its first axis."""


class Sums(Protocol):
    """The sums of one piece of code, and where they are when they are complete."""

    def start(self) -> Stmt:
        """To stand once before all others."""
        ...

    def stop(self) -> Stmt | None:
        """To stand once behind all others."""
        ...

    def compute(self, tiles: int, steps: Callable[[Step], Stmt]) -> Stmt:
        """The first `tiles` tiles of rows; `steps(step)` is the loop over all steps."""
        ...

    def value(self, t: int, row: PrimExpr, column: PrimExpr) -> PrimExpr:
        """A sum, after compute()."""
        ...

    def each_row(self, body: Callable[[PrimExpr], Stmt]) -> Stmt:
        """body(row) for the rows of a tile."""
        ...


def sums_of(plan: TilePlan, traits: TargetTraits) -> Sums:
    """What the processor has for these sums."""
    return TileSums(plan) if traits.amx else RegisterSums(plan, traits)


def has_sums(traits: TargetTraits) -> bool:
    """Whether there are instructions for such sums."""
    return traits.amx or can_multiply(traits)


def way(traits: TargetTraits) -> str:
    """Name of how sums are computed, for the names of candidates."""
    return "tiles" if traits.amx else "dots"


def share(tile: TilePlan, steps: int, traits: TargetTraits) -> float:
    """Multiples of the peak of float multiply-adds that a tile of so many steps reaches.

    A step takes as long as its products, or its loads; storing a sum and its epilogue as long as
    several steps (fitted to the convolutions of ResNet-50).
    """
    if traits.amx:
        products = tile.tiles * tile.vectors * max(tile.rows, 8)
        loads = 0.5 * (tile.tiles * tile.rows + tile.vectors * tile.terms / GROUP)
        step = 1.3 * max(products, loads)
    else:
        parts = tile.vectors * COLUMNS // traits.lanes
        each, fixed = 0.5, 0.0
        if has_pairs(traits):
            # Additions have a third port, but not those of 64 bytes; weights are taken apart.
            each, fixed = (2.0, 1.5) if traits.lanes == COLUMNS else (1.4, 1.0)
        step = tile.terms / GROUP * max((each * tile.rows + fixed) * parts, 4.0) * 1.2
    epilogue = 10 * tile.rows * tile.tiles * tile.vectors
    macs = steps * tile.tiles * tile.rows * tile.terms * tile.panel
    return macs / (steps * step + epilogue) / (2 * traits.lanes)


class TileSums:
    """In AMX's tiles; complete ones are stored in a worker's scratch."""

    def __init__(self, plan: TilePlan) -> None:
        self.plan = plan
        shape = (plan.tiles, plan.rows, plan.panel)
        self._buffer: Buffer = nest.buffer(shape, "int32", "sums", "local")

    def start(self) -> Stmt:
        """See Sums."""
        plan = self.plan
        shapes = [(plan.rows, 4 * COLUMNS)] * (plan.tiles * plan.vectors)
        shapes += [(plan.rows, plan.terms)] * plan.tiles
        shapes += [(plan.terms // GROUP, GROUP * COLUMNS)] * plan.vectors
        buffer = self._buffer
        return nest.sequence(amx.configure(shapes), nest.allocate(buffer), nest.whole(buffer))

    def stop(self) -> Stmt | None:
        """See Sums."""
        return amx.release()

    def compute(self, tiles: int, steps: Callable[[Step], Stmt]) -> Stmt:
        """See Sums."""
        plan = self.plan
        used = [(t, v) for t in range(tiles) for v in range(plan.vectors)]

        def step(
            source: Buffer, rows: Sequence[Place], stride: int, weights: Buffer, at: Place
        ) -> Stmt:
            first = plan.tiles * plan.vectors
            loads = [amx.load(first + t, source, rows[t], stride) for t in range(tiles)]
            first += plan.tiles
            for v in range(plan.vectors):
                where = (*at, 0, v * COLUMNS, 0)
                loads.append(amx.load(first + v, weights, where, plan.panel * GROUP))
            products = [
                amx.multiply(self._sums(t, v), plan.tiles * plan.vectors + t, first + v)
                for t, v in used
            ]
            return nest.sequence(*loads, *products)

        stores = [
            amx.store(self._sums(t, v), self._buffer, (t, 0, v * COLUMNS), 4 * plan.panel)
            for t, v in used
        ]
        clear = [amx.clear(self._sums(t, v)) for t, v in used]
        return nest.sequence(*clear, steps(step), *stores)

    def value(self, t: int, row: PrimExpr, column: PrimExpr) -> PrimExpr:
        """See Sums."""
        return nest.read(self._buffer, t, row, column)

    def each_row(self, body: Callable[[PrimExpr], Stmt]) -> Stmt:
        """See Sums."""
        return nest.serial(self.plan.rows, body, "row")

    def _sums(self, t: int, v: int) -> int:
        return t * self.plan.vectors + v


class RegisterSums:
    """In vector registers, one tile of rows at a time."""

    def __init__(self, plan: TilePlan, traits: TargetTraits) -> None:
        self.plan, self.traits = plan, traits
        # The row behind the last one are sums of weights, where those are needed.
        self._rows = plan.rows + shifted(traits)
        self._buffer: Buffer = nest.buffer((self._rows, plan.panel), "int32", "sums", "local")
        self._halves: Halves | None = None
        if has_pairs(traits):
            words = plan.terms // GROUP
            self._halves = Halves.of(traits.lanes, plan.rows, words, plan.panel, self._buffer)

    def start(self) -> Stmt:
        """See Sums."""
        scratch = [self._halves.scratch] if self._halves else []
        return nest.allocate(self._buffer, *scratch)

    def stop(self) -> Stmt | None:
        """See Sums."""
        return None

    def compute(self, tiles: int, steps: Callable[[Step], Stmt]) -> Stmt:
        """See Sums."""
        assert tiles == 1, "registers hold one tile"
        plan, lanes = self.plan, self.traits.lanes
        zero = tirx.const(0, "int32")

        def step(
            source: Buffer, rows: Sequence[Place], stride: int, weights: Buffer, at: Place
        ) -> Stmt:
            *outer, last = rows[0]

            def word_of(part: int, row: int, k: PrimExpr) -> PrimExpr:
                """Of a source of words."""
                start = last + row * (stride // GROUP) + k
                return nest.read(source, part, *outer[1:], start)

            def read(row: int, first: PrimExpr | int, count: int) -> PrimExpr:
                """Words of a source of bytes, from word `first` of the step on."""
                start = last + row * stride + GROUP * first
                value = nest.read(source, *outer, nest.ramp(start, GROUP * count))
                return tirx.reinterpret("int32" if count == 1 else f"int32x{count}", value)

            def four(k: PrimExpr, first: int) -> PrimExpr:
                """The weights of word `k` and of `lanes` columns from `first` on."""
                return nest.read(weights, *at, k, first, nest.ramp(0, GROUP * lanes))

            words = str(source.dtype) == "int32"
            if self._halves:
                halves = self._halves
                return halves.multiply(word_of, four) if words else halves.step(read, four)

            def add(k: PrimExpr) -> Stmt:
                stmts: list[Stmt] = []
                held = []
                for first in range(0, plan.panel, lanes):
                    weight = tirx.Var("weight", f"int8x{GROUP * lanes}")
                    stmts.append(tirx.Bind(weight, four(k, first)))
                    columns = nest.ramp(first, lanes)
                    held.append((columns, weight))
                    if shifted(self.traits):
                        total = nest.read(self._buffer, plan.rows, columns)
                        total = add_weights(total, weight, self.traits)
                        stmts.append(nest.write(self._buffer, total, plan.rows, columns))
                for row in range(plan.rows):
                    word = tirx.Var("word", "int32")
                    stmts.append(tirx.Bind(word, word_of(0, row, k) if words else read(row, k, 1)))
                    for columns, weight in held:
                        total = nest.read(self._buffer, row, columns)
                        total = add_products(total, word, weight, self.traits)
                        stmts.append(nest.write(self._buffer, total, row, columns))
                return nest.sequence(*stmts, tirx.Evaluate(0))

            return nest.serial(plan.terms // GROUP, add, "k")

        clear = nest.unrolled(
            self._rows,
            lambda r: nest.unrolled(
                plan.panel // lanes,
                lambda v: nest.vectorized(
                    lanes, lambda x: nest.write(self._buffer, zero, r, v * lanes + x)
                ),
            ),
        )
        return nest.sequence(clear, steps(step))

    def value(self, t: int, row: PrimExpr, column: PrimExpr) -> PrimExpr:
        """See Sums."""
        assert t == 0
        value = nest.read(self._buffer, row, column)
        if shifted(self.traits):
            value += nest.read(self._buffer, self.plan.rows, column) * tirx.const(128, "int32")
        return value

    def each_row(self, body: Callable[[PrimExpr], Stmt]) -> Stmt:
        """See Sums."""
        # Unrolled, or the sums would not be registers.
        return nest.unrolled(self.plan.rows, body, "row")
