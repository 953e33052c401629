"""resample: weighted sums of positions along one axis, given as tables (antialiased resizing).

Positions and weights are inputs (T,O), so that long filters cost no code. With elements behind the
axis a vector holds neighbours of one output position; on the last axis it holds neighbouring
outputs and gathers. Sums are kept in float32 (float64 for float64) in the order of the taps:
within 1e-6 · taps of the largest input.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.scalar_values import cast
from schedules.vectors import (
    Frame,
    accumulator,
    blocks_of,
    candidate,
    lanes_of,
    load_as,
    of_type,
    parallel_grid,
    scratch,
)

_VECTORS = 4  # kept in registers while the taps go by


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major."""
    if workload.op.kind != "resample":
        return ()
    taps = workload.op.inputs[1].shape[0]
    return (
        candidate(
            "resample",
            workload,
            (PLAIN,) * 3,
            PLAIN,
            partial(_compute, workload, traits),
            flops_per_element=2.0 * taps,
        ),
    )


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    frame = Frame(workload, (PLAIN,) * 3, PLAIN)
    x, positions, weights = frame.inputs
    taps = op.inputs[1].shape[0]
    outer, length, inner = op.output.shape
    dtype = accumulator(op.output.dtype)
    lanes = lanes_of(traits, dtype)
    last = inner == 1

    def tile(a: PrimExpr, i: PrimExpr, start: PrimExpr, width: int) -> Stmt:
        """`width` outputs from `start`: of the axis itself if it is the last, else behind it."""
        total = scratch((width,), dtype, "total")

        def at(lane: PrimExpr) -> tuple[PrimExpr, PrimExpr, PrimExpr]:
            return (a, start + lane, nest.integer(0)) if last else (a, i, start + lane)

        def tap(t: PrimExpr) -> Stmt:
            def add(lane: PrimExpr) -> Stmt:
                _, o, b = at(lane)
                value = load_as(x, dtype, a, nest.read(positions, t, o), b)
                weight = cast(nest.read(weights, t, o), dtype)
                return nest.write(total, nest.read(total, lane) + weight * value, lane)

            return nest.vectorized(width, add)

        return nest.sequence(
            nest.allocate(total),
            nest.vectorized(width, lambda z: nest.write(total, tirx.const(0, dtype), z)),
            nest.serial(taps, tap, "tap"),
            nest.vectorized(
                width,
                lambda z: frame.finish(of_type(nest.read(total, z), op.output), at(z)),
            ),
        )

    span = length if last else inner
    grid = (outer, 1) if last else (outer, length)
    return frame.function(
        parallel_grid(
            grid,
            lambda a, i: nest.sequence(
                *[
                    nest.serial(
                        count,
                        lambda v, start=start, width=width: tile(  # type: ignore[misc]
                            a, i, v * width + start, width
                        ),
                        "tile",
                    )
                    for start, count, width in _tiles(span, lanes)
                ]
            ),
        )
    )


def _tiles(span: int, lanes: int) -> list[tuple[int, int, int]]:
    """Runs (start, count, width) that cover `span`: wide tiles, then vectors, then the rest."""
    wide = [run for run in blocks_of(span, lanes * _VECTORS) if run[2] == lanes * _VECTORS]
    done = sum(count * width for _, count, width in wide)
    return [*wide, *((s + done, c, w) for s, c, w in blocks_of(span - done, lanes))]
