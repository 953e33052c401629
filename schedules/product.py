"""The loop nest of every matrix product: batches, column panels, row blocks, register tiles."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod

import numpy as np

from schedules import nest
from schedules.epilogue import apply_epilogue
from schedules.interface import PLAIN, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.tile import Tile, accumulate, by_vectors, cycles
from schedules.transposing import copy_panel, copy_panel_transposed

STACK_LIMIT = 32 << 10  # bytes of scratch that may lie on a worker's stack


@dataclass(frozen=True)
class Problem:
    """A matmul as `batch` products of (rows, depth) by (depth, columns).

    Where b has no batch of its own, the leading axes of a are rows and `batch` is empty.
    """

    batch: tuple[int, ...]
    rows: int
    depth: int
    columns: int

    @property
    def flops(self) -> float:
        return 2.0 * prod(self.batch) * self.rows * self.depth * self.columns


def problem_of(workload: Workload) -> Problem:
    """The Problem of a matmul workload."""
    op = workload.op
    a, b = op.inputs[0].shape, op.inputs[1].shape
    if prod(b[:-2]) == 1:
        return Problem((), prod(a[:-1]), a[-1], op.output.shape[-1])
    return Problem(op.output.shape[:-2], a[-2], a[-1], op.output.shape[-1])


def accumulator_dtype(workload: Workload) -> str:
    """float32 for the half-precision types, else the output's own type."""
    dtype = workload.op.output.dtype
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def accumulator_lanes(workload: Workload, traits: TargetTraits) -> int:
    """Accumulators in one vector register."""
    return max(1, traits.vector_bytes // np.dtype(accumulator_dtype(workload)).itemsize)


def ceildiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return (a + b - 1) // b


class Right(Enum):
    """How the kernel reads its right operand."""

    PANELS = "panels"  # packed at compile time as [batch …, panel, depth, width]
    COPIED = "copied"  # row-major or transposed, a panel at a time copied to the worker's scratch
    DIRECT = "direct"  # row-major, in place


@dataclass(frozen=True)
class Blocking:
    """How a product is cut: tiles of at most `rows` × `vectors`, `chunks` shares of the rows.

    batch × panels × chunks are the tasks shared among the workers.
    """

    rows: int
    vectors: int
    lanes: int
    chunks: int

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    def panels(self, columns: int) -> int:
        return ceildiv(columns, self.width)

    def split(self, rows: int) -> nest.Split:
        return nest.Split.of(rows, self.rows, self.chunks)

    def cycles(self, problem: Problem) -> float:
        """Estimated cycles of all tiles on one core with data in cache."""
        split = self.split(problem.rows)
        panels = self.panels(problem.columns)
        last = ceildiv(problem.columns - (panels - 1) * self.width, self.lanes)
        total = 0.0
        sizes = ((split.size + 1, split.larger), (split.size, split.count - split.larger))
        for rows, count in sizes:
            if rows and count:
                whole = cycles(Tile(rows, self.vectors, self.lanes), problem.depth)
                rest = cycles(Tile(rows, last, self.lanes), problem.depth)
                total += count * ((panels - 1) * whole + rest)
        return total * prod(problem.batch)


def aligned(index: tuple[PrimExpr, ...], shape: tuple[int, ...]) -> tuple[PrimExpr, ...]:
    """Index into leading axes `shape` that broadcast (as in NumPy) to the axes of `index`.

    Axes of extent 1 may be more than those of `index`.
    """
    padded = (nest.integer(0),) * len(shape) + index
    used = padded[len(padded) - len(shape) :]
    return tuple(nest.integer(0) if dim == 1 else i for i, dim in zip(used, shape, strict=True))


def cast(value: PrimExpr, dtype: str) -> PrimExpr:
    """`value`, a scalar or a vector, with elements of type `dtype`."""
    own = value.ty.dtype
    lanes = f"x{own.lanes}" if own.lanes > 1 else ""
    return value if str(own.with_lanes(1)) == dtype else value.astype(dtype + lanes)


def build(workload: Workload, blocking: Blocking, right: Right) -> PrimFunc:
    """The kernel. With Right.DIRECT b must not be transposed."""
    op, problem, lanes = workload.op, problem_of(workload), blocking.lanes
    dtype = accumulator_dtype(workload)
    width, panels = blocking.width, blocking.panels(problem.columns)
    split = blocking.split(problem.rows)
    last = problem.columns - (panels - 1) * width
    transposed = bool(op.attr("transpose_b"))
    a_shape, b_shape = op.inputs[0].shape, op.inputs[1].shape

    a = nest.buffer(a_shape, op.inputs[0].dtype, "a")
    packed = (*b_shape[:-2], panels, problem.depth, width)
    b = nest.buffer(packed if right is Right.PANELS else b_shape, op.inputs[1].dtype, "b")
    operands = nest.operand_buffers(workload)
    output = nest.buffer(workload.output.shape, workload.output.dtype, "output")
    scratch_bytes = problem.depth * width * np.dtype(dtype).itemsize
    scope = "local" if scratch_bytes <= STACK_LIMIT else "global"

    def tile_of(t: Tile, batch: tuple[PrimExpr, ...], panel: PrimExpr, row: PrimExpr,
                scratch: Buffer, start: int, columns: int) -> Stmt:  # fmt: skip
        """Rows from `row`, columns from `start` of `panel`; `columns` of them are kept."""
        result = nest.buffer((t.rows, t.columns), dtype, "tile", "local")

        def row_index(i: PrimExpr, leading: tuple[int, ...]) -> tuple[PrimExpr, ...]:
            if problem.batch:
                return (*aligned(batch, leading[:-1]), row + i)
            return nest.unflatten(row + i, leading)

        def load_a(i: PrimExpr, k: PrimExpr) -> PrimExpr:
            return cast(nest.read(a, *row_index(i, a_shape[:-1]), k), dtype)

        def load_b(k: PrimExpr, j: PrimExpr) -> PrimExpr:
            if right is Right.COPIED:
                return nest.read(scratch, k, j + start)
            index = aligned(batch, b_shape[:-2])
            if right is Right.PANELS:
                return cast(nest.read(b, *index, panel, k, j + start), dtype)
            return cast(nest.read(b, *index, k, panel * width + (j + start)), dtype)

        def finish(i: PrimExpr, j: PrimExpr) -> Stmt:
            value = cast(nest.read(result, i, j), op.output.dtype)
            index = (*row_index(i, op.output.shape[:-1]), panel * width + (j + start))
            reads = [nest.reader(x) for x in operands]
            return nest.write(output, apply_epilogue(workload, value, reads, PLAIN, index), *index)

        return nest.sequence(
            nest.allocate(result),
            accumulate(t, problem.depth, load_a, load_b, dtype, result),
            nest.serial(t.rows, lambda i: by_vectors(columns, lanes, lambda j: finish(i, j))),
        )

    def panel_of(batch: tuple[PrimExpr, ...], panel: PrimExpr, row: PrimExpr, rows: int,
                 scratch: Buffer, columns: int) -> Stmt:  # fmt: skip
        whole, rest = divmod(columns, lanes)
        if rest and right is not Right.DIRECT:  # what is past the last column is zero
            whole, rest = whole + 1, 0
        parts = []
        if whole:
            tile = Tile(rows, whole, lanes)
            parts.append(tile_of(tile, batch, panel, row, scratch, 0, columns - rest))
        if rest:
            tile = Tile(rows, 1, rest)
            parts.append(tile_of(tile, batch, panel, row, scratch, whole * lanes, rest))
        return nest.sequence(*parts)

    def copy(batch: tuple[PrimExpr, ...], panel: PrimExpr, scratch: Buffer, columns: int) -> Stmt:
        index = aligned(batch, b_shape[:-2])

        def source(k: PrimExpr, j: PrimExpr) -> PrimExpr:
            at = panel * width + j
            value = nest.read(b, *index, at, k) if transposed else nest.read(b, *index, k, at)
            return cast(value, dtype)

        copier = copy_panel_transposed if transposed else copy_panel
        return copier(source, scratch, problem.depth, columns, lanes, dtype)

    def rows_of(batch: tuple[PrimExpr, ...], panel: PrimExpr, chunk: PrimExpr,
                columns: int) -> Stmt:  # fmt: skip
        scratch = nest.buffer((problem.depth, width), dtype, "panel", scope)

        def block_of(block: PrimExpr) -> Stmt:
            return split.part(
                block, lambda row, rows: panel_of(batch, panel, row, rows, scratch, columns)
            )

        each = split.count // blocking.chunks
        return nest.sequence(
            nest.allocate(scratch) if right is Right.COPIED else None,
            copy(batch, panel, scratch, columns) if right is Right.COPIED else None,
            nest.serial(each, lambda i: block_of(chunk * each + i), name="block"),
        )

    def task(t: PrimExpr) -> Stmt:
        *leading, panel, chunk = nest.unflatten(t, (*problem.batch, panels, blocking.chunks))
        batch = tuple(leading)
        final = rows_of(batch, nest.integer(panels - 1), chunk, last)
        if panels == 1:
            return final
        whole = rows_of(batch, panel, chunk, width)
        if last == width:
            return whole
        return nest.branch(panel < panels - 1, whole, final)

    tasks = prod(problem.batch) * panels * blocking.chunks
    return nest.function([a, b, *operands, output], nest.parallel(tasks, task))
