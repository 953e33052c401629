"""The kernel of schedules.matmul_byte_pairs: bands of rows, which meet packed panels of columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx

from schedules import byte_panels, nest
from schedules.byte_dots import LEAST_LANES, add_data
from schedules.byte_frame import Frame
from schedules.byte_tiles import (
    COLUMNS,
    GROUP,
    MOST_TERMS,
    Place,
    Step,
    Sums,
    TilePlan,
    sums_of,
)
from schedules.conv_common import ceil_div
from schedules.interface import PLAIN, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.matmul_bytes import ProductPlan
from schedules.nest import Buffer, Split, Stmt
from schedules.product import Problem, aligned, problem_of, zeros_of
from schedules.tile import fold
from schedules.vectors import over_vectors, parallel_grid, scratch


def terms_of(problem: Problem, traits: TargetTraits) -> int:
    """Terms of a step: equal steps, as few as tiles allow; vector registers take all in one."""
    words = ceil_div(problem.depth, GROUP)
    steps = ceil_div(words * GROUP, MOST_TERMS) if traits.amx else 1
    return ceil_div(words, steps) * GROUP


class PairKernel:
    """Emits one kernel."""

    def __init__(self, workload: Workload, traits: TargetTraits, plan: ProductPlan) -> None:
        op = workload.op
        self.workload, self.plan, self.traits = workload, plan, traits
        self.problem = problem_of(workload)
        self.tile = TilePlan(plan.rows, terms_of(self.problem, traits), plan.tiles, plan.vectors)
        self.steps = ceil_div(self.problem.depth, self.tile.terms)
        self.frame = Frame(workload, PLAIN, PLAIN, PLAIN)
        left, right = zeros_of(op)
        self.signed = op.inputs[0].dtype == "int8"
        self.left = left + 128 * self.signed
        self.right = right - 128 * (op.inputs[1].dtype == "uint8")
        self.copied = self.signed or self.problem.depth % self.tile.terms != 0

    def function(self) -> PrimFunc:
        """The finished function."""
        plan, problem = self.plan, self.problem
        tiles = ceil_div(problem.rows, plan.rows)
        bands = Split.of(tiles, ceil_div(tiles, plan.bands))
        panels = ceil_div(problem.columns, self.tile.panel)
        splits = Split.of(panels, ceil_div(panels, plan.splits))

        def task(*place: PrimExpr) -> Stmt:
            *batch, part, split = place
            return splits.part(
                split,
                lambda panel, count: bands.part(
                    part, lambda first, size: self.band(tuple(batch), first, size, panel, count)
                ),
            )

        return self.frame.function(parallel_grid((*problem.batch, bands.count, splits.count), task))

    def start(self, tile: PrimExpr) -> PrimExpr:
        """First row of a tile; the last one begins so early that it is whole."""
        return _start(tile, self.plan.rows, self.problem.rows)

    def row(
        self, batch: tuple[PrimExpr, ...], row: PrimExpr, leading: tuple[int, ...]
    ) -> tuple[PrimExpr, ...]:
        """Index of a row into all axes but the last of the left operand or the output."""
        if self.problem.batch:
            return (*aligned(batch, leading[:-1]), row)
        return nest.unflatten(row, leading)

    def band(
        self,
        batch: tuple[PrimExpr, ...],
        first: PrimExpr,
        tiles: int,
        panel: PrimExpr,
        panels: int,
    ) -> Stmt:
        """`tiles` tiles from `first` on, by `panels` panels from `panel` on."""
        band = _Band(self, batch, first, tiles)
        loop = nest.serial(panels, lambda o: band.panel(panel + o), "panel")
        return nest.sequence(band.prepare(), loop, band.sums.stop())


class _Band:
    """Tiles of rows of one matrix, which meet one panel after the other."""

    def __init__(
        self, kernel: PairKernel, batch: tuple[PrimExpr, ...], first: PrimExpr, tiles: int
    ) -> None:
        self.kernel, self.batch, self.first, self.tiles = kernel, batch, first, tiles
        tile, rows = kernel.tile, kernel.plan.rows
        self.sums: Sums = sums_of(tile, kernel.traits)
        self.deep = kernel.steps * tile.terms
        self.area: Buffer = scratch((tiles, rows, self.deep), "uint8", "area")
        shape = (kernel.steps, tile.terms // GROUP, tile.panel, GROUP)
        self.packed: Buffer = scratch(shape, "int8", "packed")
        self.row_shifts: Buffer = scratch((tiles, rows), "int32", "row_shifts")
        self.column_shifts: Buffer = scratch((tile.panel,), "int32", "column_shifts")

    def prepare(self) -> Stmt:
        """What comes before the first panel."""
        kernel = self.kernel
        buffers = [self.packed]
        buffers += [self.area] if kernel.copied else []
        buffers += [self.row_shifts] if kernel.right else []
        buffers += [self.column_shifts] if kernel.left else []
        return nest.sequence(
            self.sums.start(),
            nest.allocate(*buffers),
            nest.whole(self.packed),
            self._each_row(self._copy) if kernel.copied else None,
            self._sum_rows() if kernel.right else None,
        )

    def panel(self, number: PrimExpr) -> Stmt:
        """One panel: packed, then multiplied by all tiles."""
        kernel = self.kernel
        op, problem, width = kernel.workload.op, kernel.problem, kernel.tile.panel
        columns = min(width, problem.columns)
        start = _start(number, columns, problem.columns)
        index = aligned(self.batch, op.inputs[1].shape[:-2])
        transposed = bool(op.attr("transpose_b"))

        def read(k: PrimExpr, column: PrimExpr) -> PrimExpr:
            # The start is added to a ramp's base, or the ramp would not stay one.
            if isinstance(column, tirx.Ramp):
                at = nest.ramp(column.base + start, int(column.lanes))
            else:
                at = column + start
            return nest.read(kernel.frame.weights, *index, *((at, k) if transposed else (k, at)))

        unsigned = op.inputs[1].dtype == "uint8"
        source = byte_panels.Source(read, problem.depth, columns, transposed, unsigned)
        shifts = None
        if kernel.left:
            shifts = byte_panels.column_sums(self.packed, kernel.traits, self._shift_columns)
        full, rest = divmod(self.tiles, kernel.plan.tiles)

        def some(u: PrimExpr, count: int) -> Stmt:
            stored = [self._finish(u + t, t, start, columns) for t in range(count)]
            return nest.sequence(self.sums.compute(count, partial(self._steps, u, count)), *stored)

        group = kernel.plan.tiles
        whole = nest.serial(full, lambda g: some(g * group, group), "tiles") if full else None
        last = some(nest.integer(full * group), rest) if rest else None
        return nest.sequence(
            byte_panels.pack(source, self.packed, kernel.traits.lanes), shifts, whole, last
        )

    def _steps(self, u: PrimExpr, count: int, step: Step) -> Stmt:
        """The loop over the depth, for `count` tiles from the band's tile `u` on."""
        kernel, terms = self.kernel, self.kernel.tile.terms

        def one(k: PrimExpr) -> Stmt:
            rows: list[Place] = []
            for t in range(count):
                if kernel.copied:
                    rows.append((u + t, 0, k * terms))
                else:
                    rows.append((*self._source_row(u + t, nest.integer(0)), k * terms))
            source = self.area if kernel.copied else kernel.frame.source
            stride = self.deep if kernel.copied else kernel.problem.depth
            return step(source, rows, stride, self.packed, (k,))

        return nest.serial(kernel.steps, one, "k")

    def _source_row(self, t: PrimExpr, r: PrimExpr) -> tuple[PrimExpr, ...]:
        leading = self.kernel.workload.op.inputs[0].shape[:-1]
        return self.kernel.row(self.batch, self.kernel.start(self.first + t) + r, leading)

    def _each_row(self, body: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
        rows = self.kernel.plan.rows
        return nest.serial(
            self.tiles, lambda t: nest.serial(rows, lambda r: body(t, r), "row"), "tile"
        )

    def _copy(self, t: PrimExpr, r: PrimExpr) -> Stmt:
        """A row to scratch, as unsigned bytes, filled up with zeros."""
        kernel, depth = self.kernel, self.kernel.problem.depth
        where = self._source_row(t, r)

        def move(k: PrimExpr) -> Stmt:
            value = nest.read(kernel.frame.source, *where, k)
            if kernel.signed:
                value = tirx.Cast("uint8", value) ^ tirx.const(128, "uint8")
            return nest.write(self.area, value, t, r, k)

        zero = tirx.const(0, "uint8")
        clear = over_vectors(
            self.deep - depth, 64, lambda k: nest.write(self.area, zero, t, r, k + depth)
        )
        return nest.sequence(over_vectors(depth, 64, move), clear)

    def _sum_rows(self) -> Stmt:
        """What the right operand's zero point adds to the sums of each row."""
        kernel, lanes = self.kernel, self.kernel.traits.lanes
        depth = self.deep if kernel.copied else kernel.problem.depth
        total = nest.buffer((lanes,), "int32", "row_total", "local")

        def data(t: PrimExpr, r: PrimExpr, at: PrimExpr) -> PrimExpr:
            if kernel.copied:
                return nest.read(self.area, t, r, at)
            return nest.read(kernel.frame.source, *self._source_row(t, r), at)

        def row(t: PrimExpr, r: PrimExpr) -> Stmt:
            def add(at: PrimExpr, width: int) -> Stmt:
                part = nest.ramp(0, width)
                value = data(t, r, nest.ramp(at, GROUP * width))
                sums = add_data(nest.read(total, part), value, width, kernel.traits)
                return nest.write(total, sums, part)

            each, zero = GROUP * lanes, tirx.const(0, "int32")
            clear = nest.vectorized(lanes, lambda x: nest.write(total, zero, x))
            whole = nest.serial(depth // each, lambda i: add(i * each, lanes))
            stmts = [clear, whole if depth >= each else None]
            done, width = depth // each * each, lanes // 2
            while width >= LEAST_LANES:
                if depth - done >= GROUP * width:
                    stmts.append(add(nest.integer(done), width))
                    done += GROUP * width
                width //= 2
            for at in range(done, depth):
                byte = tirx.Cast("int32", data(t, r, nest.integer(at)))
                stmts.append(nest.write(total, nest.read(total, 0) + byte, 0))
            shift = nest.read(total, 0) * tirx.const(-kernel.right, "int32")
            stmts += [fold(total, (), lanes, lambda x, y: x + y)]
            return nest.sequence(*stmts, nest.write(self.row_shifts, shift, t, r))

        return nest.sequence(nest.allocate(total), self._each_row(row))

    def _shift_columns(self, sums: PrimExpr, column: PrimExpr) -> Stmt:
        """What the left operand's zero point adds to sums of columns from `column` on."""
        kernel, lanes = self.kernel, self.kernel.traits.lanes

        def constant(value: int) -> PrimExpr:
            return tirx.Broadcast(tirx.const(value, "int32"), lanes)

        both = kernel.problem.depth * kernel.left * kernel.right
        value = sums * constant(-kernel.left) + constant(both)
        return nest.write(self.column_shifts, value, nest.ramp(column, lanes))

    def _finish(self, tile: PrimExpr, t: int, start: PrimExpr, columns: int) -> Stmt:
        """Store the epilogue of the sums of one tile of rows."""
        kernel = self.kernel
        leading = kernel.workload.output.shape[:-1]
        first = kernel.start(self.first + tile)

        def row(r: PrimExpr) -> Stmt:
            where = kernel.row(self.batch, first + r, leading)

            def lane(x: PrimExpr) -> Stmt:
                value = self.sums.value(t, r, x)
                if kernel.right:
                    value += nest.read(self.row_shifts, tile, r)
                if kernel.left:
                    value += nest.read(self.column_shifts, x)
                return kernel.frame.finish(value, (*where, start + x))

            return over_vectors(columns, COLUMNS, lane)

        return self.sums.each_row(row)


def _start(part: PrimExpr, size: int, extent: int) -> PrimExpr:
    """Where a part of `size` begins; the last one so early that it is whole."""
    first = part * size
    return tirx.min(first, nest.integer(extent - size)) if extent % size else first
