"""Matrix products of few rows with weights of few bits, as sums of integers.

Each block of a row is taken in fixed point, as integers of 23 bits times a power-free scale, and
each integer as three signed bytes, its digits to the base 256. Products of digits with codes are
what instructions for bytes sum exactly, four at a time: three of them take less time than
converting one code to a float. (Splitting operands into slices whose products are exact is Ozaki's
scheme: Ozaki, Ogita, Oishi, Rump, "Error-free transformations of matrix multiplication by using
fast routines of matrix multiplication and its applications", 2012.)

Error against float64 of the expanded matrix: at most 1e-6·√K of the largest Σ|x|·(|c| + |z|)·scale,
as an element is off by at most 2⁻²³ of the largest in its block. Elements that are not finite make
their whole row NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.byte_dots import add_codes, has_fast_dots
from schedules.epilogue import operand_layouts
from schedules.gemm import PEAK_SHARE, ColumnPanels, traffic
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Knob,
    Numerics,
    PrimExpr,
    TargetTraits,
    Workload,
)
from schedules.matmul_nbits_rows import MOST_ROWS
from schedules.nbits_kernel import NbitsKernel, Plan, packings_of, problem_of, usual_vectors
from schedules.nest import Buffer, Stmt, as_written
from schedules.product import Problem, accumulator_dtype, ceildiv
from schedules.space import tunable
from schedules.tile import fold
from schedules.vectors import scratch

_WORD = 4
"""Terms that one instruction sums for a column."""
_DIGITS = 3
_LARGEST = float(1 << 22)
"""What the largest magnitude of a block becomes."""
_TINY = 1e-30
"""The least magnitude that a block is scaled by, whose reciprocal is finite."""
_MOST_TERMS = 1 << 16
"""Of a block: sums of digits times bytes fit 32 bits."""


@dataclass(frozen=True)
class FieldPanels:
    """Packs bytes (K', N) of 8/bits consecutive codes as int32 (panels, steps, block).

    A word has 32/bits consecutive codes of a column: of each group of four, one is in each byte;
    the first group is in the lowest bits of all bytes. `signed` codes of 8 bits are 128 less.
    """

    bits: int
    block: int
    signed: bool

    @property
    def fields(self) -> int:
        """Codes in a byte."""
        return 8 // self.bits

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        fields, columns = self.fields, array.shape[1]
        steps = ceildiv(array.shape[0], _WORD)
        packed = np.zeros((steps * _WORD, columns), np.uint8)
        packed[: array.shape[0]] = array
        if self.signed:
            packed ^= np.uint8(128)
        mask = np.uint8((1 << self.bits) - 1)
        codes = np.stack([packed >> np.uint8(f * self.bits) & mask for f in range(fields)], 1)
        grouped = codes.reshape(steps, fields, _WORD, columns)
        shifts = (np.arange(fields, dtype=np.uint8) * np.uint8(self.bits)).reshape(1, -1, 1, 1)
        bytes_ = np.bitwise_or.reduce(grouped << shifts, axis=1).transpose(0, 2, 1)
        words = np.ascontiguousarray(bytes_).view("<i4")[..., 0]
        return ColumnPanels(self.block).pack(words)

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        return ColumnPanels(self.block).packed_shape((ceildiv(shape[0], _WORD), shape[1]))


class _Kernel(NbitsKernel):
    """Sums in integers."""

    def __init__(self, workload: Workload, traits: TargetTraits, plan: Plan) -> None:
        self.packing = packing_of(workload, plan, traits)
        super().__init__(workload, traits, plan, self.packing, "int32")
        self.terms = _WORD * self.packing.fields
        self.subtracted = 128.0 if self.packing.signed else 0.0
        self.shifted = self.point(nest.integer(0), nest.integer(0), 0, self.subtracted) is not None
        self.digits: Buffer = None
        self.steps: Buffer = None
        self.row_sums: Buffer = None

    def prepare(self) -> Stmt | None:
        """The digits of all rows; the scale of each block, and the sum of its integers."""
        rows, deep = self.problem.rows, ceildiv(self.problem.depth, self.terms) * self.terms
        self.digits = scratch((rows, _DIGITS, deep), "int8", "digits")
        self.steps, self.row_sums = self.scratch("steps"), self.scratch("row_sums")
        lanes = self.traits.lanes
        # Largest magnitudes, zeros times elements (NaN where one is not finite), and sums.
        most, odd, total = (
            nest.buffer((lanes,), "float32", name, "local") for name in ("most", "odd", "total")
        )
        inverse = nest.buffer((1,), "float32", "inverse", "local")
        zero, byte = tirx.const(0, "float32"), tirx.const(0, "int8")

        def group(row: PrimExpr, g: PrimExpr, count: int) -> Stmt:
            def over(body: Any) -> Stmt:
                whole, rest = divmod(count, lanes)
                loop = nest.serial(
                    whole, lambda i: nest.vectorized(lanes, lambda x: body(i * lanes + x, x)), "k"
                )
                last = nest.vectorized(rest, lambda x: body(x + whole * lanes, x)) if rest else None
                return nest.sequence(loop if whole else None, last)

            def measure(k: PrimExpr, x: PrimExpr) -> Stmt:
                value = self.element(row, g * self.block + k)
                larger = tirx.max(nest.read(most, x), tirx.abs(value))
                return nest.sequence(
                    nest.write(most, larger, x),
                    nest.write(odd, nest.read(odd, x) + value * zero, x),
                )

            def divide(k: PrimExpr, x: PrimExpr) -> Stmt:
                at = g * self.block + k
                scaled = tirx.nearbyint(self.element(row, at) * nest.read(inverse, 0))
                rest = tirx.Cast("int32", scaled)
                stmts = [nest.write(total, nest.read(total, x) + scaled, x)]
                for digit in range(_DIGITS):
                    low = tirx.Cast("int8", rest)
                    stmts.append(nest.write(self.digits, low, row, digit, at))
                    eight = tirx.const(8, "int32")
                    rest = tirx.shift_right(rest - tirx.Cast("int32", low), eight)
                return nest.sequence(*stmts)

            largest = tirx.max(nest.read(most, 0), tirx.const(_TINY, "float32"))
            step = largest * tirx.const(1 / _LARGEST, "float32") + nest.read(odd, 0)
            return nest.sequence(
                *[
                    nest.vectorized(lanes, lambda x, b=b: nest.write(b, zero, x))  # type: ignore[misc]
                    for b in (most, odd, total)
                ],
                over(measure),
                fold(most, (), lanes, tirx.max),
                fold(odd, (), lanes, lambda x, y: x + y),
                nest.write(self.steps, step, row, g),
                nest.write(inverse, tirx.const(_LARGEST, "float32") / largest, 0),
                over(divide),
                fold(total, (), lanes, lambda x, y: x + y),
                nest.write(self.row_sums, nest.read(total, 0), row, g),
            )

        def row(r: PrimExpr) -> Stmt:
            filled = [
                nest.write(self.digits, byte, r, digit, k)
                for digit in range(_DIGITS)
                for k in range(self.problem.depth, deep)
            ]
            return nest.sequence(self.each_group(lambda g, count: group(r, g, count)), *filled)

        return nest.sequence(
            nest.allocate(self.digits, self.steps, self.row_sums, most, odd, total, inverse),
            nest.serial(rows, row, "row"),
        )

    def sums(self, panel: PrimExpr, row: PrimExpr, rows: int) -> _Sums:
        """See NbitsKernel."""
        return _Sums(self, panel, row, rows)


class _Sums:
    """A vector of int32 for each row, digit and vector of columns."""

    def __init__(self, kernel: _Kernel, panel: PrimExpr, row: PrimExpr, rows: int) -> None:
        self.kernel, self.panel, self.row, self.rows = kernel, panel, row, rows
        self.lanes = kernel.traits.lanes
        self._sums = {
            (m, digit, v): nest.buffer((self.lanes,), "int32", "block_sum", "local")
            for m in range(rows)
            for digit in range(_DIGITS)
            for v in range(kernel.plan.vectors)
        }
        self._every = nest.ramp(0, self.lanes)

    @property
    def buffers(self) -> list[Buffer]:
        """See BlockSums."""
        return list(self._sums.values())

    def clear(self) -> Stmt:
        """See BlockSums."""
        zero = tirx.Broadcast(tirx.const(0, "int32"), self.lanes)
        return nest.sequence(*[nest.write(buffer, zero, self._every) for buffer in self.buffers])

    def steps(self, group: PrimExpr, terms: int) -> Stmt:
        """See BlockSums."""
        kernel = self.kernel
        first = group * (kernel.block // kernel.terms)
        return nest.serial(ceildiv(terms, kernel.terms), lambda s: self._step(first + s), "k")

    def _step(self, number: PrimExpr) -> Stmt:
        kernel, lanes, bits = self.kernel, self.lanes, self.kernel.packing.bits
        stmts: list[Stmt] = []
        mask = int.from_bytes(bytes([(1 << bits) - 1] * _WORD), "little", signed=True)

        def bound(value: PrimExpr, dtype: str, name: str) -> PrimExpr:
            var = tirx.Var(name, dtype)
            stmts.append(tirx.Bind(var, value))
            return var

        def constant(value: int) -> PrimExpr:
            return tirx.Broadcast(tirx.const(value, "int32"), lanes)

        for v in range(kernel.plan.vectors):
            columns = nest.ramp(v * lanes, lanes)
            read = nest.read(kernel.b, self.panel, number, columns)
            word = bound(read, f"int32x{lanes}", "word")
            for field in range(kernel.packing.fields):
                codes = tirx.shift_right(word, constant(field * bits)) if field else word
                codes = codes & constant(mask) if bits < 8 else codes
                codes = bound(codes, f"int32x{lanes}", "codes")
                at = number * kernel.terms + field * _WORD
                for m in range(self.rows):
                    for digit in range(_DIGITS):
                        place = (self.row + m, digit, nest.ramp(at, _WORD))
                        digits = tirx.reinterpret("int32", nest.read(kernel.digits, *place))
                        buffer = self._sums[m, digit, v]
                        total = nest.read(buffer, self._every)
                        total = add_codes(total, codes, digits, kernel.traits)
                        stmts.append(nest.write(buffer, total, self._every))
        return nest.sequence(*stmts)

    def total(self, group: PrimExpr, m: int, v: int) -> PrimExpr:
        """See BlockSums."""
        kernel, lanes = self.kernel, self.lanes

        def spread(value: PrimExpr) -> PrimExpr:
            return tirx.Broadcast(value, lanes)

        value = None
        for digit in reversed(range(_DIGITS)):
            whole = nest.read(self._sums[m, digit, v], self._every)
            part = tirx.Cast(f"float32x{lanes}", whole)
            base = spread(tirx.const(256.0, "float32"))
            value = part if value is None else value * base + part
        point = kernel.point(self.panel, group, v, kernel.subtracted)
        if point is not None:
            value = value - point * spread(nest.read(kernel.row_sums, self.row + m, group))
        return value * spread(nest.read(kernel.steps, self.row + m, group))


def packing_of(workload: Workload, plan: Plan, traits: TargetTraits) -> FieldPanels:
    """How weights lie: as signed bytes where instructions take no unsigned ones."""
    bits = int(workload.op.attr("bits"))
    return FieldPanels(bits, plan.vectors * traits.lanes, bits == 8 and traits.arch == "aarch64")


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for a matmul_nbits of few rows, where products of bytes are fast."""
    op = workload.op
    if op.kind != "matmul_nbits" or not all(op.constant[1:]) or not has_fast_dots(traits):
        return ()
    problem = problem_of(workload)
    block, terms = int(op.attr("block")), _WORD * 8 // int(op.attr("bits"))
    if problem.rows > MOST_ROWS or block % terms or block > _MOST_TERMS:
        return ()
    if accumulator_dtype(workload) != "float32":
        return ()
    room = traits.vector_registers - 4
    most = max(1, room // _DIGITS // min(problem.rows, room // _DIGITS))
    usual = tuple(v for v in (4, 3, 2, 1) if v <= most)
    vectors = usual_vectors(problem.columns, usual, traits.lanes)
    rows = max(1, min(problem.rows, room // (_DIGITS * vectors)))
    values = {
        "rows": ceildiv(problem.rows, ceildiv(problem.rows, rows)),
        "vectors": vectors,
        "tasks": traits.threads,
    }
    knobs = (
        Knob("rows", tuple(range(1, min(problem.rows, room // _DIGITS) + 1))),
        Knob("vectors", (1, 2, 3, 4, 6)),
        Knob("tasks", tuple(sorted({traits.threads, 2 * traits.threads, 4 * traits.threads}))),
    )
    return (tunable(knobs, values, partial(_decided, workload, problem, traits)),)


def _decided(
    workload: Workload, problem: Problem, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel with these decisions."""
    plan = Plan(**values)
    used = _DIGITS * plan.rows * plan.vectors + 3
    if used > traits.vector_registers or plan.rows > problem.rows:
        return None
    packing = packing_of(workload, plan, traits)
    width = packing.block
    words = ceildiv(problem.columns, width) * plan.vectors * problem.depth / _WORD
    unpacking = 0.0 if packing.bits == 8 else 1.5
    ends = 16.0 * _WORD / min(int(workload.op.attr("block")), problem.depth)
    tiles = ceildiv(problem.rows, plan.rows)
    cycles = words * (tiles * (1 + unpacking) + problem.rows * (1.25 * _DIGITS + ends)) / 2
    cycles += problem.rows * problem.depth * plan.tasks * 25 / traits.lanes
    share = PEAK_SHARE * problem.flops / (4 * traits.lanes) / cycles
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    return Candidate(
        name="matmul_nbits.digits",
        layouts=(PLAIN, *packings_of(workload, width, packing), *operands),
        output=PLAIN,
        cost=Cost(problem.flops, traffic(workload), max(0.01, share)),
        compute=lambda: _Kernel(workload, traits, plan).function(),
        schedule=as_written,
        numerics=Numerics.DEFAULT,
    )
