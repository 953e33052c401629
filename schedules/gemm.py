"""Matrix products with a constant right operand: GEMM over panels packed at compile time.

Error against float64: at most 2e-6 · √K relative to the largest output for standard-normal
operands in float32 (sums run in order of k); integers are exact modulo their width. Non-finite
operands give the IEEE result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from schedules import nest
from schedules.epilogue import operand_layouts
from schedules.interface import PLAIN, Candidate, Cost, TargetTraits, Workload
from schedules.product import (
    Blocking,
    Problem,
    Right,
    accumulator_lanes,
    build,
    ceildiv,
    problem_of,
)
from schedules.tile import tallest

PEAK_SHARE = 0.9  # of the tile's estimate that whole problems reached when measured
PREFETCH_BLOCKS = 4


@dataclass(frozen=True)
class ColumnPanels:
    """Packs (…, K, N), or (…, N, K) where `transposed`, as (…, ceil(N / block), K, block).

    Columns past N are zero.
    """

    block: int
    transposed: bool = False

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        matrix = array.swapaxes(-1, -2) if self.transposed else array
        *leading, depth, columns = matrix.shape
        panels = ceildiv(columns, self.block)
        padded = np.zeros((*leading, depth, panels * self.block), array.dtype)
        padded[..., :columns] = matrix
        split = padded.reshape(*leading, depth, panels, self.block)
        return np.ascontiguousarray(split.swapaxes(-2, -3))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        *leading, rows, last = shape
        depth, columns = (last, rows) if self.transposed else (rows, last)
        return (*leading, -(-columns // self.block), depth, self.block)


def efficiency(blocking: Blocking, problem: Problem, traits: TargetTraits) -> float:
    """Share of one core's peak that the tiles reach, in cache."""
    ideal = problem.flops / (4 * traits.lanes)
    return max(0.01, PEAK_SHARE * min(1.0, ideal / blocking.cycles(problem)))


def traffic(workload: Workload) -> float:
    """Bytes of all inputs and the output."""
    return float(sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate per panel width for a matmul whose right operand alone is constant."""
    op = workload.op
    if op.kind != "matmul" or not op.constant[1]:
        return ()
    problem = problem_of(workload)
    lanes = accumulator_lanes(workload, traits)
    widths = {min(vectors, ceildiv(problem.columns, lanes)) for vectors in (2, 3, 4)}
    return tuple(candidate(workload, traits, vectors) for vectors in sorted(widths))


def candidate(
    workload: Workload, traits: TargetTraits, vectors: int, name: str = "gemm"
) -> Candidate:
    """Packed GEMM with panels of `vectors` registers."""
    op, problem = workload.op, problem_of(workload)
    rows = min(tallest(vectors, traits), problem.rows)
    lanes, blocks = accumulator_lanes(workload, traits), ceildiv(problem.rows, rows)
    # In a network the weights come from far memory. Prefetching them cost 2 % with weights in cache
    # and gained a quarter without; with fewer blocks, bandwidth is the limit anyway.
    blocking = Blocking(rows, vectors, lanes, blocks, prefetch=blocks >= PREFETCH_BLOCKS)
    packing = ColumnPanels(blocking.width, bool(op.attr("transpose_b")))
    return Candidate(
        name=f"matmul.{name}[{rows}x{vectors}]",
        layouts=(PLAIN, packing, *operand_layouts(workload.epilogue, workload.output, PLAIN)),
        output=PLAIN,
        cost=Cost(problem.flops, traffic(workload), efficiency(blocking, problem, traits)),
        compute=partial(build, workload, blocking, Right.PANELS),
        schedule=nest.as_written,
    )
