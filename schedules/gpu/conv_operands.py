"""Both operands of a convolution as a matrix product: filters are rows, output positions columns.

Transposed convolutions read the image where a stride divides the position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.gpu.threads import registers
from schedules.gpu.tilings import Product
from schedules.interface import PrimExpr, Workload
from schedules.nest import Buffer, Stmt


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
        where, inside = self.place(step % s.taps, line, slot)
        n, g = group // s.groups, group % s.groups
        value = nest.read(self.buffer, n, g * s.channels + step // s.taps, *where)
        value = value if str(value.ty.dtype) == self.dtype else tirx.Cast(self.dtype, value)
        if inside is None:
            return value
        return tirx.if_then_else(inside, value, tirx.const(s.pad_value, self.dtype))

    def place(
        self, tap: PrimExpr, line: PrimExpr, slot: PrimExpr
    ) -> tuple[tuple[PrimExpr, ...], PrimExpr | None]:
        """Where output position `line` reads with a tap, and whether that is in the image; None
        where it always is."""
        taps = nest.unflatten(tap, self.shape.kernel)
        if self.prepared:
            origins = [nest.read(origin, slot) for origin in self.origins]
        else:
            origins = self._origin(line)
        tests: list[PrimExpr] = []
        where: list[PrimExpr] = []
        for axis, (origin, at) in enumerate(zip(origins, taps, strict=True)):
            where.append(self._position(axis, origin, at, tests))
        if not tests:
            return tuple(where), None
        inside = tests[0]
        for each in tests[1:]:
            inside = tirx.all(inside, each)
        return tuple(where), inside

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
