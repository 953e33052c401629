"""topk on a device: a block of threads sorts a row in shared memory.

Bitonic sorting (Batcher, "Sorting networks and their applications", 1968) of keys with their
positions in one 64-bit number each, so that equal elements stay in order. For elements of at most
32 bits, and rows that fit in shared memory; others are left to topk.py. Values are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.gpu.threads import barrier, grid, shared
from schedules.gpu.tilings import ceildiv
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.plain import Parameters, plain_candidate, rows_of
from schedules.scalar_values import cast
from schedules.sorting import key_dtype, key_of, reversed_key

_THREADS = 256
_PAIR = 8  # bytes


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate where threads are threads."""
    op, gpu = workload.op, traits.gpu
    if op.kind != "topk" or gpu is None or gpu.loops or not op.output.elements:
        return ()
    length = _size(op.inputs[0].shape[op.attr("axis")])
    if key_dtype(op.inputs[0].dtype) != "int32" or length * _PAIR > gpu.shared_bytes:
        return ()
    steps = length.bit_length() ** 2 / 2
    operations = 0.1 * steps * op.inputs[0].elements  # a multiprocessor does several at a time
    return (plain_candidate("gpu.topk", workload, partial(_compute, workload, traits), operations),)


def _size(length: int) -> int:
    """The power of two that is sorted."""
    return max(2, 1 << (length - 1).bit_length())


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    assert traits.gpu is not None
    op, to = workload.op, Parameters(workload)
    axis, dtype = op.attr("axis"), op.inputs[0].dtype
    outer, length, inner = rows_of(op.inputs[0], axis)
    k, size = op.output.shape[axis], _size(length)
    [source], [values, positions] = to.inputs, to.outputs
    threads = 1 << (min(_THREADS, traits.gpu.max_threads, size // 2).bit_length() - 1)
    pairs = shared((size,), "int64", "pairs")

    def row_of(row: PrimExpr, thread: PrimExpr) -> Stmt:
        o, i = nest.unflatten(row, (outer, inner))

        def place(buffer: Buffer, j: PrimExpr, extent: int) -> tuple[PrimExpr, ...]:
            return nest.unflatten((o * extent + j) * inner + i, [int(e) for e in buffer.shape])

        def each(count: int, body: Callable[[PrimExpr], Stmt]) -> Stmt:
            """body of `count` numbers shared among the threads."""

            def turn(number: PrimExpr) -> Stmt:
                j = number * threads + thread
                stmt = body(j)
                return stmt if count % threads == 0 else tirx.IfThenElse(j < count, stmt, None)

            return nest.serial(ceildiv(count, threads), turn, "turn")

        def load(j: PrimExpr) -> Stmt:
            key = key_of(nest.read(source, *place(source, j, length)), dtype)
            key = reversed_key(key) if op.attr("largest") else key
            pair = (cast(key, "int64") << tirx.const(32, "int64")) | cast(j, "int64")
            if size != length:
                pair = tirx.if_then_else(j < length, pair, tirx.max_value("int64"))
            return nest.write(pairs, pair, j)

        def store(j: PrimExpr) -> Stmt:
            at = cast(nest.read(pairs, j) & tirx.const(0x7FFFFFFF, "int64"), "int32")
            value = nest.read(source, *place(source, at, length))
            return nest.sequence(
                nest.write(values, value, *place(values, j, k)),
                nest.write(positions, cast(at, "int64"), *place(positions, j, k)),
            )

        sort = _sorted(pairs, size, lambda body: each(size // 2, body))
        return nest.sequence(
            nest.allocate(pairs), each(size, load), barrier(), sort, each(k, store)
        )

    return to.function(grid(outer * inner, threads, row_of))


def _sorted(pairs: Buffer, size: int, each: Callable[[Callable[[PrimExpr], Stmt]], Stmt]) -> Stmt:
    """Sort `size` numbers, a power of two; `each` shares half as many among the threads."""
    one = nest.integer(1)

    def merge(stage: PrimExpr) -> Stmt:
        """Make sorted runs of 2^(stage + 1), every other one descending, of runs half as long."""

        def step(number: PrimExpr) -> Stmt:
            shift = stage - number
            distance = one << shift

            def exchange(i: PrimExpr) -> Stmt:
                low = ((i >> shift) << (shift + 1)) | (i & (distance - 1))
                high = low + distance
                descending = (low >> (stage + 1)) & one
                first, second = tirx.Var("first", "int64"), tirx.Var("second", "int64")
                swap = nest.sequence(nest.write(pairs, second, low), nest.write(pairs, first, high))
                wrong = tirx.Select(descending > 0, first < second, first > second)
                return nest.sequence(
                    tirx.Bind(first, nest.read(pairs, low)),
                    tirx.Bind(second, nest.read(pairs, high)),
                    tirx.IfThenElse(wrong, swap, None),
                )

            return nest.sequence(each(exchange), barrier())

        return nest.serial(stage + 1, step, "step")

    return nest.serial(size.bit_length() - 1, merge, "stage")
