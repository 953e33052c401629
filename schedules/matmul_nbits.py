"""Matrix products with weights of 2, 4 or 8 bits in blocks, expanded where they are used.

The frame is that of `schedules.product`: a panel of the right operand is copied to the worker's
scratch and meets all rows there. The copy is the expansion: a byte gives 8/bits consecutive rows of
the panel, each (code − zero)·scale of its block. The weights in memory stay packed.

Error against float64 of the expanded matrix: as `schedules.gemm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.batched_matmul import chunks_of
from schedules.epilogue import operand_layouts
from schedules.gemm import PEAK_SHARE, ColumnPanels, traffic
from schedules.interface import PLAIN, Candidate, Cost, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nbits_kernel import problem_of
from schedules.nest import Buffer, Stmt
from schedules.product import (
    Blocking,
    Kernel,
    Place,
    Problem,
    Right,
    accumulator_dtype,
    accumulator_lanes,
    ceildiv,
)
from schedules.tile import by_vectors, tallest

EXPAND_CYCLES = 4.0  # per vector of expanded weights


@dataclass(frozen=True)
class PackedKernel(Kernel):
    """A product whose right operand is expanded into the scratch panel."""

    scales: Buffer
    zeros: Buffer | None

    def copy(self, place: Place) -> Stmt:
        """Fill the scratch panel of the place."""
        op = self.workload.op
        bits, block = int(op.attr("bits")), int(op.attr("block"))
        each, depth = 8 // bits, self.problem.depth
        mask = tirx.const((1 << bits) - 1, "int32")

        shared = tirx.const(float(op.attr("zero")), "float32")

        def point(group: PrimExpr, j: PrimExpr) -> PrimExpr:
            if self.zeros is None:
                return shared
            return tirx.Cast("float32", nest.read(self.zeros, place.panel, group, j))

        def element(byte: PrimExpr, part: int, group: PrimExpr, j: PrimExpr) -> PrimExpr:
            code = tirx.Cast("int32", nest.read(self.b, place.panel, byte, j))
            if bits < 8:
                code = (code >> tirx.const(part * bits, "int32")) & mask
            value = tirx.Cast("float32", code) - point(group, j)
            value = value * nest.read(self.scales, place.panel, group, j)
            return value if self.dtype == "float32" else tirx.Cast(self.dtype, value)

        def row(byte: PrimExpr, part: int) -> Stmt:
            k = byte * each + part
            group = tirx.floordiv(k, block)
            stmt = by_vectors(
                self.blocking.width,
                self.blocking.lanes,
                lambda j: nest.write(place.scratch, element(byte, part, group, j), k, j),
            )
            # The last byte may reach past the depth of a.
            return nest.branch(depth % each == 0 or k < depth, stmt) or stmt

        return nest.serial(
            ceildiv(depth, each),
            lambda byte: nest.sequence(*[row(byte, part) for part in range(each)]),
            name="byte",
        )


def build(workload: Workload, blocking: Blocking) -> PrimFunc:
    """The kernel."""
    op, problem = workload.op, problem_of(workload)
    packing = ColumnPanels(blocking.width)
    a = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "a")
    b, scales, *zeros = (
        nest.buffer(packing.packed_shape(sig.shape), sig.dtype, name)
        for sig, name in zip(op.inputs[1:], ("b", "scales", "zeros"), strict=False)
    )
    operands = tuple(nest.operand_buffers(workload))
    output = nest.buffer(workload.output.shape, workload.output.dtype, "output")
    kernel = PackedKernel(
        workload,
        blocking,
        Right.COPIED,
        problem,
        accumulator_dtype(workload),
        a,
        b,
        operands,
        output,
        scales,
        zeros[0] if zeros else None,
    )
    tasks = blocking.panels(problem.columns) * blocking.chunks
    return nest.function(
        [a, b, scales, *zeros, *operands, output], nest.parallel(tasks, kernel.task)
    )


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate per panel width for matmul_nbits; its weights must be constants."""
    op = workload.op
    if op.kind != "matmul_nbits" or not all(op.constant[1:]):
        return ()
    problem = problem_of(workload)
    lanes = accumulator_lanes(workload, traits)
    widest = ceildiv(problem.columns, lanes)
    return tuple(
        _candidate(workload, problem, traits, lanes, vectors)
        for vectors in sorted({min(v, widest) for v in (2, 4)})
    )


def _candidate(
    workload: Workload, problem: Problem, traits: TargetTraits, lanes: int, vectors: int
) -> Candidate:
    rows = min(tallest(vectors, traits), problem.rows)
    panels, blocks = ceildiv(problem.columns, vectors * lanes), ceildiv(problem.rows, rows)
    chunks = chunks_of(problem, panels, blocks, traits.threads)
    blocking = Blocking(rows, vectors, lanes, chunks)
    expanded = panels * vectors * problem.depth * chunks
    cycles = blocking.cycles(problem) + EXPAND_CYCLES * expanded
    ideal = problem.flops / (4 * traits.lanes)
    packing = ColumnPanels(blocking.width)
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    return Candidate(
        name=f"matmul_nbits.expanded[{rows}x{vectors},chunks={chunks}]",
        layouts=(PLAIN, *[packing] * (len(workload.op.inputs) - 1), *operands),
        output=PLAIN,
        cost=Cost(problem.flops, traffic(workload), max(0.01, PEAK_SHARE * ideal / cycles)),
        compute=partial(build, workload, blocking),
        schedule=nest.as_written,
    )
