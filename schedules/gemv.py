"""Matrix products with few columns, or few rows of a transposed right operand: inner products.

Vectors run along the depth. Inner products sum `lanes` partial sums each, which differs from
summing in order within the limit of `schedules.gemm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from schedules import gemm, nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gemm import FEW_ROWS
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Knob,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Stmt
from schedules.product import (
    PRODUCTS,
    accumulator_dtype,
    accumulator_lanes,
    aligned,
    cast,
    ceildiv,
    centred,
    problem_of,
    zeros_of,
)
from schedules.space import tunable
from schedules.tile import fold


@dataclass(frozen=True)
class Transposed:
    """Packs a (…, K, N) matrix as (…, N, K)."""

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        return np.ascontiguousarray(array.swapaxes(-1, -2))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        return (*shape[:-2], shape[-1], shape[-2])


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Inner products for a matmul of few rows, or of fewer columns than a vector has lanes."""
    op = workload.op
    if op.kind not in PRODUCTS:
        return ()
    problem, lanes = problem_of(workload), accumulator_lanes(workload, traits)
    readable = op.constant[1] or op.attr("transpose_b")
    few = problem.columns < lanes or (problem.rows <= FEW_ROWS and not op.constant[1])
    if not (readable and problem.depth >= lanes > 1 and few):
        return ()
    rows = min(problem.rows, 3)
    columns = min(problem.columns, (traits.vector_registers - 4) // (rows + 1), 6)
    knobs = (
        Knob("rows", tuple(range(1, min(problem.rows, 8) + 1))),
        Knob("columns", tuple(range(1, min(problem.columns, 8) + 1))),
    )
    make = partial(_decided, workload, traits)
    return (tunable(knobs, {"rows": rows, "columns": columns}, make),)


def _decided(
    workload: Workload, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """Inner products, so many rows × columns at a time."""
    op, problem = workload.op, problem_of(workload)
    lanes = accumulator_lanes(workload, traits)
    rows, columns = values["rows"], values["columns"]
    if rows * columns + rows + 1 > traits.vector_registers:
        return None
    tiles = prod(problem.batch) * ceildiv(problem.rows, rows) * ceildiv(problem.columns, columns)
    steps = problem.depth // lanes + problem.depth % lanes
    cycles = tiles * (steps * max(4.0, rows * columns / 2) + 12 * rows * columns)
    share = max(0.01, min(1.0, problem.flops / (4 * traits.lanes) / cycles))
    packing = PLAIN if op.attr("transpose_b") else Transposed()
    return Candidate(
        name="matmul.inner",
        layouts=(PLAIN, packing, *operand_layouts(workload.epilogue, workload.output, PLAIN)),
        output=PLAIN,
        cost=Cost(problem.flops, gemm.traffic(workload), gemm.PEAK_SHARE * share),
        compute=partial(build, workload, rows, columns, lanes),
        schedule=nest.as_written,
    )


def build(workload: Workload, rows: int, columns: int, lanes: int) -> PrimFunc:
    """Inner products, `rows` × `columns` at a time; b is (…, N, K) in memory."""
    op, problem, dtype = workload.op, problem_of(workload), accumulator_dtype(workload)
    a_shape, leading = op.inputs[0].shape, op.inputs[1].shape[:-2]
    a = nest.buffer(a_shape, op.inputs[0].dtype, "a")
    b = nest.buffer((*leading, problem.columns, problem.depth), op.inputs[1].dtype, "b")
    operands = nest.operand_buffers(workload)
    output = nest.buffer(workload.output.shape, workload.output.dtype, "output")
    row_split = nest.Split.of(problem.rows, rows)
    column_split = nest.Split.of(problem.columns, columns)
    whole = problem.depth // lanes
    zeros = zeros_of(op)

    def row_index(
        batch: tuple[PrimExpr, ...], row: PrimExpr, shape: tuple[int, ...]
    ) -> tuple[PrimExpr, ...]:
        if problem.batch:
            return (*aligned(batch, shape[:-1]), row)
        return nest.unflatten(row, shape)

    def tile(batch: tuple[PrimExpr, ...], row: PrimExpr, column: PrimExpr,
             tall: int, wide: int) -> Stmt:  # fmt: skip
        sums = nest.buffer((tall, wide, lanes), dtype, "sums", "local")
        acc = nest.buffer((tall, wide, lanes), dtype, "acc", "local")

        def each(body: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
            return nest.unrolled(tall, lambda i: nest.unrolled(wide, lambda j: body(i, j)))

        def product(i: PrimExpr, j: PrimExpr, k: PrimExpr) -> PrimExpr:
            left = nest.read(a, *row_index(batch, row + i, a_shape[:-1]), k)
            right = nest.read(b, *aligned(batch, leading), column + j, k)
            return centred(left, dtype, zeros[0]) * centred(right, dtype, zeros[1])

        def lane(i: PrimExpr, j: PrimExpr, body: Callable[[PrimExpr], PrimExpr]) -> Stmt:
            return nest.vectorized(lanes, lambda x: nest.write(acc, body(x), i, j, x))

        def finish(i: PrimExpr, j: PrimExpr) -> Stmt:
            """Add the lanes by halves, then the products past the last whole vector."""
            copied = nest.vectorized(
                lanes, lambda x: nest.write(sums, nest.read(acc, i, j, x), i, j, x)
            )
            tail = [
                nest.write(
                    sums,
                    nest.read(sums, i, j, 0) + product(i, j, nest.integer(k)),
                    i,
                    j,
                    0,
                )
                for k in range(whole * lanes, problem.depth)
            ]
            index = (*row_index(batch, row + i, op.output.shape[:-1]), column + j)
            value = cast(nest.read(sums, i, j, 0), op.output.dtype)
            reads = [nest.reader(x) for x in operands]
            result = apply_epilogue(workload, value, reads, PLAIN, index)
            folded = fold(sums, (i, j), lanes, lambda x, y: x + y)
            return nest.sequence(copied, folded, *tail, nest.write(output, result, *index))

        return nest.sequence(
            nest.allocate(sums, acc),
            each(lambda i, j: lane(i, j, lambda x: tirx.const(0, dtype))),
            nest.serial(
                whole,
                lambda k: each(
                    lambda i, j: lane(
                        i, j, lambda x: nest.read(acc, i, j, x) + product(i, j, k * lanes + x)
                    )
                ),
                name="k",
            ),
            each(finish),
        )

    def task(t: PrimExpr) -> Stmt:
        shape = (*problem.batch, row_split.count, column_split.count)
        *index, block, part = nest.unflatten(t, shape)
        batch = tuple(index)
        return row_split.part(
            block,
            lambda row, tall: column_split.part(
                part, lambda column, wide: tile(batch, row, column, tall, wide)
            ),
        )

    tasks = prod(problem.batch) * row_split.count * column_split.count
    return nest.function([a, b, *operands, output], nest.parallel(tasks, task))
