"""Matrix products of two matrices of bytes that are both computed at run time, with exact sums.

A task packs panels of its right operand into scratch, one after the other, and multiplies them as
if they were constant (schedules.matmul_bytes). Kernels multiply unsigned by signed bytes: others
are shifted by 128 where they are copied or packed. With zero points z and w, as unsigned and signed
bytes, Σ(a − z)(b − w) = Σab − w·Σa − z·Σb + K·z·w, where the sums of rows and columns are those of
bytes that are in the cache already.

Numerics: exact; sums wrap as int32 does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod

from schedules.byte_pair_kernel import PairKernel, terms_of
from schedules.byte_tiles import TilePlan, has_sums, share, usual_tile, way
from schedules.conv_common import ceil_div, traffic
from schedules.epilogue import operand_layouts
from schedules.interface import PLAIN, Candidate, Cost, TargetTraits, Workload
from schedules.matmul_bytes import ProductPlan, plan_knobs
from schedules.nest import as_written
from schedules.product import PRODUCTS, Problem, problem_of
from schedules.space import tunable

_BYTES = ("uint8", "int8")
_PACK_CYCLES = 0.16  # per byte of the right operand, measured in cache
_COPY_CYCLES = 0.06  # per byte of the left one


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for a matmul of bytes, where there are instructions for their sums."""
    op = workload.op
    if op.kind not in PRODUCTS or not has_sums(traits) or op.output.dtype != "int32":
        return ()
    if any(sig.dtype not in _BYTES or not sig.elements for sig in op.inputs):
        return ()
    problem = problem_of(workload)
    if op.constant[1] and not problem.batch:
        return ()
    tile = usual_tile(problem.rows, 1, problem.columns, terms_of(problem, traits), traits)
    tiles = ceil_div(problem.rows, tile.rows)
    panels = ceil_div(problem.columns, tile.panel)
    bands, splits = _shares(problem, tiles, panels, traits.threads)
    values = {
        "rows": tile.rows,
        "tiles": tile.tiles,
        "vectors": tile.vectors,
        "bands": bands,
        "splits": splits,
    }
    knobs = plan_knobs(traits.threads)
    return (tunable(knobs, values, partial(_decided, workload, problem, traits)),)


def _shares(problem: Problem, tiles: int, panels: int, threads: int) -> tuple[int, int]:
    """Parts of the rows and the columns: none where the matrices are tasks enough.

    Parts of the columns come first: each packs its own panels, and no panel is packed twice.
    """
    matrices = prod(problem.batch)
    if threads == 1 or matrices % threads == 0 or matrices >= 4 * threads:
        return 1, 1
    wanted = 2 * threads
    splits = min(ceil_div(wanted, matrices), panels)
    return min(ceil_div(wanted, matrices * splits), tiles), splits


def _decided(
    workload: Workload, problem: Problem, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel with these decisions."""
    plan = ProductPlan(**values)
    tile = TilePlan(plan.rows, terms_of(problem, traits), plan.tiles, plan.vectors)
    tiles, panels = ceil_div(problem.rows, plan.rows), ceil_div(problem.columns, tile.panel)
    if (
        not tile.fits(traits)
        or plan.rows > problem.rows
        or plan.bands > tiles
        or plan.splits > panels
    ):
        return None
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    steps = ceil_div(problem.depth, tile.terms)
    ideal = problem.flops / (4 * traits.lanes)
    cycles = ideal / share(tile, steps, traits)
    moved = plan.bands * _PACK_CYCLES * problem.columns + plan.splits * _COPY_CYCLES * problem.rows
    cycles += prod(problem.batch) * problem.depth * moved
    return Candidate(
        name=f"matmul.{way(traits)}[packed]",
        layouts=(PLAIN, PLAIN, *operands),
        output=PLAIN,
        cost=Cost(problem.flops, traffic(workload), ideal / cycles),
        compute=lambda: PairKernel(workload, traits, plan).function(),
        schedule=as_written,
    )
