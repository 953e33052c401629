"""The loop nest of every matrix product: batches, column panels, row blocks, register tiles."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue
from schedules.interface import PLAIN, Op, PrimExpr, PrimFunc, TargetTraits, Workload
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


PRODUCTS = ("matmul", "matmul_offset")
"""Kinds of products of two matrices."""


def zeros_of(op: Op) -> tuple[int, int]:
    """What is subtracted from the elements of both operands first."""
    left, right = op.attr("zeros") if op.kind == "matmul_offset" else (0, 0)
    return int(left), int(right)


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

    batch × panels × chunks are the tasks shared among the workers. With `prefetch`, the tiles of
    one packed panel fetch the next one from far memory.
    """

    rows: int
    vectors: int
    lanes: int
    chunks: int
    prefetch: bool = False

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


def centred(value: PrimExpr, dtype: str, zero: int) -> PrimExpr:
    """An operand's element, less its zero point, in `dtype`."""
    value = cast(value, dtype)
    if not zero:
        return value
    shift, lanes = tirx.const(zero, dtype), value.ty.dtype.lanes
    return value - (tirx.Broadcast(shift, lanes) if lanes > 1 else shift)


@dataclass(frozen=True)
class Place:
    """Where in the product a statement works: `columns` of `panel` from `first`, in a batch."""

    batch: tuple[PrimExpr, ...]
    panel: PrimExpr
    columns: int
    scratch: Buffer


