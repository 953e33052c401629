"""Depthwise and other thin convolutions on a device: one thread for each output.

With few filters per group there is nothing to share in tiles, as memory is read about as often as
it must be. Neighbouring threads compute neighbouring columns.

Numerics: sums in float32 (float64 for float64), in order of (channel, tap); the error against
float64 is at most 1e-5 of the largest output. Sums of integers are exact and wrap as int32.
"""

from __future__ import annotations

from functools import partial
from math import prod

from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gpu.conv import ACCUMULATORS
from schedules.gpu.conv_operands import Image, Shape, Weights
from schedules.gpu.threads import grid, registers
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Stmt
from schedules.scalar_values import cast

_MOST_FILTERS = 4
_THREADS = 128
_UNROLLED = 32


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate for convolutions of few filters per group."""
    op = workload.op
    if op.kind not in ("conv2d", "conv2d_transpose", "conv_integer"):
        return ()
    if op.output.dtype not in ACCUMULATORS or not op.output.elements or not op.inputs[0].elements:
        return ()
    shape = Shape.of(workload)
    if shape.filters > _MOST_FILTERS:
        return ()
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    moved = float(sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes)
    return (
        Candidate(
            name=f"gpu.{op.kind}.direct",
            layouts=(PLAIN, PLAIN, *operands),
            output=PLAIN,
            cost=Cost(shape.product("float32").flops, moved, 0.2),
            compute=partial(_compute, workload, shape, traits),
            schedule=nest.as_written,
        ),
    )


def _compute(workload: Workload, shape: Shape, traits: TargetTraits) -> PrimFunc:
    assert traits.gpu is not None
    op = workload.op
    dtype = ACCUMULATORS[op.output.dtype]
    x = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "image")
    w = nest.buffer(op.inputs[1].shape, op.inputs[1].dtype, "weights")
    operands = nest.operand_buffers(workload)
    result = nest.buffer(workload.output.shape, workload.output.dtype, "result")
    weights, image = Weights(shape, w, 0), Image(shape, x, dtype, 1)
    total = registers((1,), dtype, "total")
    columns = prod(shape.out)
    rows = shape.batch * shape.groups * shape.filters
    threads = min(_THREADS, traits.gpu.max_threads, columns)
    across = -(-columns // threads)

    def one(block: PrimExpr, thread: PrimExpr) -> Stmt:
        row, column = block // across, block % across * threads + thread
        group, line = row // shape.filters, row % shape.filters

        def add(step: PrimExpr) -> Stmt:
            weight = weights.value(group, step, line, nest.integer(0))
            weight = weight if str(weight.ty.dtype) == dtype else tirx.Cast(dtype, weight)
            pixel = image.value(group, step, column, nest.integer(0))
            return nest.write(total, nest.read(total, 0) + weight * pixel, 0)

        steps = shape.channels * shape.taps
        loop = nest.unrolled if steps <= _UNROLLED else nest.serial
        channel = group % shape.groups * shape.filters + line
        index = (group // shape.groups, channel, *nest.unflatten(column, shape.out))
        readers = [nest.reader(operand) for operand in operands]
        value = cast(nest.read(total, 0), op.output.dtype)
        body = nest.sequence(
            nest.allocate(total),
            nest.write(total, tirx.const(0, dtype), 0),
            image.prepare(group, lambda _: column, 1),
            loop(steps, add),
            nest.write(result, apply_epilogue(workload, value, readers, PLAIN, index), *index),
        )
        return body if columns % threads == 0 else tirx.IfThenElse(column < columns, body, None)

    return nest.function([x, w, *operands, result], grid(rows * across, threads, one))
