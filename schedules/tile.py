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

    def each(self, body: Callable[[PrimExpr, PrimExpr, PrimExpr], Stmt]) -> Stmt:
        """`body` of every (row, vector, lane), unrolled but for the lanes, which are a vector."""
        return nest.unrolled(
            self.rows,
            lambda i: nest.unrolled(
                self.vectors, lambda v: nest.vectorized(self.lanes, lambda x: body(i, v, x))
            ),
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
    acc = nest.buffer((chains, tile.rows, tile.vectors, tile.lanes), dtype, "acc", "local.accumulator")

    def step(chain: PrimExpr, k: PrimExpr, first: bool = False) -> Stmt:
        def term(i: PrimExpr, v: PrimExpr, x: PrimExpr) -> Stmt:
            product = a(i, k) * b(k, v * tile.lanes + x)
            value = product if first else nest.read(acc, chain, i, v, x) + product
            return nest.write(acc, value, chain, i, v, x)

        return tile.each(term)

    def steps(start: int, count: int, first: bool = False) -> Stmt | None:
        """`count` products from `start`, one to a chain."""
        if not count:
            return None
        return nest.unrolled(count, lambda c: step(c, c + start, first))

    def total(i: PrimExpr, v: PrimExpr, x: PrimExpr) -> PrimExpr:
        value = nest.read(acc, 0, i, v, x)
        for chain in range(1, chains):
            value = value + nest.read(acc, chain, i, v, x)
        return value

    return nest.sequence(
        nest.allocate(acc),
        # Starting from products, not from zeros: LLVM would set zeros in memory, too.
        steps(0, chains, first=True),
        nest.serial(
            whole - 1,
            lambda k: nest.sequence(
                meanwhile((k + 1) * chains) if meanwhile else None,
                nest.unrolled(chains, lambda c: step(c, (k + 1) * chains + c)),
            ),
            name="k",
        )
        if whole > 1
        else None,
        steps(whole * chains, rest),
        tile.each(lambda i, v, x: nest.write(result, total(i, v, x), i, v * tile.lanes + x)),
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