@dataclass(frozen=True)
class Kernel:
    """A product with its buffers; the methods are the levels of its nest from the inside out."""

    workload: Workload
    blocking: Blocking
    right: Right
    problem: Problem
    dtype: str  # of accumulators
    a: Buffer
    b: Buffer
    operands: tuple[Buffer, ...]
    output: Buffer

    @property
    def split(self) -> nest.Split:
        return self.blocking.split(self.problem.rows)

    def row_index(
        self, place: Place, row: PrimExpr, leading: tuple[int, ...]
    ) -> tuple[PrimExpr, ...]:
        """Index of a row into all axes but the last of an operand or the output."""
        if self.problem.batch:
            return (*aligned(place.batch, leading[:-1]), row)
        return nest.unflatten(row, leading)

    def tile(self, place: Place, t: Tile, block: PrimExpr, row: PrimExpr, start: int,
             columns: int) -> Stmt:  # fmt: skip
        """A tile from `row` and column `start` of the panel; `columns` of its columns are kept."""
        op, depth, width = self.workload.op, self.problem.depth, self.blocking.width
        result = nest.buffer((t.rows, t.columns), self.dtype, "tile", "local")
        b_index = aligned(place.batch, op.inputs[1].shape[:-2])
        left, right = zeros_of(op)

        def load_a(i: PrimExpr, k: PrimExpr) -> PrimExpr:
            index = self.row_index(place, row + i, op.inputs[0].shape[:-1])
            return centred(nest.read(self.a, *index, k), self.dtype, left)

        def load_b(k: PrimExpr, j: PrimExpr) -> PrimExpr:
            if self.right is Right.COPIED:
                return nest.read(place.scratch, k, j + start)
            if self.right is Right.PANELS:
                return cast(nest.read(self.b, *b_index, place.panel, k, j + start), self.dtype)
            column = place.panel * width + (j + start)
            return centred(nest.read(self.b, *b_index, k, column), self.dtype, right)

        def fetch_next(k: PrimExpr) -> Stmt:
            """All blocks of a panel together fetch the next panel, a bit with every step."""
            at = (block * depth + k) * ceildiv(width, self.split.count)
            row, column = tirx.floordiv(at, width), tirx.floormod(at, width)
            return nest.prefetch(self.b, *b_index, place.panel + 1, row, column)

        def finish(i: PrimExpr, j: PrimExpr) -> Stmt:
            value = cast(nest.read(result, i, j), op.output.dtype)
            index = (
                *self.row_index(place, row + i, op.output.shape[:-1]),
                place.panel * width + (j + start),
            )
            reads = [nest.reader(x) for x in self.operands]
            element = apply_epilogue(self.workload, value, reads, PLAIN, index)
            return nest.write(self.output, element, *index)

        return nest.sequence(
            nest.allocate(result),
            accumulate(
                t,
                depth,
                load_a,
                load_b,
                self.dtype,
                result,
                meanwhile=fetch_next if self.blocking.prefetch else None,
            ),
            nest.serial(t.rows, lambda i: by_vectors(columns, t.lanes, lambda j: finish(i, j))),
        )

    def rows(self, place: Place, block: PrimExpr, row: PrimExpr, rows: int) -> Stmt:
        """`rows` rows from `row`, all columns of the place."""
        lanes = self.blocking.lanes
        whole, rest = divmod(place.columns, lanes)
        if rest and self.right is not Right.DIRECT:  # what is past the last column is zero
            whole, rest = whole + 1, 0
        parts = []
        if whole:
            tile = Tile(rows, whole, lanes)
            kept = min(place.columns, whole * lanes)
            parts.append(self.tile(place, tile, block, row, 0, kept))
        if rest:
            parts.append(self.tile(place, Tile(rows, 1, rest), block, row, whole * lanes, rest))
        return nest.sequence(*parts)

    def copy(self, place: Place) -> Stmt:
        """Fill the scratch panel of the place."""
        op = self.workload.op
        transposed = bool(op.attr("transpose_b"))
        index = aligned(place.batch, op.inputs[1].shape[:-2])
        _, zero = zeros_of(op)

        def source(k: PrimExpr, j: PrimExpr) -> PrimExpr:
            at = place.panel * self.blocking.width + j
            last = (at, k) if transposed else (k, at)
            return centred(nest.read(self.b, *index, *last), self.dtype, zero)

        copier = copy_panel_transposed if transposed else copy_panel
        return copier(
            source,
            place.scratch,
            self.problem.depth,
            place.columns,
            self.blocking.lanes,
            self.dtype,
        )

    def chunk(
        self, batch: tuple[PrimExpr, ...], panel: PrimExpr, chunk: PrimExpr, columns: int
    ) -> Stmt:
        """A task: the blocks of a chunk of rows, `columns` of a panel."""
        depth, width = self.problem.depth, self.blocking.width
        nbytes = depth * width * np.dtype(self.dtype).itemsize
        scope = "local" if nbytes <= STACK_LIMIT else "global"
        scratch = nest.buffer((depth, width), self.dtype, "panel", scope)
        place = Place(batch, panel, columns, scratch)
        each = self.split.count // self.blocking.chunks

        def block(index: PrimExpr) -> Stmt:
            return self.split.part(index, lambda row, rows: self.rows(place, index, row, rows))

        blocks = nest.serial(each, lambda i: block(chunk * each + i), name="block")
        if self.right is not Right.COPIED:
            return blocks
        return nest.sequence(nest.allocate(scratch), self.copy(place), blocks)

    def task(self, t: PrimExpr) -> Stmt:
        """Task number t of all batches, panels and chunks."""
        width, panels = self.blocking.width, self.blocking.panels(self.problem.columns)
        shape = (*self.problem.batch, panels, self.blocking.chunks)
        *leading, panel, chunk = nest.unflatten(t, shape)
        last = self.problem.columns - (panels - 1) * width
        if last == width:
            return self.chunk(tuple(leading), panel, chunk, width)
        final = self.chunk(tuple(leading), nest.integer(panels - 1), chunk, last)
        if panels == 1:
            return final
        whole = self.chunk(tuple(leading), panel, chunk, width)
        return nest.branch(panel < panels - 1, whole, final)


def build(workload: Workload, blocking: Blocking, right: Right) -> PrimFunc:
    """The kernel. With Right.DIRECT b must not be transposed."""
    op, problem = workload.op, problem_of(workload)
    panels = blocking.panels(problem.columns)
    b_shape = op.inputs[1].shape
    if right is Right.PANELS:
        b_shape = (*b_shape[:-2], panels, problem.depth, blocking.width)
    kernel = Kernel(
        workload,
        blocking,
        right,
        problem,
        accumulator_dtype(workload),
        nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "a"),
        nest.buffer(b_shape, op.inputs[1].dtype, "b"),
        tuple(nest.operand_buffers(workload)),
        nest.buffer(workload.output.shape, workload.output.dtype, "output"),
    )
    tasks = prod(problem.batch) * panels * blocking.chunks
    parameters = [kernel.a, kernel.b, *kernel.operands, kernel.output]
    return nest.function(parameters, nest.parallel(tasks, kernel.task))
