"""Scaled dot-product attention in one kernel: scores, softmax and values of a block of rows.

A worker keeps the scores of its rows, not those of the whole matrix. The softmax subtracts the
row's maximum and divides after the product with v, as in Rabe and Staats, "Self-attention does not
need O(n²) memory" (2021). Heads outside or inside the sequence axis differ in strides only. Error
against float64: at most 1e-5 relative to the largest output for standard-normal operands in
float32. A row whose scores are all −∞ gives NaN, as a softmax does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.attention_softmax import exponentials
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gemm import PEAK_SHARE, traffic
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Knob,
    Op,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Buffer, Stmt
from schedules.product import (
    STACK_LIMIT,
    accumulator_dtype,
    accumulator_lanes,
    aligned,
    cast,
    ceildiv,
)
from schedules.space import tunable
from schedules.tile import Tile, accumulate, by_vectors, tallest
from schedules.transposing import copy_panel_transposed

Index: TypeAlias = tuple[Any, ...]
"""One entry per axis: an extent or a coordinate."""

VECTORS = 2  # per panel of keys and of values, if nothing else was found to be better
EXP_CYCLES = 16.0  # per vector of scores: maximum, exponential and sum
UNEVEN = 1.1  # largest share of a worker, as a multiple of the mean, that needs no finer cut


@dataclass(frozen=True)
class AttentionPlan:
    """How attention is cut: `chunks` tasks of the rows of queries, tiles of at most `height` rows,
    and panels of so many vectors of keys and of values."""

    vectors: int
    height: int
    chunks: int


@dataclass(frozen=True)
class Rows:
    """The rows of queries: `chunks` tasks of several tiles each."""

    chunks: int
    tiles: nest.Split

    @property
    def each(self) -> int:
        """Tiles per task."""
        return self.tiles.count // self.chunks


def heads_inside(op: Op) -> tuple[bool, ...]:
    """For q, k, v and the output: whether it is (B,S,H,D) instead of (B,H,S,D)."""
    inside: tuple[bool, ...] = dict(op.attrs).get("heads_inside", (False,) * 4)  # type: ignore[assignment]
    return inside


def swapped(index: Index, inside: bool) -> Index:
    """(b, h, s, d) as the tensor has them, and back."""
    b, h, s, d = index
    return (b, s, h, d) if inside else (b, h, s, d)


def dimensions(op: Op) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of q, k and v as (B,H,S,D), (B,H,T,D) and (B,H,T,E)."""
    q, k, v = (
        swapped(sig.shape, inside)
        for sig, inside in zip(op.inputs[:3], heads_inside(op)[:3], strict=True)
    )
    return q, k, v


def plan(workload: Workload, traits: TargetTraits) -> AttentionPlan:
    """Few chunks, for each transposes all keys, but enough for the workers and the cache."""
    (batch, heads, count, _), k, _ = dimensions(workload.op)
    row_bytes = k[2] * np.dtype(accumulator_dtype(workload)).itemsize
    height = tallest(VECTORS, traits)
    tiles = ceildiv(count, height)
    chunks = 1
    while chunks < tiles:
        tasks = batch * heads * chunks
        even = ceildiv(tasks, traits.threads) * traits.threads <= UNEVEN * tasks
        fits = ceildiv(count, chunks) * row_bytes <= traits.l2_bytes // 4
        if even and fits:
            break
        chunks += 1
    return AttentionPlan(VECTORS, height, chunks)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The candidate for an attention workload."""
    if workload.op.kind != "attention":
        return ()
    default = plan(workload, traits)
    count = dimensions(workload.op)[0][2]
    knobs = (
        Knob("vectors", tuple(range(1, 7))),
        Knob("height", tuple(range(1, min(count, tallest(1, traits)) + 1))),
        Knob("chunks", tuple(range(1, min(count, 8 * traits.threads) + 1))),
    )
    decisions = {"vectors": default.vectors, "height": default.height, "chunks": default.chunks}
    return (tunable(knobs, decisions, partial(_decided, workload, traits)),)


def _decided(
    workload: Workload, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The candidate with these decisions."""
    op = workload.op
    cut = AttentionPlan(values["vectors"], values["height"], values["chunks"])
    (batch, heads, rows, depth), _, (_, _, keys, width) = dimensions(op)
    if cut.height > tallest(cut.vectors, traits) or cut.chunks > ceildiv(rows, cut.height):
        return None
    lanes = accumulator_lanes(workload, traits)
    scores = float(batch * heads * rows * keys)
    flops = 2 * scores * (depth + width)
    multiply = flops / (4 * lanes)
    whole = multiply / PEAK_SHARE * 1.15 + EXP_CYCLES * scores / lanes
    layouts = operand_layouts(workload.epilogue, workload.output, PLAIN)
    return Candidate(
        name="attention.rows",
        layouts=(PLAIN,) * len(op.inputs) + layouts,
        output=PLAIN,
        cost=Cost(flops, traffic(workload), multiply / whole),
        compute=partial(build, workload, cut, lanes),
        schedule=nest.as_written,
    )


