"""Matrix products with a constant right operand: GEMM over panels packed at compile time.

Error against float64: at most 2e-6 · √K relative to the largest output for standard-normal
operands in float32 (sums run in order of k); integers are exact modulo their width. Non-finite
operands give the IEEE result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from schedules import nest
from schedules.epilogue import operand_layouts
from schedules.interface import PLAIN, Candidate, Cost, Knob, TargetTraits, Workload
from schedules.product import (
    Blocking,
    Problem,
    Right,
    accumulator_lanes,
    build,
    ceildiv,
    problem_of,
)
from schedules.space import shares, tunable
from schedules.tile import tallest

FEW_ROWS = 4
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
    """Packed GEMM for a matmul whose right operand alone is constant."""
    op = workload.op
    if op.kind != "matmul" or not op.constant[1]:
        return ()
    problem = problem_of(workload)
    lanes = accumulator_lanes(workload, traits)
    # With few rows, panels so wide that even one row keeps the multipliers busy.
    usual = (2, 3, 4, 6, 8) if problem.rows <= FEW_ROWS else (2, 3, 4)
    widths = {min(vectors, ceildiv(problem.columns, lanes)) for vectors in usual}
    cuts = [cut for vectors in sorted(widths) if (cut := blocking(workload, traits, vectors))]
    # The first of equals: narrow panels have fewer empty columns.
    default = max(cuts, key=lambda cut: efficiency(cut, problem, traits))
    return (
        tunable(
            knobs(problem, lanes, traits),
            decisions(default),
            partial(_decided, workload, traits),
        ),
    )


def blocking(workload: Workload, traits: TargetTraits, vectors: int) -> Blocking | None:
    """The default cut with panels of `vectors` registers; None if there are too few registers."""
    problem, lanes = problem_of(workload), accumulator_lanes(workload, traits)
    rows = min(tallest(vectors, traits), problem.rows)
    if vectors > 4 and rows < problem.rows:
        return None
    blocks = ceildiv(problem.rows, rows)
    # In a network the weights come from far memory. Prefetching them cost 2 % with weights in cache
    # and gained a quarter without; with fewer blocks, bandwidth is the limit anyway.
    return Blocking(rows, vectors, lanes, blocks, prefetch=blocks >= PREFETCH_BLOCKS)


def knobs(problem: Problem, lanes: int, traits: TargetTraits) -> tuple[Knob, ...]:
    """What a packed product leaves open."""
    widest = min(8, ceildiv(problem.columns, lanes))
    tall = min(problem.rows, traits.vector_registers - 2)
    return (
        Knob("rows", shares(problem.rows, tall)),
        Knob("vectors", tuple(range(1, widest + 1))),
        Knob("chunks", tuple(sorted({1, 2, traits.threads, 4 * traits.threads}))),
        Knob("prefetch", (0, 1)),
    )


def decisions(cut: Blocking) -> dict[str, int]:
    """The values of the knobs that give `cut`."""
    return {
        "rows": cut.rows,
        "vectors": cut.vectors,
        "chunks": cut.chunks,
        "prefetch": int(cut.prefetch),
    }


def cut_of(
    values: Mapping[str, int], problem: Problem, lanes: int, traits: TargetTraits
) -> Blocking | None:
    """The cut with these decisions; None if it is none."""
    rows, vectors, chunks = values["rows"], values["vectors"], values["chunks"]
    if rows > min(tallest(vectors, traits), problem.rows):
        return None
    if chunks > ceildiv(problem.rows, rows):
        return None
    return Blocking(rows, vectors, lanes, chunks, bool(values.get("prefetch", 0)))


def _decided(
    workload: Workload, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """Packed GEMM with these decisions."""
    op, problem = workload.op, problem_of(workload)
    cut = cut_of(values, problem, accumulator_lanes(workload, traits), traits)
    if cut is None:
        return None
    packing = ColumnPanels(cut.width, bool(op.attr("transpose_b")))
    return Candidate(
        name="matmul.gemm",
        layouts=(PLAIN, packing, *operand_layouts(workload.epilogue, workload.output, PLAIN)),
        output=PLAIN,
        cost=Cost(problem.flops, traffic(workload), efficiency(cut, problem, traits)),
        compute=partial(build, workload, cut, Right.PANELS),
        schedule=nest.as_written,
    )
