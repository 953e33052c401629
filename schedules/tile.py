"""The register tile that all matrix kernels share: rows × vectors of accumulators over one axis.

The scheme (outer products of a column of a and a row of b, accumulated in registers over the whole
depth) is that of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schedules import nest
from schedules.interface import PrimExpr, TargetTraits
from schedules.nest import Buffer, Stmt

Element = Callable[[PrimExpr, PrimExpr], PrimExpr]


@dataclass(frozen=True)
class Tile:
    """`rows` × (`vectors` · `lanes`) accumulators in registers."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    def each(self, body: Callable[[int, PrimExpr, PrimExpr], Stmt]) -> Stmt:
        """`body` of every (row, vector, lane), unrolled but for the lanes, which are a vector."""
        return nest.sequence(*[self._row(i, body) for i in range(self.rows)])

    def _row(self, i: int, body: Callable[[int, PrimExpr, PrimExpr], Stmt]) -> Stmt:
        return nest.unrolled(
            self.vectors, lambda v: nest.vectorized(self.lanes, lambda x: body(i, v, x))
        )


def accumulate(
    tile: Tile,
    depth: int,
    a: Element,
    b: Element,
    dtype: str,
    result: Buffer,
    chains: int = 1,
    meanwhile: Callable[[PrimExpr], Stmt] | None = None,
) -> Stmt:
    """result[row, column] = Σₖ a(row, k) · b(k, column) in `dtype`.

    The sums live in registers, because constant indices alone touch them while they grow; `result`
    is memory of the worker, so that an epilogue may read it at any index. a and b must already
    have type `dtype`. A tile too small to hide the latency of a multiply-add takes several
    `chains`, each of which sums every chains-th product in order. `meanwhile` is a statement of k
    that goes with every (chains-th) step, such as a prefetch.
    """
    whole, rest = divmod(depth, chains)
    # A buffer for each row: TVM puts buffers over 1 KiB on the heap, out of LLVM's sight.
    acc = [
        [nest.buffer((tile.vectors, tile.lanes), dtype, "acc", "local") for _ in range(tile.rows)]
        for _ in range(chains)
    ]

    def step(chain: int, k: PrimExpr, first: bool = False) -> Stmt:
        def term(i: int, v: PrimExpr, x: PrimExpr) -> Stmt:
            product = a(nest.integer(i), k) * b(k, v * tile.lanes + x)
            value = product if first else nest.read(acc[chain][i], v, x) + product
            return nest.write(acc[chain][i], value, v, x)

        return tile.each(term)

    def total(i: int, v: PrimExpr, x: PrimExpr) -> Stmt:
        value = nest.read(acc[0][i], v, x)
        for others in acc[1:]:
            value = value + nest.read(others[i], v, x)
        return nest.write(result, value, i, v * tile.lanes + x)

    def steps(start: PrimExpr) -> Stmt:
        return nest.sequence(
            meanwhile(start) if meanwhile else None,
            *[step(chain, start + chain) for chain in range(chains)],
        )

    zero = nest.integer(0)
    return nest.sequence(
        nest.allocate(*[buffer for rows in acc for buffer in rows]),
        *[step(chain, zero + chain, first=True) for chain in range(chains)],
        nest.serial(whole - 1, lambda k: steps((k + 1) * chains), name="k") if whole > 1 else None,
        *[step(chain, zero + (whole * chains + chain)) for chain in range(rest)],
        tile.each(total),
    )


def by_vectors(columns: int, lanes: int, body: Callable[[PrimExpr], Stmt]) -> Stmt:
    """`body` of every column: whole vectors in a loop, then one shorter vector."""
    whole, rest = divmod(columns, lanes)
    vectors = nest.serial(
        whole, lambda v: nest.vectorized(lanes, lambda x: body(v * lanes + x)), name="v"
    )
    return nest.sequence(
        vectors if whole else None,
        nest.vectorized(rest, lambda x: body(whole * lanes + x)) if rest else None,
    )


def fold(
    target: Buffer,
    index: tuple[PrimExpr, ...],
    lanes: int,
    combine: Callable[[PrimExpr, PrimExpr], PrimExpr],
) -> Stmt:
    """target[*index, 0] = the first `lanes` elements at `index` combined, by halves."""

    def halve(offset: int, count: int) -> Stmt:
        return nest.vectorized(
            count,
            lambda x: nest.write(
                target,
                combine(nest.read(target, *index, x), nest.read(target, *index, x + offset)),
                *index,
                x,
            ),
        )

    stmts, live = [], lanes
    while live > 1:
        half = live - live // 2
        stmts.append(halve(half, live // 2))
        live = half
    return nest.sequence(*stmts)


def tallest(vectors: int, traits: TargetTraits) -> int:
    """Rows of the largest tile that leaves registers for one row of b and one element of a."""
    return max(1, (traits.vector_registers - vectors - 1) // vectors)


def cycles(tile: Tile, depth: int) -> float:
    """Estimated cycles of one tile: multiply-adds, loads or latency, whichever is longest.

    Assumes two multiply-adds and two loads per cycle and a latency of four, as on most wide cores;
    the constant is the cost of writing the tile out. Fitted on an AVX-512 server core.
    """
    multiplies = tile.rows * tile.vectors / 2
    loads = (tile.rows + tile.vectors) / 2
    return depth * max(multiplies, loads, 4.0) + 2 * tile.rows * tile.vectors + 20
