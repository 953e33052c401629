"""topk: the k largest or smallest along an axis, in order, and where they were.

Equal elements stay in the order of their positions; NaN counts as the largest value, both zeros
are equal. A small k is selected through a heap that most blocks of a row never touch, since their
least key, found by vectors, is not wanted; otherwise rows are sorted by digits (sorting.py). Rows
are shared among the workers; where there are too few, each row is cut into pieces whose winners
compete once more. Values are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.heap import Heap
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.plain import Parameters, plain_candidate, rows_of, workers
from schedules.scalar_values import cast
from schedules.sorting import Pairs, Sorter, key_dtype, key_of, reversed_key
from schedules.vectors import lanes_of, parallel

_HEAP_SHARE = 8
"""A heap is used for k up to this part of a row."""
_PIECE = 1 << 14
"""Elements of a row that are worth a worker of their own."""

Key = Callable[[PrimExpr], PrimExpr]


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate: selection or sorting, as k says."""
    op = workload.op
    if op.kind != "topk":
        return ()
    k, length = op.output.shape[op.attr("axis")], op.inputs[0].shape[op.attr("axis")]
    name = "topk.heap" if _selects(k, length) else "topk.sort"
    effort = 4.0 if _selects(k, length) else 40.0
    return (
        plain_candidate(
            name,
            workload,
            partial(_compute, workload, traits),
            effort * op.inputs[0].elements,
            2,
        ),
    )


def _selects(k: int, length: int) -> bool:
    return k * _HEAP_SHARE <= length


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op, to = workload.op, Parameters(workload)
    axis, dtype = op.attr("axis"), op.inputs[0].dtype
    outer, length, inner = rows_of(op.inputs[0], axis)
    k, count = op.output.shape[axis], outer * inner
    wide = key_dtype(dtype)
    [source], [values, positions] = to.inputs, to.outputs

    def place(buffer: Buffer, row: PrimExpr, j: PrimExpr, size: int) -> tuple[PrimExpr, ...]:
        o, i = nest.unflatten(row, (outer, inner))
        return nest.unflatten((o * size + j) * inner + i, [int(e) for e in buffer.shape])

    def key(row: PrimExpr, j: PrimExpr) -> PrimExpr:
        found = key_of(nest.read(source, *place(source, row, j, length)), dtype)
        return reversed_key(found) if op.attr("largest") else found

    def finish(row: PrimExpr, found: Pairs) -> Stmt:
        def store(j: PrimExpr) -> Stmt:
            at = found.position(j)
            value = nest.read(source, *place(source, row, at, length))
            return nest.sequence(
                nest.write(values, value, *place(values, row, j, k)),
                nest.write(positions, cast(at, "int64"), *place(positions, row, j, k)),
            )

        return nest.serial(k, store, "rank")

    if not _selects(k, length):

        def sorted_row(row: PrimExpr) -> Stmt:
            pairs = Pairs.scratch(length, wide, "row")
            sorter = Sorter(pairs, length, dtype)
            return nest.sequence(
                pairs.allocate(),
                sorter.allocate(),
                nest.serial(length, lambda j: pairs.put(j, key(row, j), j)),
                sorter.sort(length),
                finish(row, pairs),
            )

        return to.function(parallel(count, sorted_row))
    lanes = lanes_of(traits, wide) if inner == 1 else 1
    pieces = 1 if count >= traits.threads else workers(traits, length, _PIECE)
    pieces = min(pieces, length // (_HEAP_SHARE * k)) or 1

    def selected(
        row: PrimExpr, start: PrimExpr | int, size: int, lanes: int, body: Callable[[Heap], Stmt]
    ) -> Stmt:
        heap = Heap(k, wide)
        return nest.sequence(
            heap.allocate(),
            select(heap, lambda j: key(row, start + j), lambda j: start + j, size, lanes),
            body(heap),
        )

    if pieces == 1:
        return to.function(
            parallel(
                count,
                lambda row: selected(
                    row, nest.integer(0), length, lanes, lambda heap: finish(row, heap.pairs)
                ),
            )
        )
    split = nest.Split.of(length, -(-length // pieces))
    winners = Pairs(
        nest.buffer((count * pieces * k,), wide, "winner_keys"),
        nest.buffer((count * pieces * k,), "int32", "winner_positions"),
    )

    def piece(task: PrimExpr) -> Stmt:
        row, p = nest.unflatten(task, (count, pieces))

        def keep(heap: Heap) -> Stmt:
            return nest.serial(
                k,
                lambda j: winners.put(task * k + j, heap.pairs.key(j), heap.pairs.position(j)),
            )

        return split.part(p, lambda start, size: selected(row, start, size, lanes, keep))

    def final(row: PrimExpr) -> Stmt:
        heap, first = Heap(k, wide), row * (pieces * k)
        return nest.sequence(
            heap.allocate(),
            select(
                heap,
                lambda j: winners.key(first + j),
                lambda j: winners.position(first + j),
                pieces * k,
                1,
            ),
            finish(row, heap.pairs),
        )

    return to.function(winners.allocate(), parallel(count * pieces, piece), parallel(count, final))


def select(heap: Heap, key: Key, position: Key, size: int, lanes: int) -> Stmt:
    """Leave the least pairs of `size` ones in `heap`, in order; with `lanes`, keys by vectors."""
    k, dtype = heap.k, str(heap.pairs.keys.dtype)

    def offer(found: PrimExpr, j: PrimExpr) -> Stmt:
        return tirx.IfThenElse(heap.wants(found), heap.replace(found, position(j)), None)

    def scalar(start: int, count: int) -> Stmt | None:
        if not count:
            return None
        return nest.serial(count, lambda j: offer(key(start + j), start + j), "j")

    parts: list[Stmt | None] = [
        nest.serial(k, lambda j: heap.pairs.put(j, key(j), position(j))),
        heap.build(),
    ]
    width = 4 * lanes
    blocks = (size - k) // width if lanes > 1 else 0
    if blocks:
        keys = nest.buffer((width,), dtype, "block", "local")
        least = nest.buffer((2 * lanes,), dtype, "least", "local")

        def block(b: PrimExpr) -> Stmt:
            start = k + b * width
            return nest.sequence(
                nest.unrolled(
                    4,
                    lambda u: nest.vectorized(
                        lanes,
                        lambda x: nest.write(keys, key(start + u * lanes + x), u * lanes + x),
                    ),
                ),
                nest.unrolled(
                    2,
                    lambda u: nest.vectorized(
                        lanes,
                        lambda x: nest.write(
                            least,
                            tirx.min(
                                nest.read(keys, u * lanes + x),
                                nest.read(keys, (u + 2) * lanes + x),
                            ),
                            u * lanes + x,
                        ),
                    ),
                ),
                *_halvings(least, lanes),
                tirx.IfThenElse(
                    heap.wants(nest.read(least, 0)),
                    nest.serial(width, lambda j: offer(nest.read(keys, j), start + j), "j"),
                    None,
                ),
            )

        parts += [nest.allocate(keys, least), nest.serial(blocks, block, "block")]
    done = k + blocks * width
    parts += [scalar(done, size - done), heap.sort()]
    return nest.sequence(*parts)


def _halvings(least: Buffer, lanes: int) -> list[Stmt]:
    """Statements that leave the least of 2·lanes elements in the first."""
    stmts = []
    width = lanes
    while width:
        stmts.append(
            nest.vectorized(
                width,
                lambda x, w=width: nest.write(  # type: ignore[misc]
                    least, tirx.min(nest.read(least, x), nest.read(least, x + w)), x
                ),
            )
        )
        width //= 2
    return stmts
