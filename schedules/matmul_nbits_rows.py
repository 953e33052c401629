"""Matrix products of few rows with weights of 2, 4 or 8 bits, which are unpacked in registers.

With few rows a product takes as long as reading its weights: they are read once, as they are, and
every vector of values meets all rows. Sums over the terms of a block are scaled once. Where there
are zero points that could not be subtracted before, they are multiplied by the sums of the row's
elements: Σx(c − z) = Σxc − z·Σx.

Error against float64 of the expanded matrix: at most 2e-6·√K of the largest Σ|x·w|, or with zero
points in blocks of Σ|x|·(|c| + |z|)·scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.epilogue import operand_layouts
from schedules.gemm import PEAK_SHARE, traffic
from schedules.interface import PLAIN, Candidate, Cost, Knob, PrimExpr, TargetTraits, Workload
from schedules.nbits_kernel import NbitsKernel, Plan, packings_of, problem_of, usual_vectors
from schedules.nest import Buffer, Stmt, as_written
from schedules.packed_codes import ROWS, Codes, codes_of
from schedules.product import Problem, accumulator_dtype, ceildiv
from schedules.space import tunable
from schedules.tile import fold

MOST_ROWS = 32
"""Of a product; with more, expanding weights once is cheaper."""


class _Kernel(NbitsKernel):
    """Sums in float32."""

    def __init__(self, workload: Workload, traits: TargetTraits, plan: Plan) -> None:
        self.codes = codes_for(workload, plan.vectors * traits.lanes, traits)
        super().__init__(workload, traits, plan, self.codes.packing, self.codes.dtype)
        self.terms = 8 * ROWS // int(workload.op.attr("bits"))
        self.row_sums: Buffer = None

    def prepare(self) -> Stmt | None:
        """The sums of each row's elements, block by block, where there are zero points left."""
        if self.point(nest.integer(0), nest.integer(0), 0, self.codes.subtracted) is None:
            return None
        self.row_sums = self.scratch("row_sums")
        lanes = self.traits.lanes
        total = nest.buffer((lanes,), "float32", "row_total", "local")

        def group(row: PrimExpr, g: PrimExpr, count: int) -> Stmt:
            whole, rest = divmod(count, lanes)

            def add(at: PrimExpr, width: int) -> Stmt:
                return nest.vectorized(
                    width,
                    lambda x: nest.write(
                        total, nest.read(total, x) + self.element(row, g * self.block + at + x), x
                    ),
                )

            zero = tirx.const(0, "float32")
            return nest.sequence(
                nest.vectorized(lanes, lambda x: nest.write(total, zero, x)),
                nest.serial(whole, lambda i: add(i * lanes, lanes), "k") if whole else None,
                add(nest.integer(whole * lanes), rest) if rest else None,
                fold(total, (), lanes, lambda x, y: x + y),
                nest.write(self.row_sums, nest.read(total, 0), row, g),
            )

        def row(r: PrimExpr) -> Stmt:
            return self.each_group(lambda g, count: group(r, g, count))

        loop = nest.serial(self.problem.rows, row, "row")
        return nest.sequence(nest.allocate(self.row_sums, total), loop)

    def sums(self, panel: PrimExpr, row: PrimExpr, rows: int) -> _Sums:
        """See NbitsKernel."""
        return _Sums(self, panel, row, rows)


