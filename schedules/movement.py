"""Kernels that only move data: concat, slice, pad, take. Exact; transpose is in transpose.py.

Each output is a set of rows: leading axes choose the row, trailing axes that are contiguous in both
input and output are one run of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.elementwise import output_groups
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
from schedules.nest import Stmt
from schedules.vectors import (
    Frame,
    blocks_of,
    candidate,
    lanes_of,
    over_vectors,
    parallel_grid,
)

_TASKS = 16
_LONG_RUN = 1024

Index = Sequence[PrimExpr]


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major, and blocked where no block of channels is cut."""
    op = workload.op
    compute = {"concat": _concat, "slice": _slice, "pad": _pad, "take": _take}.get(op.kind)
    if compute is None:
        return ()
    layouts, shape = [PLAIN], op.output.shape
    if len(shape) >= 3:
        usual = channel_layouts(shape[1], [op.output.dtype], traits)
        layouts += [layout for layout in usual if _blockable(workload, layout)]
    return tuple(
        candidate(
            op.kind,
            workload,
            (layout,) * len(op.inputs),
            layout,
            partial(compute, workload, layout, traits),
            flops_per_element=0.0,
        )
        for layout in layouts
    )


def _blockable(workload: Workload, layout: Layout) -> bool:
    """Whether whole blocks of channels move together."""
    op = workload.op
    if op.kind == "concat":
        cut = op.attr("axis") == 1
        return not cut or all(sig.shape[1] % layout.block == 0 for sig in op.inputs[:-1])
    if op.kind == "slice":
        return bool(op.attr("begin")[1] % layout.block == 0 and op.attr("strides")[1] == 1)
    if op.kind == "pad":
        channels = op.output.shape[1]
        # A fill of padding lanes would have to be masked.
        if len(op.inputs) > 1:
            return False
        fills = op.attr("mode") == "constant" and op.attr("value") != 0
        ragged = channels % layout.block != 0
        kept = op.attr("before")[1] == 0 and channels == op.inputs[0].shape[1]
        return bool(kept and not (fills and ragged))
    return False


