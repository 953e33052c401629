"""The frame of products of few rows with weights of few bits: panels, blocks of terms, epilogue.

How the terms of a block are summed is told by BlockSums: in float32, or in integers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol

from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue
from schedules.gemm import ColumnPanels
from schedules.interface import PLAIN, Packing, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Split, Stmt
from schedules.product import Problem, cast, ceildiv
from schedules.tile import by_vectors
from schedules.vectors import parallel, scratch


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


class BlockSums(Protocol):
    """The sums of a tile over one block of terms."""

    @property
    def buffers(self) -> list[Buffer]:
        """To be allocated before."""
        ...

    def clear(self) -> Stmt:
        """Begin a block."""
        ...

    def steps(self, group: PrimExpr, terms: int) -> Stmt:
        """Add the first `terms` terms of a block."""
        ...

    def total(self, group: PrimExpr, m: int, v: int) -> PrimExpr:
        """Row m, vector v of a whole block in float32, zero points subtracted, not scaled."""
        ...


class NbitsKernel(ABC):
    """Emits one kernel."""

    def __init__(
        self, workload: Workload, traits: TargetTraits, plan: Plan, packing: Packing, dtype: str
    ) -> None:
        """packing, dtype: of the weights."""
        op = workload.op
        self.workload, self.traits, self.plan = workload, traits, plan
        self.problem = problem_of(workload)
        self.block = int(op.attr("block"))
        self.groups = ceildiv(self.problem.depth, self.block)
        self.width = plan.vectors * traits.lanes
        packings = packings_of(workload, self.width, packing)
        self.a: Buffer = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "a")
        shapes = [p.packed_shape(s.shape) for p, s in zip(packings, op.inputs[1:], strict=True)]
        dtypes = [dtype, *(sig.dtype for sig in op.inputs[2:])]
        names = ("b", "scales", "zeros")
        self.b, self.scales, *zeros = (
            nest.buffer(shape, kind, name)
            for shape, kind, name in zip(shapes, dtypes, names, strict=False)
        )
        self.zeros: Buffer | None = zeros[0] if zeros else None
        self._operands = nest.operand_buffers(workload)
        self._output = nest.buffer(workload.output.shape, workload.output.dtype, "output")

    @abstractmethod
    def prepare(self) -> Stmt | None:
        """What a task does with the rows first."""

    @abstractmethod
    def sums(self, panel: PrimExpr, row: PrimExpr, rows: int) -> BlockSums:
        """The sums of a tile from `row` on."""

    def function(self) -> PrimFunc:
        """The finished function."""
        panels = ceildiv(self.problem.columns, self.width)
        split = Split.of(panels, ceildiv(panels, self.plan.tasks))

        def share(first: PrimExpr, count: int) -> Stmt:
            before = self.prepare()
            loop = nest.serial(count, lambda p: self._panel(first + p), "panel")
            return nest.sequence(before, loop)

        body = parallel(split.count, lambda task: split.part(task, share))
        parameters = [self.a, self.b, self.scales]
        parameters += [] if self.zeros is None else [self.zeros]
        return nest.function([*parameters, *self._operands, self._output], body)

    def element(self, row: PrimExpr, k: PrimExpr) -> PrimExpr:
        """An element of the left operand in float32."""
        leading = self.workload.op.inputs[0].shape[:-1]
        return cast(nest.read(self.a, *nest.unflatten(row, leading), k), "float32")

    def scratch(self, name: str) -> Buffer:
        """A float32 for each row and block."""
        return scratch((self.problem.rows, self.groups), "float32", name)

    def each_group(self, body: Callable[[PrimExpr, int], Stmt]) -> Stmt:
        """body(block, its terms) for all blocks; the last one may be shorter."""
        whole, rest = divmod(self.problem.depth, self.block)
        return nest.sequence(
            nest.serial(whole, lambda g: body(g, self.block), "group") if whole else None,
            body(nest.integer(whole), rest) if rest else None,
        )

    def point(self, panel: PrimExpr, g: PrimExpr, v: int, subtracted: float) -> PrimExpr | None:
        """A vector of zero points, less what is subtracted from the codes; None for zeros."""
        lanes = self.traits.lanes
        if self.zeros is None:
            zero = float(self.workload.op.attr("zero")) - subtracted
            return tirx.Broadcast(tirx.const(zero, "float32"), lanes) if zero else None
        point = cast(nest.read(self.zeros, panel, g, nest.ramp(v * lanes, lanes)), "float32")
        if not subtracted:
            return point
        return point - tirx.Broadcast(tirx.const(subtracted, "float32"), lanes)

    def _panel(self, panel: PrimExpr) -> Stmt:
        """All rows of one panel of columns."""
        rows = Split.of(self.problem.rows, self.plan.rows)
        return nest.serial(
            rows.count,
            lambda part: rows.part(part, lambda row, count: self._tile(panel, row, count)),
            "tile",
        )

    def _tile(self, panel: PrimExpr, row: PrimExpr, rows: int) -> Stmt:
        """A tile from `row` on: sums by blocks, then the epilogue."""
        lanes = self.traits.lanes
        sums = self.sums(panel, row, rows)
        totals = [nest.buffer((self.width,), "float32", "total", "local") for _ in range(rows)]
        zero = tirx.Broadcast(tirx.const(0, "float32"), lanes)
        each = [(m, v) for m in range(rows) for v in range(self.plan.vectors)]

        def add(g: PrimExpr, m: int, v: int) -> Stmt:
            columns = nest.ramp(v * lanes, lanes)
            value = sums.total(g, m, v) * nest.read(self.scales, panel, g, columns)
            return nest.write(totals[m], nest.read(totals[m], columns) + value, columns)

        def group(g: PrimExpr, terms: int) -> Stmt:
            added = [add(g, m, v) for m, v in each]
            return nest.sequence(sums.clear(), sums.steps(g, terms), *added)

        return nest.sequence(
            nest.allocate(*totals, *sums.buffers),
            *[nest.write(totals[m], zero, nest.ramp(v * lanes, lanes)) for m, v in each],
            self.each_group(group),
            *[self._finish(panel, row + m, totals[m]) for m in range(rows)],
        )

    def _finish(self, panel: PrimExpr, row: PrimExpr, totals: Buffer) -> Stmt | None:
        """Store the epilogue of a row of a panel."""
        op, columns = self.workload.op, self.problem.columns
        where = nest.unflatten(row, self.workload.output.shape[:-1])
        reads = [nest.reader(operand) for operand in self._operands]

        def store(j: PrimExpr) -> Stmt:
            value = cast(nest.read(totals, j), op.output.dtype)
            index = (*where, panel * self.width + j)
            element = apply_epilogue(self.workload, value, reads, PLAIN, index)
            return nest.write(self._output, element, *index)

        def stored(count: int) -> Stmt:
            return by_vectors(count, self.traits.lanes, store)

        rest = columns % self.width
        if not rest:
            return stored(self.width)
        if columns < self.width:
            return stored(rest)
        return nest.branch(panel < columns // self.width, stored(self.width), stored(rest))


def packings_of(workload: Workload, width: int, packing: Packing) -> tuple[Packing, ...]:
    """The packing of each constant input; `packing` is that of the weights."""
    return (packing, *[ColumnPanels(width)] * (len(workload.op.inputs) - 2))


def usual_vectors(columns: int, usual: tuple[int, ...], lanes: int) -> int:
    """Vectors of a panel: those that leave few columns empty, which take time, too."""
    widest = ceildiv(columns, lanes)
    return min(usual, key=lambda wide: ceildiv(widest, wide) * wide)
