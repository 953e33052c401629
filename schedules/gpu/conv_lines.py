"""Convolutions of stride 1 where threads are iterations of a loop: columns in place, not gathered.

The image is copied once with its padding. Output positions are numbered as positions of the padded
image, so that what consecutive columns of the product read with one tap lies consecutively, too:
whole vectors, wherever rows end. The positions between the end of an output row and the next are
computed and dropped.

Numerics: as gpu/conv.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod

from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gpu.conv import ACCUMULATORS
from schedules.gpu.conv_operands import RowBlocks, Shape, Weights
from schedules.gpu.products import product_nest
from schedules.gpu.threads import grid
from schedules.gpu.tiles import Tiles
from schedules.gpu.tilings import Product, Tiling, tuned_over
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Buffer, Stmt
from schedules.scalar_values import cast

_COPIED = 256
"""Elements of the padded image that one block copies."""


@dataclass(frozen=True)
class _Padded:
    """An image with its padding; tuples have one entry per spatial axis."""

    shape: Shape
    size: tuple[int, ...]

    @classmethod
    def of(cls, shape: Shape) -> _Padded:
        reach = [(k - 1) * d for k, d in zip(shape.kernel, shape.dilation, strict=True)]
        return cls(shape, tuple(out + r for out, r in zip(shape.out, reach, strict=True)))

    @property
    def steps(self) -> tuple[int, ...]:
        """Elements between neighbours along each axis."""
        return tuple(accumulate((1, *self.size[:0:-1]), lambda a, b: a * b))[::-1]

    @property
    def columns(self) -> int:
        """Positions from the first output to the last."""
        outs = zip(self.shape.out, self.steps, strict=True)
        return 1 + sum((out - 1) * step for out, step in outs)

    @property
    def reach(self) -> int:
        """From an output's position to the last one that it reads."""
        s = self.shape
        taps = zip(s.kernel, s.dilation, self.steps, strict=True)
        return sum((k - 1) * d * step for k, d, step in taps)


@dataclass(frozen=True)
class _Lines:
    """The right operand, in place."""

    padded: _Padded
    buffer: Buffer

    def prepare(self, group: PrimExpr, lines: Callable[[int], PrimExpr], count: int) -> Stmt | None:
        """Nothing."""
        return None

    def value(self, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr) -> PrimExpr:
        """The element, of the image's type."""
        s = self.padded.shape
        taps = nest.unflatten(step % s.taps, s.kernel)
        offset = nest.integer(0)
        for tap, dilation, stride in zip(taps, s.dilation, self.padded.steps, strict=True):
            offset = offset + tap * (dilation * stride)
        return nest.read(self.buffer, group * s.channels + step // s.taps, offset + line)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate for stride 1 and constant weights, on devices of that kind."""
    op = workload.op
    assert traits.gpu is not None
    if not traits.gpu.loops or op.kind not in ("conv2d", "conv_integer") or not op.constant[1]:
        return ()
    if op.output.dtype not in ACCUMULATORS or not op.output.elements or not op.inputs[0].elements:
        return ()
    shape = Shape.of(workload)
    if any(stride != 1 for stride in shape.strides) or shape.filters < 2:
        return ()
    whole = shape.product(ACCUMULATORS[op.output.dtype])
    padded = _Padded.of(shape)
    product = Product(whole.groups, whole.rows, padded.columns, whole.steps, whole.dtype)
    return (tuned_over(product, traits, partial(_candidate, workload, padded, product, traits)),)


def _candidate(
    workload: Workload, padded: _Padded, product: Product, traits: TargetTraits, tiling: Tiling
) -> Candidate:
    shape = padded.shape
    weights = RowBlocks(tiling.row_block, shape.groups, transposed=False)
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    moved = float(sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes)
    return Candidate(
        name=f"gpu.{workload.op.kind}.lines",
        layouts=(PLAIN, weights, *operands),
        output=PLAIN,
        cost=Cost(product.flops, moved, 0.7 * min(1.0, shape.filters / 8), 2),
        compute=partial(_compute, workload, padded, product, traits, tiling),
        schedule=nest.as_written,
    )


def _compute(
    workload: Workload, padded: _Padded, product: Product, traits: TargetTraits, tiling: Tiling
) -> PrimFunc:
    op, shape = workload.op, padded.shape
    x = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "image")
    packing = RowBlocks(tiling.row_block, shape.groups, transposed=False)
    w = nest.buffer(packing.packed_shape(op.inputs[1].shape), op.inputs[1].dtype, "weights")
    operands = nest.operand_buffers(workload)
    result = nest.buffer(workload.output.shape, workload.output.dtype, "result")
    planes = shape.batch * shape.groups * shape.channels
    columns = -(-product.columns // tiling.width) * tiling.width
    # The last block's columns go beyond the last output.
    plane = max(prod(padded.size), columns + padded.reach)
    copy = nest.buffer((planes, plane), product.dtype, "padded")
    tiles = Tiles(
        product,
        tiling,
        Weights(shape, w, tiling.row_block),
        _Lines(padded, copy),
        left_packed=True,
        right_packed=True,
        left_steps_first=False,
        right_steps_first=False,
    )

    def finish(value: PrimExpr, group: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        channel = group % shape.groups * shape.filters + row
        where = nest.unflatten(column, padded.size)
        index = (group // shape.groups, channel, *where)
        readers = [nest.reader(operand) for operand in operands]
        done = apply_epilogue(workload, cast(value, op.output.dtype), readers, PLAIN, index)
        stored = nest.write(result, done, *index)
        for at, out, size in zip(where[1:], shape.out[1:], padded.size[1:], strict=True):
            if out < size:
                stored = tirx.IfThenElse(at < out, stored, None)
        return stored

    body = nest.sequence(
        nest.allocate(copy),
        _copy(x, copy, padded, traits),
        product_nest(tiles, True, finish),
    )
    return nest.function([x, w, *operands, result], body)


def _copy(x: Buffer, copy: Buffer, padded: _Padded, traits: TargetTraits) -> Stmt:
    """The nest that pads the image; what lies behind a plane is never used, only read."""
    assert traits.gpu is not None
    shape = padded.shape
    planes, plane = (int(extent) for extent in copy.shape)
    dtype = str(copy.ty.dtype)
    threads = min(_COPIED, traits.gpu.max_threads)
    blocks = -(-plane // threads)
    channels = shape.groups * shape.channels

    def one(block: PrimExpr, thread: PrimExpr) -> Stmt:
        number, flat = block // blocks, block % blocks * threads + thread
        where = nest.unflatten(flat, padded.size)
        at = [i - before for i, before in zip(where, shape.before, strict=True)]
        inside = flat < prod(padded.size)
        for i, size in zip(at, shape.size, strict=True):
            inside = tirx.all(inside, i >= 0, i < size)
        value = cast(nest.read(x, number // channels, number % channels, *at), dtype)
        value = tirx.if_then_else(inside, value, tirx.const(shape.pad_value, dtype))
        stored = nest.write(copy, value, number, flat)
        return stored if plane % threads == 0 else tirx.IfThenElse(flat < plane, stored, None)

    return grid(planes * blocks, threads, one)
