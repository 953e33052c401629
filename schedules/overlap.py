"""overlap_add: sums of overlapping windows, gathered per output: no worker adds to another's.

Each output visits the taps of its windows in order. With elements behind the axis a vector holds
neighbours of one position; on the last axis it holds neighbouring positions, each testing whether
a window has a tap there. Sums are in float32 for half precision, else in the tensor's dtype;
errors are below 1e-6 · taps of the largest input, integers wrap.
"""

from __future__ import annotations

from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
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

_VECTORS = 4


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major."""
    if workload.op.kind != "overlap_add":
        return ()
    compute = partial(_compute, workload, traits)
    return (candidate("overlap_add", workload, (PLAIN,), PLAIN, compute, flops_per_element=2.0),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op = workload.op
    frame = Frame(workload, (PLAIN,), PLAIN)
    shape = op.inputs[0].shape
    first = op.attr("window_first")
    taps, windows = (shape[1], shape[3]) if first else (shape[3], shape[1])
    outer, between, behind = shape[0], shape[2], shape[4]
    size, stride = op.attr("size"), op.attr("stride")
    before, dilation = op.attr("before"), op.attr("dilation")
    dtype = accumulator(op.output.dtype)
    zero = tirx.const(0, dtype)
    lanes = lanes_of(traits, dtype)

    def source(m: PrimExpr, k: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
        """The window with tap `k` at `m`, and whether there is one."""
        at = m + before - k * dilation
        window = tirx.floordiv(at, nest.integer(stride))
        exists = [at >= 0, window < windows]
        if stride > 1:
            exists.append(tirx.floormod(at, nest.integer(stride)) < 1)
        return window, tirx.all(*exists)

    def load(p: PrimExpr, q: PrimExpr, k: PrimExpr, window: PrimExpr, r: PrimExpr) -> PrimExpr:
        index = (p, k, q, window, r) if first else (p, window, q, k, r)
        return load_as(frame.inputs[0], dtype, *index)

    def place(p: PrimExpr, q: PrimExpr, m: PrimExpr, r: PrimExpr) -> tuple[PrimExpr, ...]:
        return (p, q, m, r) if first else (p, m, q, r)

    def summed(width: int, tap: Stmt, index: Stmt) -> Stmt:
        """A tile of `width` outputs: tap(total, k) adds a tap, index(lane) is where one goes."""
        total = scratch((width,), dtype, "total")
        return nest.sequence(
            nest.allocate(total),
            nest.vectorized(width, lambda x: nest.write(total, zero, x)),
            nest.serial(taps, lambda k: tap(total, k), "tap"),
            nest.vectorized(
                width,
                lambda x: frame.finish(of_type(nest.read(total, x), op.output), index(x)),
            ),
        )

    def along_rest(p: PrimExpr, q: PrimExpr, m: PrimExpr, start: PrimExpr, width: int) -> Stmt:
        def tap(total: nest.Buffer, k: PrimExpr) -> Stmt:
            window, exists = source(m, k)

            def add(x: PrimExpr) -> Stmt:
                value = nest.read(total, x) + load(p, q, k, window, start + x)
                return nest.write(total, value, x)

            return nest.branch(exists, nest.vectorized(width, add))

        return summed(width, tap, lambda x: place(p, q, m, start + x))

    def along_axis(p: PrimExpr, q: PrimExpr, start: PrimExpr, width: int) -> Stmt:
        none = nest.integer(0)

        def tap(total: nest.Buffer, k: PrimExpr) -> Stmt:
            def add(x: PrimExpr) -> Stmt:
                window, exists = source(start + x, k)
                inside = tirx.max(tirx.min(window, windows - 1), 0)
                value = tirx.Select(exists, load(p, q, k, inside, none), zero)
                return nest.write(total, nest.read(total, x) + value, x)

            gathered = nest.vectorized(width, add)
            if stride > 1:
                return gathered
            # Where all lanes have a window, they are neighbours.
            begin = start + before - k * dilation

            def neighbour(x: PrimExpr) -> Stmt:
                value = nest.read(total, x) + load(p, q, k, begin + x, none)
                return nest.write(total, value, x)

            whole = tirx.all(begin >= 0, begin + (width - 1) < windows)
            return nest.branch(whole, nest.vectorized(width, neighbour), gathered)

        return summed(width, tap, lambda x: place(p, q, start + x, none))

    def tiles(span: int, body: Stmt) -> Stmt:
        wide = [run for run in blocks_of(span, lanes * _VECTORS) if run[2] == lanes * _VECTORS]
        done = sum(count * width for _, count, width in wide)
        rest = [
            (start + done, count, width) for start, count, width in blocks_of(span - done, lanes)
        ]
        return nest.sequence(
            *[
                nest.serial(
                    count,
                    lambda v, start=start, width=width: body(  # type: ignore[misc]
                        v * width + start, width
                    ),
                    "tile",
                )
                for start, count, width in (*wide, *rest)
            ]
        )

    if behind == 1:
        return frame.function(
            parallel_grid(
                (outer, between),
                lambda p, q: tiles(size, lambda start, width: along_axis(p, q, start, width)),
            )
        )
    return frame.function(
        parallel_grid(
            (outer, between, size),
            lambda p, q, m: tiles(behind, lambda start, width: along_rest(p, q, m, start, width)),
        )
    )
