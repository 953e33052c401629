"""Functions of a byte, by a table of all its 256 values.

With AVX-512 VBMI the table lies in four registers: two permutations of pairs of them look up the
lower and the upper half for 64 bytes at once, of which the highest bit of each chooses. Elsewhere
each byte is an index to the table in memory.
"""

from __future__ import annotations

from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.interface import (
    PLAIN,
    Candidate,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
    channel_layouts,
)
from schedules.nest import Buffer, Stmt
from schedules.vectors import Frame, blocks_of, candidate, parallel

_WIDTH = 64
_PERMUTE = "llvm.x86.avx512.vpermi2var.qi.512"
_TASK_BYTES = 1 << 12
_UNROLLED = 8


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major, and blocked by channels."""
    op = workload.op
    if op.kind != "lookup":
        return ()
    shape = op.output.shape
    layouts = [PLAIN]
    if len(shape) >= 3:
        layouts += channel_layouts(shape[1], [op.output.dtype], traits)
    return tuple(
        candidate(
            f"lookup.{'permuted' if traits.vbmi else 'indexed'}",
            workload,
            (layout, PLAIN),
            layout,
            partial(_compute, workload, layout, traits),
            flops_per_element=0.5 if traits.vbmi else 8.0,
        )
        for layout in layouts
    )


def _compute(workload: Workload, layout: Layout, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    frame = Frame(workload, (layout, PLAIN), layout)
    source, table = frame.inputs
    total = prod(frame.shape)

    def place(at: PrimExpr) -> tuple[PrimExpr, ...]:
        return nest.unflatten(at, frame.shape)

    channels = op.output.shape[1:2]
    padded = bool(layout.block) and channels[0] % layout.block != 0

    def finish(value: PrimExpr, at: PrimExpr, lane: PrimExpr) -> Stmt:
        """Store a value; zero in lanes past the last channel."""
        if not padded and not workload.epilogue.operands:
            # Where only the address counts, a vector may go on into the next row.
            *outer, last = place(at)
            return frame.finish(value, (*outer, last + lane))
        index = place(at + lane)
        if padded:
            inside = index[1] * layout.block + index[-1] < channels[0]
            value = tirx.Select(inside, value, tirx.const(0, op.output.dtype))
        return frame.finish(value, index)

    def single(at: PrimExpr) -> Stmt:
        index = tirx.Cast("int32", tirx.Cast("uint8", nest.read(source, *place(at))))
        return finish(nest.read(table, index), at, nest.integer(0))

    def singles(first: PrimExpr, count: int) -> Stmt:
        whole, rest = divmod(count, _UNROLLED)
        loop = nest.serial(
            whole, lambda i: nest.unrolled(_UNROLLED, lambda u: single(first + i * _UNROLLED + u))
        )
        tail = [single(first + (whole * _UNROLLED + u)) for u in range(rest)]
        return nest.sequence(loop if whole else None, *tail)

    def run(first: PrimExpr, count: int) -> Stmt:
        if not traits.vbmi:
            return singles(first, count)
        whole, rest = divmod(count, _WIDTH)
        wide = vectors(first, whole) if whole else None
        return nest.sequence(wide, singles(first + whole * _WIDTH, rest) if rest else None)

    def vectors(first: PrimExpr, count: int) -> Stmt:
        quarters = [_quarter(table, i) for i in range(4)]
        found = nest.buffer((_WIDTH,), op.output.dtype, "found", "local")
        kind = f"int8x{_WIDTH}"

        def vector(i: PrimExpr) -> Stmt:
            at = first + i * _WIDTH
            *outer, last = place(at)
            index = tirx.Var("index", kind)
            read = nest.read(source, *outer, nest.ramp(last, _WIDTH))
            low, high = (
                tirx.call_llvm_pure_intrin(kind, _PERMUTE, quarters[j], index, quarters[j + 1])
                for j in (0, 2)
            )
            zero = tirx.Broadcast(tirx.const(0, "int8"), _WIDTH)
            value = tirx.Select(index < zero, high, low)
            dtype = f"{op.output.dtype}x{_WIDTH}"
            store = nest.write(found, tirx.reinterpret(dtype, value), nest.ramp(0, _WIDTH))
            finished = nest.vectorized(_WIDTH, lambda x: finish(nest.read(found, x), at, x))
            return nest.sequence(tirx.Bind(index, tirx.reinterpret(kind, read)), store, finished)

        return nest.sequence(nest.allocate(found), nest.serial(count, vector, "vector"))

    def task(start: int, size: int, t: PrimExpr) -> Stmt:
        return run(t * size + start, size)

    nests = [
        parallel(count, partial(task, start, size))
        for start, count, size in blocks_of(total, _TASK_BYTES)
    ]
    return frame.function(*nests)


def _quarter(table: Buffer, number: int) -> PrimExpr:
    part = nest.read(table, nest.ramp(number * _WIDTH, _WIDTH))
    return tirx.reinterpret(f"int8x{_WIDTH}", part)
