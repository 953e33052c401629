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
from dataclasses import dataclass
from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gemm import PEAK_SHARE, ColumnPanels, traffic
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Knob,
    Packing,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Buffer, Split, Stmt, as_written
from schedules.packed_codes import ROWS, Codes, codes_of
from schedules.product import Problem, accumulator_dtype, cast, ceildiv
from schedules.space import tunable
from schedules.tile import by_vectors, fold
from schedules.vectors import parallel, scratch

MOST_ROWS = 32
"""Of a product; with more, expanding weights once is cheaper."""


@dataclass(frozen=True)
class Plan:
    """rows: of a tile. vectors: of columns, a panel. tasks: shares of the panels."""

    rows: int
    vectors: int
    tasks: int


def problem_of(workload: Workload) -> Problem:
    """The product: all leading axes of a are rows."""
    a = workload.op.inputs[0].shape
    return Problem((), prod(a[:-1]), a[-1], workload.op.output.shape[-1])


class _Kernel:
    """Emits one kernel."""

    def __init__(self, workload: Workload, traits: TargetTraits, plan: Plan) -> None:
        op = workload.op
        self.workload, self.traits, self.plan = workload, traits, plan
        self.problem = problem_of(workload)
        self.block = int(op.attr("block"))
        self.terms = 8 * ROWS // int(op.attr("bits"))
        self.width = plan.vectors * traits.lanes
        self.codes = codes_for(workload, self.width, traits)
        packings = packings_of(workload, self.width, self.codes)
        self.a = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "a")
        shapes = [p.packed_shape(s.shape) for p, s in zip(packings, op.inputs[1:], strict=True)]
        dtypes = [self.codes.dtype, *(sig.dtype for sig in op.inputs[2:])]
        names = ("b", "scales", "zeros")
        self.b, self.scales, *zeros = (
            nest.buffer(shape, dtype, name)
            for shape, dtype, name in zip(shapes, dtypes, names, strict=False)
        )
        self.zeros: Buffer | None = zeros[0] if zeros else None
        self.zero = float(op.attr("zero")) - self.codes.subtracted
        self.operands = nest.operand_buffers(workload)
        self.output = nest.buffer(workload.output.shape, workload.output.dtype, "output")
        self.groups = ceildiv(self.problem.depth, self.block)
        self.sums: Buffer = None

    @property
    def shifted(self) -> bool:
        """Whether zero points are left to be subtracted."""
        return self.zeros is not None or self.zero != 0

    def function(self) -> PrimFunc:
        """The finished function."""
        panels = ceildiv(self.problem.columns, self.width)
        split = Split.of(panels, ceildiv(panels, self.plan.tasks))

        def share(first: PrimExpr, count: int) -> Stmt:
            self.sums = scratch((self.problem.rows, self.groups), "float32", "sums")
            loop = nest.serial(count, lambda p: self.panel(first + p), "panel")
            before = [nest.allocate(self.sums), self.sum_rows()] if self.shifted else []
            return nest.sequence(*before, loop)

        body = parallel(split.count, lambda task: split.part(task, share))
        parameters = [
            self.a,
            self.b,
            self.scales,
            *([self.zeros] if self.zeros is not None else []),
        ]
        return nest.function([*parameters, *self.operands, self.output], body)

    def element(self, row: PrimExpr, k: PrimExpr) -> PrimExpr:
        """An element of the left operand in float32."""
        leading = self.workload.op.inputs[0].shape[:-1]
        return cast(nest.read(self.a, *nest.unflatten(row, leading), k), "float32")

    def sum_rows(self) -> Stmt:
        """The sums of each row's elements, block by block."""
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
                nest.write(self.sums, nest.read(total, 0), row, g),
            )

        def row(r: PrimExpr) -> Stmt:
            return self.each_group(lambda g, count: group(r, g, count))

        return nest.sequence(nest.allocate(total), nest.serial(self.problem.rows, row, "row"))

    def each_group(self, body: Callable[[PrimExpr, int], Stmt]) -> Stmt:
        """body(block, its terms) for all blocks; the last one may be shorter."""
        whole, rest = divmod(self.problem.depth, self.block)
        return nest.sequence(
            nest.serial(whole, lambda g: body(g, self.block), "group") if whole else None,
            body(nest.integer(whole), rest) if rest else None,
        )

    def panel(self, panel: PrimExpr) -> Stmt:
        """All rows of one panel of columns."""
        rows = Split.of(self.problem.rows, self.plan.rows)
        return nest.serial(
            rows.count,
            lambda part: rows.part(part, lambda row, count: self.tile(panel, row, count)),
            "tile",
        )

    def tile(self, panel: PrimExpr, row: PrimExpr, rows: int) -> Stmt:
        """A tile from `row` on: sums by blocks, then the epilogue."""
        lanes, vectors = self.traits.lanes, self.plan.vectors
        # A buffer for each vector: it lives in a register while indices are constant.
        sums = [
            [nest.buffer((lanes,), "float32", "block_sum", "local") for _ in range(vectors)]
            for _ in range(rows)
        ]
        totals = [nest.buffer((self.width,), "float32", "total", "local") for _ in range(rows)]
        every = nest.ramp(0, lanes)
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        each = [(m, v) for m in range(rows) for v in range(vectors)]

        def columns(v: int) -> PrimExpr:
            return nest.ramp(v * lanes, lanes)

        def step(number: PrimExpr, terms: int) -> Stmt:
            def multiply(v: int, value: Callable[[int], PrimExpr]) -> Stmt:
                stmts = []
                for i in range(terms):
                    weight = tirx.Var("weight", f"float32x{lanes}")
                    stmts.append(tirx.Bind(weight, value(i)))
                    for m in range(rows):
                        x = self.element(row + m, number * self.terms + i)
                        total = nest.read(sums[m][v], every) + tirx.Broadcast(x, lanes) * weight
                        stmts.append(nest.write(sums[m][v], total, every))
                return nest.sequence(*stmts)

            return nest.sequence(
                *[
                    self.codes.read(
                        self.b, panel, number, nest.integer(v * lanes), partial(multiply, v)
                    )
                    for v in range(vectors)
                ]
            )

        def group(g: PrimExpr, count: int) -> Stmt:
            steps, rest = divmod(count, self.terms)
            first = g * (self.block // self.terms)
            clear = [nest.write(sums[m][v], zero, every) for m, v in each]
            return nest.sequence(
                *clear,
                nest.serial(steps, lambda s: step(first + s, self.terms), "k") if steps else None,
                step(first + steps, rest) if rest else None,
                *[scaled(g, m, v) for m, v in each],
            )

        def scaled(g: PrimExpr, m: int, v: int) -> Stmt:
            value = nest.read(sums[m][v], every)
            if self.shifted:
                spread = tirx.Broadcast(nest.read(self.sums, row + m, g), lanes)
                value = value - self.point(panel, g, columns(v)) * spread
            value = value * nest.read(self.scales, panel, g, columns(v))
            return nest.write(totals[m], nest.read(totals[m], columns(v)) + value, columns(v))

        return nest.sequence(
            nest.allocate(*totals, *[buffer for line in sums for buffer in line]),
            *[nest.write(totals[m], zero, columns(v)) for m, v in each],
            self.each_group(group),
            *[self.finish(panel, row + m, totals[m]) for m in range(rows)],
        )

    def point(self, panel: PrimExpr, g: PrimExpr, columns: PrimExpr) -> PrimExpr:
        """Zero points that are left, a vector."""
        lanes = self.traits.lanes
        if self.zeros is None:
            return tirx.Broadcast(tirx.const(self.zero, "float32"), lanes)
        point = cast(nest.read(self.zeros, panel, g, columns), "float32")
        if not self.codes.subtracted:
            return point
        return point - tirx.Broadcast(tirx.const(self.codes.subtracted, "float32"), lanes)

    def finish(self, panel: PrimExpr, row: PrimExpr, totals: Buffer) -> Stmt | None:
        """Store the epilogue of a row of a panel."""
        op, columns = self.workload.op, self.problem.columns
        where = nest.unflatten(row, self.workload.output.shape[:-1])
        reads = [nest.reader(operand) for operand in self.operands]

        def store(j: PrimExpr) -> Stmt:
            value = cast(nest.read(totals, j), op.output.dtype)
            index = (*where, panel * self.width + j)
            element = apply_epilogue(self.workload, value, reads, PLAIN, index)
            return nest.write(self.output, element, *index)

        def stored(count: int) -> Stmt:
            return by_vectors(count, self.traits.lanes, store)

        rest = columns % self.width
        if not rest:
            return stored(self.width)
        if columns < self.width:
            return stored(rest)
        return nest.branch(panel < columns // self.width, stored(self.width), stored(rest))


def codes_for(workload: Workload, width: int, traits: TargetTraits) -> Codes:
    """How the weights of a product are read, in panels of `width` columns."""
    op = workload.op
    bits = int(op.attr("bits"))
    shared = float(op.attr("zero")) if len(op.inputs) < 4 else float(1 << (bits - 1))
    return codes_of(bits, width, shared, traits)


def packings_of(workload: Workload, width: int, codes: Codes) -> tuple[Packing, ...]:
    """The packing of each constant input."""
    parameters = ColumnPanels(width)
    return (codes.packing, *([parameters] * (len(workload.op.inputs) - 2)))


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
    widest = ceildiv(problem.columns, traits.lanes)
    room = traits.vector_registers - 5
    usual = (4, 3, 5, 2) if problem.rows <= room // 4 else (2, 1)
    # Panels with few empty columns: those take time, too.
    vectors = min(usual, key=lambda wide: ceildiv(widest, wide) * wide)
    rows = min(problem.rows, room // vectors)
    values = {
        "rows": ceildiv(problem.rows, ceildiv(problem.rows, rows)),
        "vectors": vectors,
        "tasks": traits.threads,
    }
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
    if plan.rows * plan.vectors + plan.vectors > traits.vector_registers or (
        plan.rows > problem.rows
    ):
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
        layouts=(PLAIN, *packings_of(workload, width, codes), *operands),
        output=PLAIN,
        cost=Cost(problem.flops, traffic(workload), max(0.01, share)),
        compute=lambda: _Kernel(workload, traits, plan).function(),
        schedule=as_written,
    )
