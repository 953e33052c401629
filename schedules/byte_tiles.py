"""Sums of products of bytes in tiles: `tiles` × `vectors` tiles of int32, in AMX's registers.

Rows are what is next to each other in an image (pixels) or a matrix; columns are filters. A step
multiplies as many consecutive bytes of each row as `terms` with the weights of as many terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tvm import tirx

from schedules import amx, nest
from schedules.conv_common import ceil_div
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.interface import Layout, Packing, PrimExpr, PrimFunc, Workload
from schedules.nest import Buffer, Stmt

GROUP = 4
"""Terms that lie together: one instruction adds their products to a sum."""
COLUMNS = amx.COLUMNS
"""Columns of a tile; filters of a vector."""
MOST_TERMS = amx.ROW_BYTES
MOST_ROWS = amx.ROWS

Place: TypeAlias = "tuple[PrimExpr | int, ...]"


@dataclass(frozen=True)
class TilePlan:
    """rows: of a tile. terms: of a step, a multiple of 4. tiles, vectors: tiles of rows and of
    columns that are summed at once."""

    rows: int
    terms: int
    tiles: int
    vectors: int

    @property
    def fits(self) -> bool:
        """Whether there are registers enough."""
        return self.tiles * self.vectors + self.tiles + self.vectors <= amx.TILES

    @property
    def panel(self) -> int:
        """Columns that are summed at once."""
        return self.vectors * COLUMNS


class TileSums:
    """The sums of one piece of code, and where they are when they are complete."""

    def __init__(self, plan: TilePlan) -> None:
        self.plan = plan
        shape = (plan.tiles, plan.rows, plan.panel)
        self._buffer: Buffer = nest.buffer(shape, "int32", "sums", "local")

    def start(self) -> Stmt:
        """To stand once before all others."""
        plan = self.plan
        shapes = [(plan.rows, 4 * COLUMNS)] * (plan.tiles * plan.vectors)
        shapes += [(plan.rows, plan.terms)] * plan.tiles
        shapes += [(plan.terms // GROUP, GROUP * COLUMNS)] * plan.vectors
        # TVM shrinks a buffer to the part that it sees read or written, which tiles are not.
        last = nest.read(self._buffer, plan.tiles - 1, plan.rows - 1, plan.panel - 1)
        whole = tirx.Evaluate(tirx.address_of(last))
        return nest.sequence(amx.configure(shapes), nest.allocate(self._buffer), whole)

    def compute(self, tiles: int, steps: Callable[[Step], Stmt]) -> Stmt:
        """The first `tiles` tiles of rows; `steps(step)` is the loop over all steps."""
        plan = self.plan
        used = [(t, v) for t in range(tiles) for v in range(plan.vectors)]

        def step(source: Buffer, rows: Sequence[Place], stride: int, weights: Buffer, at: Place):  # type: ignore[no-untyped-def]
            first = plan.tiles * plan.vectors
            loads = [amx.load(first + t, source, rows[t], stride) for t in range(tiles)]
            first += plan.tiles
            for v in range(plan.vectors):
                where = (*at, 0, v * COLUMNS, 0)
                loads.append(amx.load(first + v, weights, where, plan.panel * GROUP))
            products = [
                amx.multiply(self._sums(t, v), plan.tiles * plan.vectors + t, first + v)
                for t, v in used
            ]
            return nest.sequence(*loads, *products)

        stores = [
            amx.store(self._sums(t, v), self._buffer, (t, 0, v * COLUMNS), 4 * plan.panel)
            for t, v in used
        ]
        clear = [amx.clear(self._sums(t, v)) for t, v in used]
        return nest.sequence(*clear, steps(step), *stores)

    def value(self, t: PrimExpr | int, row: PrimExpr, column: PrimExpr) -> PrimExpr:
        """A sum, after compute()."""
        return nest.read(self._buffer, t, row, column)

    def _sums(self, t: int, v: int) -> int:
        return t * self.plan.vectors + v


Step: TypeAlias = "Callable[[Buffer, Sequence[Place], int, Buffer, Place], Stmt]"
"""One step: the source and where the first bytes of each tile's rows are, the bytes from a row to
the next, the packed weights, and the leading coordinates of those (terms / 4, panel, 4) to use."""


class Frame:
    """The buffers of a kernel of bytes with constant weights: source, weights, operands, result."""

    def __init__(self, workload: Workload, source: Layout, weights: Packing, target: Layout):
        first, second = workload.op.inputs[:2]
        self.workload, self.target = workload, target
        self.source = nest.buffer(source.physical(first.shape), first.dtype, "source")
        self.weights = nest.buffer(weights.packed_shape(second.shape), second.dtype, "weights")
        where = operand_layouts(workload.epilogue, workload.output, target)
        self._operands = [
            nest.buffer(layout.physical(sig.shape), sig.dtype, f"operand{i}")
            for i, (sig, layout) in enumerate(zip(workload.epilogue.operands, where, strict=True))
        ]
        shape = target.physical(workload.output.shape)
        self._result = nest.buffer(shape, workload.output.dtype, "result")

    def finish(self, value: PrimExpr, index: Sequence[PrimExpr]) -> Stmt:
        """Store the epilogue of a sum at physical `index` of the output."""
        operands = [nest.reader(buffer) for buffer in self._operands]
        element = apply_epilogue(self.workload, value, operands, self.target, index)
        return nest.write(self._result, element, *index)

    def channels(
        self,
        panel: PrimExpr,
        vectors: int,
        leading: Sequence[PrimExpr],
        position: Sequence[PrimExpr],
        value: Callable[[PrimExpr], PrimExpr],
    ) -> Stmt:
        """Store one panel of filters at one position of a blocked output of `leading` axes."""
        each = self.target.block // COLUMNS
        groups = ceil_div(self.workload.output.shape[1], self.target.block) * each

        def vector(v: PrimExpr) -> Stmt:
            group = panel * vectors + v

            def lane(x: PrimExpr) -> Stmt:
                index = (*leading, group // each, *position, group % each * COLUMNS + x)
                return self.finish(value(v * COLUMNS + x), index)

            stored = nest.vectorized(COLUMNS, lane)
            return nest.branch(groups % vectors == 0 or group < groups, stored)

        return nest.unrolled(vectors, vector)

    def function(self, *nests: Stmt) -> PrimFunc:
        """The finished function."""
        parameters = [self.source, self.weights, *self._operands, self._result]
        return nest.function(parameters, nest.sequence(*nests))