def build(workload: Workload, cut: AttentionPlan, lanes: int) -> PrimFunc:
    """The kernel."""
    op, dtype = workload.op, accumulator_dtype(workload)
    (batch, heads, count, depth), _, (_, _, keys, width) = dimensions(op)
    rows = Rows(cut.chunks, nest.Split.of(count, cut.height, cut.chunks))
    q_inside, k_inside, v_inside, output_inside = heads_inside(op)
    scale = tirx.const(float(op.attr("scale")), dtype)
    names = ("q", "k", "v", "mask")
    inputs = [nest.buffer(s.shape, s.dtype, n) for s, n in zip(op.inputs, names, strict=False)]
    q, k, v, *mask = inputs
    operands = nest.operand_buffers(workload)
    output = nest.buffer(workload.output.shape, workload.output.dtype, "output")
    panel = cut.vectors * lanes

    def scratch(shape: tuple[int, ...], name: str) -> Buffer:
        small = int(np.prod(shape)) * np.dtype(dtype).itemsize <= STACK_LIMIT // 2
        return nest.buffer(shape, dtype, name, "local" if small else "global")

    def task(t: PrimExpr) -> Stmt:
        b, h, chunk = nest.unflatten(t, (batch, heads, rows.chunks))
        # As variables: TVM's elimination of common subexpressions fails on divisions in branches.
        return nest.bind(b, lambda b: nest.bind(h, lambda h: head(b, h, chunk), "h"), "b")

    def head(b: PrimExpr, h: PrimExpr, chunk: PrimExpr) -> Stmt:
        scores = scratch((rows.each, rows.tiles.largest, keys), "scores")

        def key_panels() -> Stmt:
            whole, rest = divmod(keys, panel)
            parts = []
            if whole:
                parts.append(nest.serial(whole, lambda p: key_panel(p * panel, panel), name="p"))
            if rest:
                parts.append(key_panel(nest.integer(whole * panel), rest))
            return nest.sequence(*parts)

        def key_panel(start: PrimExpr, columns: int) -> Stmt:
            turned = scratch((depth, panel), "turned")

            def source(d: PrimExpr, j: PrimExpr) -> PrimExpr:
                return cast(nest.read(k, *swapped((b, h, start + j, d), k_inside)), dtype)

            return nest.sequence(
                nest.allocate(turned),
                copy_panel_transposed(source, turned, depth, columns, lanes, dtype),
                nest.serial(
                    rows.each,
                    lambda i: rows.tiles.part(
                        chunk * rows.each + i,
                        lambda row, n: score_tile(turned, start, columns, i, row, n),
                    ),
                    name="block",
                ),
            )

        def score_tile(
            turned: Buffer, start: PrimExpr, columns: int, slot: PrimExpr, row: PrimExpr, n: int
        ) -> Stmt:
            tile = Tile(n, ceildiv(columns, lanes), lanes)
            result = nest.buffer((n, tile.columns), dtype, "tile", "local")

            def finish(i: PrimExpr, j: PrimExpr) -> Stmt:
                value = nest.read(result, i, j) * scale
                for m in mask:
                    index = aligned((b, h, row + i, start + j), op.inputs[3].shape)
                    value = value + cast(nest.read(m, *index), dtype)
                return nest.write(scores, value, slot, i, start + j)

            return nest.sequence(
                nest.allocate(result),
                accumulate(
                    tile,
                    depth,
                    lambda i, d: cast(nest.read(q, *swapped((b, h, row + i, d), q_inside)), dtype),
                    lambda d, j: nest.read(turned, d, j),
                    dtype,
                    result,
                ),
                nest.serial(n, lambda i: by_vectors(columns, lanes, lambda j: finish(i, j))),
            )

        def value_tiles(slot: PrimExpr, row: PrimExpr, n: int) -> Stmt:
            share = nest.buffer((n,), dtype, "share", "local")
            whole, rest = divmod(width, panel)
            parts = []
            if whole:
                full = Tile(n, cut.vectors, lanes)
                parts.append(
                    nest.serial(
                        whole, lambda p: value_tile(full, share, slot, row, p * panel), name="p"
                    )
                )
            if rest // lanes:
                some = Tile(n, rest // lanes, lanes)
                parts.append(value_tile(some, share, slot, row, nest.integer(whole * panel)))
            if rest % lanes:
                thin = Tile(n, 1, rest % lanes)
                start = nest.integer(width - rest % lanes)
                parts.append(value_tile(thin, share, slot, row, start))
            softmax = nest.serial(
                n, lambda i: exponentials(scores, share, slot, i, keys, lanes, dtype)
            )
            return nest.sequence(nest.allocate(share), softmax, *parts)

        def value_tile(
            tile: Tile, share: Buffer, slot: PrimExpr, row: PrimExpr, start: PrimExpr
        ) -> Stmt:
            result = nest.buffer((tile.rows, tile.columns), dtype, "tile", "local")

            def finish(i: PrimExpr, j: PrimExpr) -> Stmt:
                value = cast(nest.read(result, i, j) * nest.read(share, i), op.output.dtype)
                index = swapped((b, h, row + i, start + j), output_inside)
                reads = [nest.reader(x) for x in operands]
                return nest.write(
                    output, apply_epilogue(workload, value, reads, PLAIN, index), *index
                )

            return nest.sequence(
                nest.allocate(result),
                accumulate(
                    tile,
                    keys,
                    lambda i, t: nest.read(scores, slot, i, t),
                    lambda t, j: cast(
                        nest.read(v, *swapped((b, h, t, start + j), v_inside)), dtype
                    ),
                    dtype,
                    result,
                ),
                nest.serial(
                    tile.rows,
                    lambda i: by_vectors(tile.columns, tile.lanes, lambda j: finish(i, j)),
                ),
            )

        return nest.sequence(
            nest.allocate(scores),
            key_panels(),
            nest.serial(
                rows.each,
                lambda i: rows.tiles.part(
                    chunk * rows.each + i, lambda row, n: value_tiles(i, row, n)
                ),
                name="block",
            ),
        )

    return nest.function(
        [*inputs, *operands, output], nest.parallel(batch * heads * rows.chunks, task)
    )