def rows(
    frame: Frame,
    traits: TargetTraits,
    split: int,
    value: Callable[[Index], PrimExpr],
) -> list[Stmt]:
    """Nests that store value(index) for all of the output: rows by axes < split, runs of the rest.

    An epilogue whose operands are broadcast along leading axes of the run moves the split inwards,
    so that no vector divides its index.
    """
    shape = frame.shape
    workload = frame.workload
    if workload.epilogue.operands:
        split = max(split, len(shape) - output_groups(workload, frame.layout)[-1])
    lead, trail = shape[:split], shape[split:]
    lanes = lanes_of(traits, workload.output.dtype, *(s.dtype for s in workload.op.inputs[:1]))
    count = prod(lead)
    length = prod(trail)
    size = length
    if count < _TASKS and length >= _LONG_RUN:
        step = 4 * lanes
        size = -(-length * count // (_TASKS * step)) * step

    def run(start: int, width: int, outer: Index, piece: PrimExpr) -> Stmt | None:
        def store(i: PrimExpr) -> Stmt:
            index = [*outer, *nest.unflatten(i + (piece * width + start), trail)]
            return frame.finish(value(index), index)

        return over_vectors(width, lanes, store)

    return [
        parallel_grid(
            (count, pieces),
            lambda r, piece, start=start, width=width: run(
                start, width, nest.unflatten(r, lead) if lead else (), piece
            ),
        )
        for start, pieces, width in blocks_of(length, size)
    ]


def _concat(workload: Workload, layout: Layout, traits: TargetTraits) -> PrimFunc:
    """One nest per input, over the input's physical shape."""
    frame = Frame(workload, (layout,) * len(workload.op.inputs), layout)
    axis = workload.op.attr("axis")
    lanes = lanes_of(traits, workload.op.output.dtype, workload.output.dtype)
    split = axis
    if workload.epilogue.operands:
        split = max(axis, len(frame.shape) - output_groups(workload, layout)[-1])
    nests: list[Stmt] = []
    offset = 0
    for buffer, sig in zip(frame.inputs, workload.op.inputs, strict=True):
        shape = layout.physical(sig.shape)
        if not prod(shape):
            continue
        nests += _copy_in(frame, buffer, shape, split, axis, offset, lanes)
        offset += shape[axis]
    return frame.function(*nests)


def _copy_in(
    frame: Frame,
    buffer: nest.Buffer,
    shape: Sequence[int],
    split: int,
    axis: int,
    offset: int,
    lanes: int,
) -> list[Stmt]:
    """Store one input of a concat at `offset` of `axis`."""
    lead, trail = shape[:split], shape[split:]
    count, length = prod(lead), prod(trail)
    size = length
    if count < _TASKS and length >= _LONG_RUN:
        size = -(-length * count // (_TASKS * 4 * lanes)) * 4 * lanes

    def run(r: PrimExpr, piece: PrimExpr, start: int, width: int) -> Stmt | None:
        outer = nest.unflatten(r, lead) if lead else ()

        def store(i: PrimExpr) -> Stmt:
            source = [*outer, *nest.unflatten(i + (piece * width + start), trail)]
            target = list(source)
            target[axis] = target[axis] + offset
            return frame.finish(nest.read(buffer, *source), target)

        return over_vectors(width, lanes, store)

    return [
        parallel_grid((count, pieces), partial(run, start=start, width=width))
        for start, pieces, width in blocks_of(length, size)
    ]


def _mask(frame: Frame, index: Index, value: PrimExpr) -> PrimExpr:
    """`value`, or zero in lanes past the last channel of a blocked output."""
    block = frame.layout.block
    channels = frame.workload.output.shape[1]
    zero = tirx.const(0, frame.workload.op.output.dtype)
    return tirx.Select(index[1] * block + index[-1] < channels, value, zero)


def _slice(workload: Workload, layout: Layout, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    frame = Frame(workload, (layout,), layout)
    begin, strides = list(op.attr("begin")), list(op.attr("strides"))
    source = layout.physical(op.inputs[0].shape)
    if layout.block:
        begin = [begin[0], begin[1] // layout.block, *begin[2:], 0]
        strides.append(1)
    target = frame.shape
    moved = [a for a in range(len(target)) if begin[a] or strides[a] != 1 or source[a] != target[a]]
    last = moved[-1] if moved else 0
    # A stride keeps its axis from being contiguous with the following ones.
    split = last if not moved or strides[last] == 1 or last == len(target) - 1 else last + 1
    channels = op.output.shape[1] if layout.block else 0
    cut = bool(layout.block and channels != op.inputs[0].shape[1] and channels % layout.block)

    def value(index: Index) -> PrimExpr:
        found = slice_value(frame, begin, strides, index)
        return _mask(frame, index, found) if cut else found

    return frame.function(*rows(frame, traits, split, value))


def slice_value(
    frame: Frame, begin: Sequence[int], strides: Sequence[int], index: Index
) -> PrimExpr:
    """The element of a slice at `index`."""
    at = [i * s + b for i, s, b in zip(index, strides, begin, strict=True)]
    return nest.read(frame.inputs[0], *at)


def _clamped(i: PrimExpr, size: int) -> PrimExpr:
    return tirx.max(tirx.min(i, size - 1), 0)


def _wrapped(i: PrimExpr, size: int) -> PrimExpr:
    return tirx.floormod(i, nest.integer(size))


def _reflected(i: PrimExpr, size: int) -> PrimExpr:
    """`i` mirrored at the first and at the last element, as often as it takes."""
    if size == 1:
        return nest.integer(0)
    period = nest.integer(2 * (size - 1))
    i = tirx.floormod(i, period)
    return tirx.Select(i > size - 1, period - i, i)


SOURCES: Mapping[str, Callable[[PrimExpr, int], PrimExpr]] = {
    "constant": lambda i, size: i,
    "edge": _clamped,
    "wrap": _wrapped,
    "reflect": _reflected,
}
"""(position relative to the input's start, the input's size) → where it is read, by mode."""


def _pad(workload: Workload, layout: Layout, traits: TargetTraits) -> PrimFunc:
    """Rows inside are copied, rows outside filled; the last padded axis is cut in three."""
    op = workload.op
    frame = Frame(workload, (layout,) * len(op.inputs), layout)
    before = [*op.attr("before"), *([0] if layout.block else [])]
    source, target = layout.physical(op.inputs[0].shape), frame.shape
    mode = op.attr("mode")
    if len(op.inputs) > 1:
        fill = nest.read(frame.inputs[1], 0)
    else:
        fill = tirx.const(op.attr("value") if mode == "constant" else 0, op.output.dtype)
    padded = [a for a in range(len(target)) if before[a] or source[a] != target[a]]

    def read(index: Index, known_inside: bool) -> PrimExpr:
        at = list(index)
        for a in padded:
            i = index[a] - before[a]
            size = source[a]
            at[a] = i if known_inside else SOURCES[mode](i, size)
        return nest.read(frame.inputs[0], *at)

    lanes = lanes_of(traits, op.output.dtype, workload.output.dtype)
    last = padded[-1] if padded else len(target) - 1
    trail = prod(target[last + 1 :])
    lead = target[:last]

    def row(*outer: PrimExpr) -> Stmt:
        """One row of the last padded axis: before, inside, after."""

        def inside(at: Index, axes: Sequence[int]) -> PrimExpr:
            bounds = [(at[a] >= before[a], at[a] < before[a] + source[a]) for a in axes]
            return tirx.all(*[condition for pair in bounds for condition in pair])

        def cell(i: PrimExpr, known_inside: bool) -> Stmt | None:
            def index(x: PrimExpr) -> list[PrimExpr]:
                return [*outer, i, *nest.unflatten(x, target[last + 1 :])]

            def copy(x: PrimExpr) -> Stmt:
                return frame.finish(read(index(x), known_inside), index(x))

            def clear(x: PrimExpr) -> Stmt:
                return frame.finish(fill, index(x))

            copied = over_vectors(trail, lanes, copy)
            if known_inside or mode != "constant":
                return copied
            return nest.branch(
                inside([*outer, i], padded), copied, over_vectors(trail, lanes, clear)
            )

        low = min(max(before[last], 0), target[last])
        high = max(low, min(before[last] + source[last], target[last]))

        def border(start: int, count: int) -> Stmt | None:
            return nest.serial(count, lambda i: cell(i + start, False)) if count else None

        def middle(known: bool) -> Stmt | None:
            if high == low:
                return None
            if trail > 1 or not known:
                return nest.serial(high - low, lambda i: cell(i + low, known))
            return over_vectors(high - low, lanes, lambda i: cell(i + low, True))

        body = middle(True)
        leading = [a for a in padded if a != last]
        if leading and body is not None:
            body = nest.branch(inside(outer, leading), body, middle(False))
        return nest.sequence(border(0, low), body, border(high, target[last] - high))

    return frame.function(parallel_grid(lead, row))


def _take(workload: Workload, layout: Layout, traits: TargetTraits) -> PrimFunc:
    """Rows by index; an index is brought into range, so that a wrong one cannot read elsewhere."""
    op = workload.op
    frame = Frame(workload, (PLAIN, PLAIN), PLAIN)
    rank = len(op.inputs[1].shape)
    split = min(op.attr("axis") + rank, max(len(frame.shape) - 1, 0))
    return frame.function(*rows(frame, traits, split, partial(take_value, frame)))


def take_value(frame: Frame, index: Index) -> PrimExpr:
    """The element of a take at `index`."""
    op, (data, indices) = frame.workload.op, frame.inputs
    axis, rank = op.attr("axis"), len(op.inputs[1].shape)
    size = op.inputs[0].shape[axis]
    where = index[axis : axis + rank]
    at = tirx.Cast("int32", nest.read(indices, *where) if rank else nest.read(indices))
    at = tirx.Select(at < 0, at + size, at)
    at = tirx.max(tirx.min(at, size - 1), 0)
    return nest.read(data, *index[:axis], at, *index[axis + rank :])
