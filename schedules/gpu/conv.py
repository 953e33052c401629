"""Convolutions on a device as matrix products whose right operand is gathered from the image.

Filters are rows, output positions columns, and the reduction runs over channels and taps: the
implicit GEMM of Chetlur et al., "cuDNN: Efficient primitives for deep learning" (2014). Any number
of spatial axes, groups, strides and dilation; transposed convolutions read the image where a stride
divides the position. Images and results lie row-major.

Numerics: sums in float32 (float64 for float64), in order of (channel, tap): the error against
float64 is at most 1e-5 of the largest output for up to 4608 terms of standard-normal data. Sums of
integers are exact and wrap as int32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gpu.products import Multiply, product_nest
from schedules.gpu.threads import registers
from schedules.gpu.tiles import Tiles
from schedules.gpu.tilings import Product, Tiling, tuned_over
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Layout,
    Packing,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Buffer, Stmt
from schedules.scalar_values import cast

ACCUMULATORS = {
    "float16": "float32",
    "bfloat16": "float32",
    **{dtype: dtype for dtype in ("float32", "float64", "int32", "int64", "uint32", "uint64")},
}
"""The type of the sums for each type of results."""


@dataclass(frozen=True)
class Shape:
    """Dimensions of a convolution; tuples have one entry per spatial axis."""

    batch: int
    channels: int  # per group
    filters: int  # per group
    groups: int
    size: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    transposed: bool
    pad_value: int

    @classmethod
    def of(cls, workload: Workload) -> Shape:
        """That of a conv2d, conv2d_transpose or conv_integer workload."""
        op = workload.op
        x, w, groups = op.inputs[0].shape, op.inputs[1].shape, int(op.attr("groups"))
        rank = len(x) - 2
        return cls(
            x[0],
            x[1] // groups,
            op.output.shape[1] // groups,
            groups,
            x[2:],
            op.output.shape[2:],
            w[2:],
            op.attr("strides"),
            op.attr("dilation"),
            op.attr("padding")[:rank],
            op.kind == "conv2d_transpose",
            int(op.attr("pad_value")) if op.kind == "conv_integer" else 0,
        )

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    def product(self, dtype: str) -> Product:
        """One product per image and group."""
        columns = prod(self.out)
        return Product(
            self.batch * self.groups, self.filters, columns, self.channels * self.taps, dtype
        )


@dataclass(frozen=True)
class RowBlocks:
    """Packs weights as (groups, blocks of filters, channel, tap, filter), zeros behind.

    From (O, C/groups, …), or (C, O/groups, …) if transposed.
    """

    block: int
    groups: int
    transposed: bool

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        first, second = array.shape[0] // self.groups, array.shape[1]
        split = array.reshape(self.groups, first, second, -1)
        if self.transposed:
            split = np.swapaxes(split, 1, 2)
        groups, filters, channels, taps = split.shape
        blocks = -(-filters // self.block)
        padded = np.zeros((groups, blocks * self.block, channels, taps), array.dtype)
        padded[:, :filters] = split
        blocked = padded.reshape(groups, blocks, self.block, channels, taps)
        return np.ascontiguousarray(np.moveaxis(blocked, 2, -1))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        filters, channels = shape[0] // self.groups, shape[1]
        if self.transposed:
            filters, channels = channels, filters
        return (self.groups, -(-filters // self.block), channels, prod(shape[2:]), self.block)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate for convolutions that have more than one filter or channel per group."""
    product = product_of(workload)
    if product is None:
        return ()
    return (tuned_over(product, traits, partial(tiled, workload, product, traits)),)


def product_of(workload: Workload) -> Product | None:
    """The product that a convolution is; None if it is not one."""
    op = workload.op
    if op.kind not in ("conv2d", "conv2d_transpose", "conv_integer"):
        return None
    if op.output.dtype not in ACCUMULATORS or not op.output.elements or not op.inputs[0].elements:
        return None
    return Shape.of(workload).product(ACCUMULATORS[op.output.dtype])


def tiled(
    workload: Workload,
    product: Product,
    traits: TargetTraits,
    tiling: Tiling,
    multiply: Multiply = product_nest,
) -> Candidate:
    """The candidate for a tiling, whose kernel `multiply` makes; product.dtype is the type in which
    it gets operands."""
    op, shape = workload.op, Shape.of(workload)
    weights: Layout | Packing = PLAIN
    if op.constant[1]:
        weights = RowBlocks(tiling.row_block, shape.groups, shape.transposed)
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    moved = float(sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes)
    # Tiles of few rows are mostly gathering.
    share = 0.5 * min(1.0, shape.filters / 16)
    return Candidate(
        name=f"gpu.{op.kind}.implicit_gemm",
        layouts=(PLAIN, weights, *operands),
        output=PLAIN,
        cost=Cost(product.flops, moved, share),
        compute=partial(_compute, workload, shape, product, tiling, weights, traits, multiply),
        schedule=nest.as_written,
    )


