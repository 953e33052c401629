"""Copies of a matrix's columns to scratch, as rows or transposed in registers."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from schedules import nest
from schedules.interface import PrimExpr
from schedules.nest import Buffer, Stmt
from schedules.tile import Element, by_vectors


def transposed_square(
    lanes: int,
    dtype: str,
    load: Callable[[int], PrimExpr],
    store: Callable[[int, PrimExpr], Stmt],
) -> Stmt:
    """Transpose `lanes` vectors of `lanes` elements (a power of two) in registers.

    log₂(lanes) perfect shuffles: each interleaves vector i with vector i + lanes/2, which rotates
    the bits of (vector, lane) by one place (Stone, "Parallel processing with the perfect shuffle",
    1971).
    """
    half = lanes // 2
    low = [x for i in range(half) for x in (i, lanes + i)]
    high = [x + half for x in low]
    kind = f"{dtype}x{lanes}"
    stmts = []

    def bound(value: PrimExpr) -> PrimExpr:
        var = tirx.Var("t", kind)
        stmts.append(tirx.Bind(var, value))
        return var

    rows = [bound(load(i)) for i in range(lanes)]
    for _ in range(lanes.bit_length() - 1):
        pairs = [(rows[i], rows[i + half]) for i in range(half)]
        rows = [bound(tirx.Shuffle(list(p), order)) for p in pairs for order in (low, high)]
    return nest.sequence(*stmts, *[store(i, row) for i, row in enumerate(rows)])


def copy_panel(
    source: Element, target: Buffer, depth: int, columns: int, lanes: int, dtype: str
) -> Stmt:
    """target[k, j] = source(k, j) where row k of the source is contiguous.

    Columns up to the next multiple of `lanes` become zero.
    """
    padding = -columns % lanes
    zero = tirx.const(0, dtype)

    def row(k: PrimExpr) -> Stmt:
        fill = nest.vectorized(padding, lambda x: nest.write(target, zero, k, columns + x))
        copied = by_vectors(columns, lanes, lambda j: nest.write(target, source(k, j), k, j))
        return nest.sequence(copied, fill) if padding else copied

    return nest.serial(depth, row, name="k")


def copy_panel_transposed(
    source: Element, target: Buffer, depth: int, columns: int, lanes: int, dtype: str
) -> Stmt:
    """target[k, j] = source(k, j) where column j of the source is contiguous.

    Whole squares go through registers, what is left goes element by element. Columns up to the
    next multiple of `lanes` become zero.
    """
    squares = lanes if lanes & (lanes - 1) == 0 and lanes > 1 else 0
    deep = depth // squares * squares if squares else 0
    wide = columns // squares * squares if squares else 0

    def ramp(start: PrimExpr) -> PrimExpr:
        return tirx.Ramp(start, nest.integer(1), lanes)

    def square(k: PrimExpr, j: PrimExpr) -> Stmt:
        return transposed_square(
            lanes,
            dtype,
            lambda i: source(ramp(k), j + i),
            lambda i, row: nest.write(target, row, k + i, ramp(j)),
        )

    def single(rows: int, start_k: int, count: int, start_j: int) -> Stmt | None:
        if not rows or not count:
            return None
        return nest.serial(
            count,
            lambda j: nest.serial(
                rows,
                lambda k: nest.write(
                    target, source(k + start_k, j + start_j), k + start_k, j + start_j
                ),
                name="k",
            ),
            name="j",
        )

    padding = -columns % lanes
    zero = tirx.const(0, dtype)
    return nest.sequence(
        nest.serial(
            deep // lanes,
            lambda k: nest.serial(wide // lanes, lambda j: square(k * lanes, j * lanes), name="j"),
            name="k",
        )
        if deep and wide
        else None,
        single(depth - deep, deep, wide, 0),
        single(depth, 0, columns - wide, wide),
        nest.serial(
            depth,
            lambda k: nest.vectorized(padding, lambda x: nest.write(target, zero, k, columns + x)),
            name="k",
        )
        if padding
        else None,
    )
