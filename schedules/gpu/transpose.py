"""Transposes on a device.

Where the last axis moves, a block brings a square of the input to shared memory by rows and writes
it by rows of the output, so that memory is read and written in whole lines (Ruetsch, Micikevicius,
"Optimizing matrix transpose in CUDA", 2009); a row of the square has one element more, which
spreads columns over the banks of shared memory. Elsewhere, and where threads are iterations of a
loop, each thread moves one element.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.gpu.threads import barrier, grid, shared
from schedules.interface import PLAIN, Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.vectors import Frame, candidate

_SIDE, _ROWS = 32, 8
_THREADS = 128


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate."""
    if workload.op.kind != "transpose":
        return ()
    compute = partial(_compute, workload, traits)
    return (candidate("gpu.transpose", workload, (PLAIN,), PLAIN, compute),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    assert traits.gpu is not None
    axes = workload.op.attr("axes")
    frame = Frame(workload, (PLAIN,), PLAIN)
    gpu, shape = traits.gpu, workload.op.output.shape
    square = gpu.shared_bytes >= 4 * _SIDE * (_SIDE + 1) and gpu.max_threads >= _SIDE * _ROWS
    last = axes[-1] if axes else 0
    if gpu.loops or not square or last == len(axes) - 1 or min(shape[-1], _extent(shape, axes)) < 8:
        return frame.function(_elements(frame, axes, gpu.max_threads))
    return frame.function(_squares(frame, axes))


def _extent(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Of the input's last axis."""
    return shape[axes.index(len(axes) - 1)]


def _source(index: tuple[PrimExpr, ...], axes: tuple[int, ...]) -> list[PrimExpr]:
    """Where the output's element at `index` lies in the input."""
    return [index[axes.index(axis)] for axis in range(len(axes))]


def _elements(frame: Frame, axes: tuple[int, ...], most: int) -> Stmt:
    shape = frame.shape
    count = prod(shape)
    threads = min(_THREADS, most, count)

    def one(block: PrimExpr, thread: PrimExpr) -> Stmt:
        flat = block * threads + thread
        index = nest.unflatten(flat, shape)
        stored = frame.finish(nest.read(frame.inputs[0], *_source(index, axes)), index)
        return stored if count % threads == 0 else tirx.IfThenElse(flat < count, stored, None)

    return grid(-(-count // threads), threads, one)


def _squares(frame: Frame, axes: tuple[int, ...]) -> Stmt:
    shape = frame.shape
    rank = len(shape)
    row = axes.index(rank - 1)  # the output's axis along which the input is contiguous
    others = [axis for axis in range(rank - 1) if axis != row]
    down, across = -(-shape[row] // _SIDE), -(-shape[-1] // _SIDE)
    outer = [shape[axis] for axis in others]
    square = shared((_SIDE, _SIDE + 1), frame.workload.op.output.dtype, "square")

    def block(b: PrimExpr, thread: PrimExpr) -> Stmt:
        *rest, i, j = nest.unflatten(b, (*outer, down, across))
        x, y = thread % _SIDE, thread // _SIDE

        def at(m: PrimExpr, n: PrimExpr) -> tuple[PrimExpr, ...]:
            """The output's index at (m, n) of the square."""
            index: list[PrimExpr] = [nest.integer(0)] * rank
            for axis, value in zip(others, rest, strict=True):
                index[axis] = value
            index[row], index[-1] = i * _SIDE + m, j * _SIDE + n
            return tuple(index)

        def each(body: Callable[[PrimExpr], tuple[PrimExpr, PrimExpr, Stmt]]) -> Stmt:
            def step(s: PrimExpr) -> Stmt:
                m, n, stmt = body(s * _ROWS + y)
                if shape[row] % _SIDE:
                    stmt = tirx.IfThenElse(i * _SIDE + m < shape[row], stmt, None)
                if shape[-1] % _SIDE:
                    stmt = tirx.IfThenElse(j * _SIDE + n < shape[-1], stmt, None)
                return stmt

            return nest.unrolled(_SIDE // _ROWS, step)

        def load(n: PrimExpr) -> tuple[PrimExpr, PrimExpr, Stmt]:
            value = nest.read(frame.inputs[0], *_source(at(x, n), axes))
            return x, n, nest.write(square, value, n, x)

        def store(m: PrimExpr) -> tuple[PrimExpr, PrimExpr, Stmt]:
            return m, x, frame.finish(nest.read(square, x, m), at(m, x))

        return nest.sequence(nest.allocate(square), each(load), barrier(), each(store))

    return grid(prod(outer) * down * across, _SIDE * _ROWS, block)
