"""Matrix products of unsigned bytes with constant signed bytes, with exact int32 sums.

Rows of the left operand are rows of tiles as they lie, unless their length is no multiple of the
64 bytes that a step takes: then a task copies its rows into scratch, filled up with zeros.

Numerics: exact; sums wrap as int32 does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.byte_frame import Frame
from schedules.byte_tiles import (
    COLUMNS,
    GROUP,
    MOST_ROWS,
    MOST_TERMS,
    Place,
    Step,
    Sums,
    TilePlan,
    has_sums,
    share,
    sums_of,
    usual_tile,
    way,
)
from schedules.conv_common import ceil_div, traffic
from schedules.conv_loops import parallel_grid
from schedules.epilogue import operand_layouts
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
from schedules.nest import Buffer, Split, Stmt, as_written
from schedules.product import Problem, problem_of
from schedules.space import tunable
from schedules.vectors import over_vectors, scratch


@dataclass(frozen=True)
class BytePanels:
    """Packs int8 (…, K, N), or (…, N, K) where `transposed`, as (panels, steps, terms / 4, panel,
    4) with zeros where there is neither a row nor a column; leading axes have extent 1."""

    terms: int
    panel: int
    transposed: bool

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        matrix = array.reshape(array.shape[-2:])
        matrix = matrix.T if self.transposed else matrix
        panels, steps, words, panel, _ = self.packed_shape(array.shape)
        padded = np.zeros((steps * self.terms, panels * panel), array.dtype)
        padded[: matrix.shape[0], : matrix.shape[1]] = matrix
        split = padded.reshape(steps, words, GROUP, panels, panel)
        return np.ascontiguousarray(split.transpose(3, 0, 1, 4, 2))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        depth, columns = reversed(shape[-2:]) if self.transposed else shape[-2:]
        steps = ceil_div(depth, self.terms)
        return (ceil_div(columns, self.panel), steps, self.terms // GROUP, self.panel, GROUP)


@dataclass(frozen=True)
class ProductPlan:
    """rows: of a tile. tiles, vectors: of rows and of columns summed at once. bands, splits: parts
    of the rows and of the columns that are tasks."""

    rows: int
    tiles: int
    vectors: int
    bands: int
    splits: int


def plan_knobs(threads: int) -> tuple[Knob, ...]:
    """The values that each field of a ProductPlan may take."""
    parts = tuple(range(1, 4 * threads + 1))
    return (
        Knob("rows", tuple(range(1, MOST_ROWS + 1))),
        Knob("tiles", (1, 2, 3)),
        Knob("vectors", (1, 2, 3)),
        Knob("bands", parts),
        Knob("splits", parts),
    )


def terms_of(problem: Problem) -> int:
    """Terms of a step."""
    return min(MOST_TERMS, ceil_div(problem.depth, GROUP) * GROUP)


class _Kernel:
    """Emits one kernel."""

    def __init__(self, workload: Workload, traits: TargetTraits, plan: ProductPlan) -> None:
        self.workload, self.plan, self.traits = workload, plan, traits
        self.problem = problem_of(workload)
        self.tile = TilePlan(plan.rows, terms_of(self.problem), plan.tiles, plan.vectors)
        packing = BytePanels(self.tile.terms, self.tile.panel, workload.op.attr("transpose_b"))
        self.frame = Frame(workload, PLAIN, packing, PLAIN)
        self.leading = workload.op.inputs[0].shape[:-1]

    def function(self) -> PrimFunc:
        """The finished function."""
        plan, problem = self.plan, self.problem
        tiles = ceil_div(problem.rows, plan.rows)
        bands = Split.of(tiles, ceil_div(tiles, plan.bands))
        panels = ceil_div(problem.columns, self.tile.panel)
        splits = Split.of(panels, ceil_div(panels, plan.splits))

        def task(part: PrimExpr, split: PrimExpr) -> Stmt:
            return splits.part(
                split,
                lambda panel, count: bands.part(
                    part, lambda first, size: self.band(first, size, panel, count)
                ),
            )

        return self.frame.function(parallel_grid((bands.count, splits.count), task))

    def start(self, tile: PrimExpr) -> PrimExpr:
        """First row of a tile; the last one begins so early that it is whole."""
        first = tile * self.plan.rows
        if self.problem.rows % self.plan.rows:
            return tirx.min(first, self.problem.rows - self.plan.rows)
        return first

    def band(self, first: PrimExpr, tiles: int, panel: PrimExpr, panels: int) -> Stmt:
        """`tiles` tiles from `first` on, by `panels` panels from `panel` on."""
        sums = sums_of(self.tile, self.traits)
        full, rest = divmod(tiles, self.plan.tiles)
        copied = self.copied(first, tiles) if self.problem.depth % self.tile.terms else None

        def columns(o: PrimExpr) -> Stmt:
            def some(u: PrimExpr, count: int) -> Stmt:
                body = partial(
                    self.steps, copied[0] if copied else None, first, u, count, panel + o
                )
                stored = [
                    self.finish(sums, t, self.start(first + u + t), panel + o) for t in range(count)
                ]
                return nest.sequence(sums.compute(count, body), *stored)

            whole = nest.serial(full, lambda g: some(g * self.plan.tiles, self.plan.tiles), "tiles")
            last = some(nest.integer(full * self.plan.tiles), rest) if rest else None
            return nest.sequence(whole if full else None, last)

        prepare = [nest.allocate(copied[0]), copied[1]] if copied else []
        loop = nest.serial(panels, columns, "panel")
        return nest.sequence(sums.start(), *prepare, loop, sums.stop())

    def steps(
        self,
        area: Buffer | None,
        first: PrimExpr,
        u: PrimExpr,
        count: int,
        panel: PrimExpr,
        step: Step,
    ) -> Stmt:
        """The loop over the depth, for `count` tiles from the band's tile `u` on."""
        terms = self.tile.terms
        depth = ceil_div(self.problem.depth, terms)

        def one(k: PrimExpr) -> Stmt:
            rows: list[Place] = []
            for t in range(count):
                if area is None:
                    row = nest.unflatten(self.start(first + u + t), self.leading)
                    rows.append((*row, k * terms))
                else:
                    rows.append((u + t, 0, k * terms))
            source = self.frame.source if area is None else area
            stride = self.problem.depth if area is None else depth * terms
            return step(source, rows, stride, self.frame.weights, (panel, k))

        return nest.serial(depth, one, "k")

    def copied(self, first: PrimExpr, tiles: int) -> tuple[Buffer, Stmt]:
        """Scratch (tile, row, depth filled up) for a band, and the statement that fills it."""
        problem, rows = self.problem, self.plan.rows
        deep = ceil_div(problem.depth, self.tile.terms) * self.tile.terms
        area = scratch((tiles, rows, deep), "uint8", "area")

        def line(t: PrimExpr, r: PrimExpr) -> Stmt:
            where = nest.unflatten(self.start(first + t) + r, self.leading)
            move = over_vectors(
                problem.depth,
                64,
                lambda k: nest.write(area, nest.read(self.frame.source, *where, k), t, r, k),
            )
            zero = tirx.const(0, "uint8")
            clear = over_vectors(
                deep - problem.depth,
                64,
                lambda k: nest.write(area, zero, t, r, k + problem.depth),
            )
            return nest.sequence(move, clear)

        return area, nest.serial(
            tiles, lambda t: nest.serial(rows, lambda r: line(t, r), "row"), "tile"
        )

    def finish(self, sums: Sums, t: int, start: PrimExpr, panel: PrimExpr) -> Stmt:
        """Store the epilogue of the sums of one tile of rows."""
        columns, width = self.problem.columns, self.tile.panel
        out = self.workload.output.shape[:-1]

        def row(r: PrimExpr) -> Stmt:
            where = nest.unflatten(start + r, out)

            def store(first: PrimExpr, count: int) -> Stmt | None:
                def lane(x: PrimExpr) -> Stmt:
                    return self.frame.finish(sums.value(t, r, x), (*where, first + x))

                return over_vectors(count, COLUMNS, lane)

            whole = store(panel * width, width)
            rest = columns % width
            if not rest:
                return whole
            if columns < width:
                return store(nest.integer(0), rest)
            return tirx.IfThenElse(
                panel < columns // width, whole, store(nest.integer(columns - rest), rest)
            )

        return sums.each_row(row)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for a matmul of uint8 with one constant matrix of int8, where there are tiles."""
    op = workload.op
    if op.kind != "matmul" or not has_sums(traits) or not op.constant[1]:
        return ()
    if [sig.dtype for sig in op.inputs] != ["uint8", "int8"]:
        return ()
    problem = problem_of(workload)
    if problem.batch:
        return ()
    tile = usual_tile(problem.rows, 1, problem.columns, terms_of(problem), traits)
    tiles = ceil_div(problem.rows, tile.rows)
    panels = ceil_div(problem.columns, tile.panel)
    tasks = 1 if traits.threads == 1 else 2 * traits.threads
    by_rows = problem.rows > problem.columns
    values = {
        "rows": tile.rows,
        "tiles": tile.tiles,
        "vectors": tile.vectors,
        "bands": min(tasks, tiles) if by_rows else 1,
        "splits": 1 if by_rows else min(tasks, panels),
    }
    knobs = plan_knobs(traits.threads)
    return (tunable(knobs, values, partial(_decided, workload, problem, traits)),)


def _decided(
    workload: Workload, problem: Problem, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel with these decisions."""
    plan = ProductPlan(**values)
    tile = TilePlan(plan.rows, terms_of(problem), plan.tiles, plan.vectors)
    tiles, panels = ceil_div(problem.rows, plan.rows), ceil_div(problem.columns, tile.panel)
    if (
        not tile.fits(traits)
        or plan.rows > problem.rows
        or plan.bands > tiles
        or plan.splits > panels
    ):
        return None
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    packing = BytePanels(tile.terms, tile.panel, workload.op.attr("transpose_b"))
    steps = ceil_div(problem.depth, tile.terms)
    return Candidate(
        name=f"matmul.{way(traits)}",
        layouts=(PLAIN, packing, *operands),
        output=PLAIN,
        cost=Cost(problem.flops, traffic(workload), share(tile, steps, traits)),
        compute=lambda: _Kernel(workload, traits, plan).function(),
        schedule=as_written,
    )
