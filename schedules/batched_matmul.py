"""Matrix products of two activations, with broadcasting of leading axes; takes every matmul.

A panel of the right operand is read in place or copied (transposed, where need be) to the
worker's scratch and meets all rows of a chunk there. Limits as in `schedules.gemm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod

from schedules import gemm, nest
from schedules.epilogue import operand_layouts
from schedules.gemm import PEAK_SHARE, traffic
from schedules.interface import PLAIN, Candidate, Cost, TargetTraits, Workload
from schedules.product import (
    PRODUCTS,
    Blocking,
    Problem,
    Right,
    accumulator_lanes,
    build,
    ceildiv,
    problem_of,
)
from schedules.space import tunable
from schedules.tile import tallest

COPY_CYCLES = 1.5  # per vector of a row copied, measured in cache
TRANSPOSE_CYCLES = 6.0  # per vector of a square transposed in registers
SINGLE_CYCLES = 1.5  # per element copied alone
DIRECT_ROWS = 8  # above, reading rows of b that lie far apart costs more than copying a panel


def chunks_of(problem: Problem, panels: int, blocks: int, threads: int) -> int:
    """Shares of the row blocks: the fewest that keep all workers busy to within a tenth."""
    shared = prod(problem.batch) * panels
    for chunks in range(1, blocks):
        tasks = shared * chunks
        if tasks >= threads and ceildiv(tasks, threads) * threads <= 1.1 * tasks:
            return chunks
    return blocks


def copy_cycles(problem: Problem, blocking: Blocking, transposed: bool) -> float:
    """Estimated cycles of copying panels, all tasks together."""
    elements = problem.depth * problem.columns
    if not transposed:
        cycles = COPY_CYCLES * problem.depth * ceildiv(problem.columns, blocking.lanes)
    else:
        deep = problem.depth // blocking.lanes * blocking.lanes
        wide = problem.columns // blocking.lanes * blocking.lanes
        squares = deep * wide / blocking.lanes
        cycles = TRANSPOSE_CYCLES * squares + SINGLE_CYCLES * (elements - deep * wide)
    return cycles * blocking.chunks * prod(problem.batch)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Candidates for any matmul; operands may be constants, but nothing is packed."""
    op = workload.op
    if op.kind not in PRODUCTS:
        return ()
    found = [candidate(workload, traits, Right.COPIED)]
    if not op.attr("transpose_b") and problem_of(workload).rows <= DIRECT_ROWS:
        found.append(candidate(workload, traits, Right.DIRECT))
    return tuple(found)


def candidate(workload: Workload, traits: TargetTraits, right: Right) -> Candidate:
    """The product that reads its right operand so, in the cut with the fewest modelled cycles."""
    problem, lanes = problem_of(workload), accumulator_lanes(workload, traits)
    widest = ceildiv(problem.columns, lanes)
    cuts = [
        blocking(workload, traits, vectors, right)
        for vectors in sorted({min(vectors, widest) for vectors in (2, 3, 4)})
    ]
    default = min(cuts, key=lambda cut: cycles(workload, cut, right))
    knobs = [knob for knob in gemm.knobs(problem, lanes, traits) if knob.name != "prefetch"]
    values = gemm.decisions(default)
    return tunable(knobs, values, partial(_decided, workload, traits, right))


def blocking(workload: Workload, traits: TargetTraits, vectors: int, right: Right) -> Blocking:
    """The default cut with panels of `vectors` registers."""
    problem, lanes = problem_of(workload), accumulator_lanes(workload, traits)
    rows = min(tallest(vectors, traits), problem.rows)
    blocks, panels = ceildiv(problem.rows, rows), ceildiv(problem.columns, vectors * lanes)
    copied = right is Right.COPIED
    chunks = chunks_of(problem, panels, blocks, traits.threads) if copied else blocks
    return Blocking(rows, vectors, lanes, chunks)


def cycles(workload: Workload, cut: Blocking, right: Right) -> float:
    """Estimated cycles of the product on one core."""
    problem = problem_of(workload)
    total = cut.cycles(problem)
    if right is Right.COPIED:
        total += copy_cycles(problem, cut, bool(workload.op.attr("transpose_b")))
    return total


def _decided(
    workload: Workload, traits: TargetTraits, right: Right, values: Mapping[str, int]
) -> Candidate | None:
    """The product with these decisions."""
    problem = problem_of(workload)
    cut = gemm.cut_of(values, problem, accumulator_lanes(workload, traits), traits)
    if cut is None:
        return None
    ideal = problem.flops / (4 * traits.lanes)
    share = max(0.01, PEAK_SHARE * min(1.0, ideal / cycles(workload, cut, right)))
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    return Candidate(
        name=f"matmul.{right.value}",
        layouts=(PLAIN, PLAIN, *operands),
        output=PLAIN,
        cost=Cost(problem.flops, traffic(workload), share),
        compute=partial(build, workload, cut, right),
        schedule=nest.as_written,
    )