class _Sums:
    """A vector of float32 for each row and vector of columns."""

    def __init__(self, kernel: _Kernel, panel: PrimExpr, row: PrimExpr, rows: int) -> None:
        self.kernel, self.panel, self.row, self.rows = kernel, panel, row, rows
        self.lanes = kernel.traits.lanes
        # A buffer for each vector: it lives in a register while indices are constant.
        self._sums = [
            [
                nest.buffer((self.lanes,), "float32", "block_sum", "local")
                for _ in range(kernel.plan.vectors)
            ]
            for _ in range(rows)
        ]
        self._every = nest.ramp(0, self.lanes)

    @property
    def buffers(self) -> list[Buffer]:
        """See BlockSums."""
        return [buffer for line in self._sums for buffer in line]

    def clear(self) -> Stmt:
        """See BlockSums."""
        zero = tirx.Broadcast(tirx.const(0, "float32"), self.lanes)
        return nest.sequence(*[nest.write(buffer, zero, self._every) for buffer in self.buffers])

    def steps(self, group: PrimExpr, terms: int) -> Stmt:
        """See BlockSums."""
        each = self.kernel.terms
        whole, rest = divmod(terms, each)
        first = group * (self.kernel.block // each)
        loop = nest.serial(whole, lambda s: self._step(first + s, each), "k") if whole else None
        return nest.sequence(loop, self._step(first + whole, rest) if rest else None)

    def _step(self, number: PrimExpr, terms: int) -> Stmt:
        kernel = self.kernel

        def multiply(v: int, value: Callable[[int], PrimExpr]) -> Stmt:
            stmts = []
            for i in range(terms):
                weight = tirx.Var("weight", f"float32x{self.lanes}")
                stmts.append(tirx.Bind(weight, value(i)))
                for m in range(self.rows):
                    x = kernel.element(self.row + m, number * kernel.terms + i)
                    product = tirx.Broadcast(x, self.lanes) * weight
                    total = nest.read(self._sums[m][v], self._every) + product
                    stmts.append(nest.write(self._sums[m][v], total, self._every))
            return nest.sequence(*stmts)

        def vector(v: int) -> Stmt:
            column = nest.integer(v * self.lanes)
            return kernel.codes.read(kernel.b, self.panel, number, column, partial(multiply, v))

        return nest.sequence(*[vector(v) for v in range(kernel.plan.vectors)])

    def total(self, group: PrimExpr, m: int, v: int) -> PrimExpr:
        """See BlockSums."""
        value = nest.read(self._sums[m][v], self._every)
        point = self.kernel.point(self.panel, group, v, self.kernel.codes.subtracted)
        if point is None:
            return value
        row_sum = nest.read(self.kernel.row_sums, self.row + m, group)
        return value - point * tirx.Broadcast(row_sum, self.lanes)


def codes_for(workload: Workload, width: int, traits: TargetTraits) -> Codes:
    """How the weights of a product are read, in panels of `width` columns."""
    op = workload.op
    bits = int(op.attr("bits"))
    shared = float(op.attr("zero")) if len(op.inputs) < 4 else float(1 << (bits - 1))
    return codes_of(bits, width, shared, traits)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for a matmul_nbits of few rows; its weights must be constants."""
    op = workload.op
    if op.kind != "matmul_nbits" or not all(op.constant[1:]) or traits.lanes < 2:
        return ()
    problem = problem_of(workload)
    terms = 8 * ROWS // int(op.attr("bits"))
    if problem.rows > MOST_ROWS or int(op.attr("block")) % terms:
        return ()
    if accumulator_dtype(workload) != "float32":
        return ()
    room = traits.vector_registers - 5
    usual = (4, 3, 5, 2) if problem.rows <= room // 4 else (2, 1)
    vectors = usual_vectors(problem.columns, usual, traits.lanes)
    rows = min(problem.rows, room // vectors)
    values = {
        "rows": ceildiv(problem.rows, ceildiv(problem.rows, rows)),
        "vectors": vectors,
        "tasks": traits.threads,
    }
    widest = ceildiv(problem.columns, traits.lanes)
    knobs = (
        Knob("rows", tuple(range(1, min(problem.rows, room) + 1))),
        Knob("vectors", tuple(v for v in (1, 2, 3, 4, 5, 6, 8) if v <= widest)),
        Knob("tasks", tuple(sorted({traits.threads, 2 * traits.threads, 4 * traits.threads}))),
    )
    return (tunable(knobs, values, partial(_decided, workload, problem, traits)),)


def _decided(
    workload: Workload, problem: Problem, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel with these decisions."""
    plan = Plan(**values)
    used = plan.rows * plan.vectors + plan.vectors
    if used > traits.vector_registers or plan.rows > problem.rows:
        return None
    width = plan.vectors * traits.lanes
    codes = codes_for(workload, width, traits)
    vectors = ceildiv(problem.columns, width) * plan.vectors * problem.depth
    unpacked = vectors * ceildiv(problem.rows, plan.rows)
    cycles = (unpacked * codes.cost + vectors * problem.rows) / 2
    share = PEAK_SHARE * problem.flops / (4 * traits.lanes) / cycles
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    return Candidate(
        name="matmul_nbits.registers",
        layouts=(PLAIN, *packings_of(workload, width, codes.packing), *operands),
        output=PLAIN,
        cost=Cost(problem.flops, traffic(workload), max(0.01, share)),
        compute=lambda: _Kernel(workload, traits, plan).function(),
        schedule=as_written,
    )