@dataclass(frozen=True)
class Weights:
    """The left operand; `block` is 0 for weights as they are in the model."""

    shape: Shape
    buffer: Buffer
    block: int

    def prepare(self, group: PrimExpr, lines: Callable[[int], PrimExpr], count: int) -> Stmt | None:
        return None

    def value(self, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr) -> PrimExpr:
        s = self.shape
        g = group % s.groups
        channel, tap = step // s.taps, step % s.taps
        if self.block:
            return nest.read(self.buffer, g, line // self.block, channel, tap, line % self.block)
        where = nest.unflatten(tap, s.kernel)
        if s.transposed:
            return nest.read(self.buffer, g * s.channels + channel, line, *where)
        return nest.read(self.buffer, g * s.filters + line, channel, *where)


class Image:
    """The right operand: for each output position where its first tap reads, kept per thread."""

    def __init__(self, shape: Shape, buffer: Buffer, dtype: str, slots: int) -> None:
        self.shape, self.buffer, self.dtype = shape, buffer, dtype
        rank = len(shape.size)
        self.origins = [registers((slots,), "int32", f"origin{axis}") for axis in range(rank)]
        self.prepared = False

    def prepare(self, group: PrimExpr, lines: Callable[[int], PrimExpr], count: int) -> Stmt | None:
        self.prepared = True

        def slot(i: PrimExpr) -> Stmt:
            return nest.sequence(
                *[
                    nest.write(origin, at, i)
                    for origin, at in zip(self.origins, self._origin(lines(i)), strict=True)
                ]
            )

        return nest.sequence(nest.allocate(*self.origins), nest.serial(count, slot, "slot"))

    def _origin(self, line: PrimExpr) -> list[PrimExpr]:
        """Where output position `line` reads with its first tap, or of a transposed convolution
        its position less what the padding cuts off."""
        s = self.shape
        at = nest.unflatten(line, s.out)
        if s.transposed:
            return [i + before for i, before in zip(at, s.before, strict=True)]
        each = zip(at, s.strides, s.before, strict=True)
        return [i * stride - before for i, stride, before in each]

    def value(self, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr) -> PrimExpr:
        s = self.shape
        channel, taps = step // s.taps, nest.unflatten(step % s.taps, s.kernel)
        if self.prepared:
            origins = [nest.read(origin, slot) for origin in self.origins]
        else:
            origins = self._origin(line)
        tests: list[PrimExpr] = []
        where: list[PrimExpr] = []
        for axis, (origin, tap) in enumerate(zip(origins, taps, strict=True)):
            at = self._position(axis, origin, tap, tests)
            where.append(at)
        n, g = group // s.groups, group % s.groups
        value = nest.read(self.buffer, n, g * s.channels + channel, *where)
        value = value if str(value.ty.dtype) == self.dtype else tirx.Cast(self.dtype, value)
        if not tests:
            return value
        test = tests[0]
        for each in tests[1:]:
            test = tirx.all(test, each)
        return tirx.if_then_else(test, value, tirx.const(s.pad_value, self.dtype))

    def _position(
        self, axis: int, origin: PrimExpr, tap: PrimExpr, tests: list[PrimExpr]
    ) -> PrimExpr:
        """The input position along an axis; adds the tests that it is one to `tests`."""
        s = self.shape
        reach = (s.kernel[axis] - 1) * s.dilation[axis]
        size, stride = s.size[axis], s.strides[axis]
        if s.transposed:
            moved = origin - tap * s.dilation[axis]
            if stride > 1:
                tests.append(tirx.floormod(moved, stride) == 0)
            at = tirx.floordiv(moved, stride)
            tests += [moved >= 0, at < size]
            return at
        at = origin + tap * s.dilation[axis]
        if s.before[axis]:
            tests.append(at >= 0)
        if (s.out[axis] - 1) * stride - s.before[axis] + reach >= size:
            tests.append(at < size)
        return at


def _compute(
    workload: Workload,
    shape: Shape,
    product: Product,
    tiling: Tiling,
    packing: Layout | Packing,
    traits: TargetTraits,
    multiply: Multiply,
) -> PrimFunc:
    assert traits.gpu is not None
    op = workload.op
    x = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "image")
    packed = isinstance(packing, RowBlocks)
    weight_shape = op.inputs[1].shape
    if isinstance(packing, RowBlocks):
        weight_shape = packing.packed_shape(weight_shape)
    w = nest.buffer(weight_shape, op.inputs[1].dtype, "weights")
    operands = nest.operand_buffers(workload)
    result = nest.buffer(workload.output.shape, workload.output.dtype, "result")
    slots = max(1, -(-tiling.width // tiling.threads))
    tiles = Tiles(
        product,
        tiling,
        Weights(shape, w, tiling.row_block if packed else 0),
        Image(shape, x, product.dtype, slots),
        left_packed=packed,
        right_packed=False,
        left_steps_first=not packed,
        right_steps_first=False,
    )

    def finish(value: PrimExpr, group: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        channel = group % shape.groups * shape.filters + row
        index = (group // shape.groups, channel, *nest.unflatten(column, shape.out))
        readers = [nest.reader(operand) for operand in operands]
        done = apply_epilogue(workload, cast(value, op.output.dtype), readers, PLAIN, index)
        return nest.write(result, done, *index)

    return nest.function([x, w, *operands, result], multiply(tiles, traits.gpu.loops, finish))
