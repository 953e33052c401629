"""Matrix products on a device, of floats and of integers; see gpu/tiles.py for the loop nest.

Numerics: float16 operands are added up in float32; the error against float64 is below 1e-5 of the
largest output for up to 4608 standard-normal terms. Integer products are exact and wrap as int32.
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
from schedules.gpu.conv import ACCUMULATORS
from schedules.gpu.products import Multiply, product_nest
from schedules.gpu.tiles import Finish, Tiles
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
from schedules.product import PRODUCTS, aligned, problem_of, zeros_of
from schedules.scalar_values import cast


@dataclass(frozen=True)
class Panels:
    """Packs (…, K, N), or (…, N, K) if transposed, as (batch, panels, K, width), zeros behind."""

    width: int
    transposed: bool

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        matrix = np.swapaxes(array, -1, -2) if self.transposed else array
        matrix = matrix.reshape(-1, *matrix.shape[-2:])
        panels = -(-matrix.shape[2] // self.width)
        padding = ((0, 0), (0, 0), (0, panels * self.width - matrix.shape[2]))
        split = np.pad(matrix, padding).reshape(*matrix.shape[:2], panels, self.width)
        return np.ascontiguousarray(np.moveaxis(split, 2, 1))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        *batch, depth, columns = shape
        if self.transposed:
            depth, columns = columns, depth
        return (prod(batch), -(-columns // self.width), depth, self.width)


@dataclass(frozen=True)
class Side:
    """An operand: `read` takes (group, step, line)."""

    read: Callable[[PrimExpr, PrimExpr, PrimExpr], PrimExpr]

    def prepare(self, group: PrimExpr, lines: Callable[[int], PrimExpr], count: int) -> Stmt | None:
        """Nothing."""
        return None

    def value(self, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr) -> PrimExpr:
        """The element."""
        return self.read(group, step, line)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate, whatever the operands: with packed columns where b is constant."""
    product = product_of(workload)
    if product is None:
        return ()
    return (tuned_over(product, traits, partial(tiled, workload, product, traits)),)


def product_of(workload: Workload) -> Product | None:
    """The product of a matmul; None if it is not one."""
    op = workload.op
    if op.kind not in PRODUCTS or op.output.dtype not in ACCUMULATORS:
        return None
    problem = problem_of(workload)
    if not problem.depth or not op.output.elements:
        return None
    dtype = ACCUMULATORS[op.output.dtype]
    return Product(prod(problem.batch), problem.rows, problem.columns, problem.depth, dtype)


def tiled(
    workload: Workload,
    product: Product,
    traits: TargetTraits,
    tiling: Tiling,
    multiply: Multiply = product_nest,
) -> Candidate:
    """The candidate for a tiling, whose kernel `multiply` makes; product.dtype is the type in which
    it gets operands."""
    op = workload.op
    b: Layout | Packing = PLAIN
    if op.constant[1] and op.kind == "matmul":
        b = Panels(tiling.width, bool(op.attr("transpose_b")))
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    moved = float(sum(sig.nbytes for sig in workload.inputs) + workload.output.nbytes)
    return Candidate(
        name=f"gpu.{op.kind}",
        layouts=(PLAIN, b, *operands),
        output=PLAIN,
        cost=Cost(product.flops, moved, 0.5),
        compute=partial(_compute, workload, product, tiling, b, traits, multiply),
        schedule=nest.as_written,
    )


def _compute(
    workload: Workload,
    product: Product,
    tiling: Tiling,
    packing: Layout | Packing,
    traits: TargetTraits,
    multiply: Multiply,
) -> PrimFunc:
    assert traits.gpu is not None
    op = workload.op
    sides = Sides(workload)
    packed = isinstance(packing, Panels)
    shape = op.inputs[1].shape
    a = nest.buffer(op.inputs[0].shape, op.inputs[0].dtype, "a")
    b_shape = packing.packed_shape(shape) if isinstance(packing, Panels) else shape
    b = nest.buffer(b_shape, op.inputs[1].dtype, "b")
    operands = nest.operand_buffers(workload)
    result = nest.buffer(workload.output.shape, workload.output.dtype, "result")

    zeros = zeros_of(op)

    def less(value: PrimExpr, zero: int) -> PrimExpr:
        return cast(value, product.dtype) - tirx.const(zero, product.dtype) if zero else value

    def left(group: PrimExpr, step: PrimExpr, row: PrimExpr) -> PrimExpr:
        return less(nest.read(a, *sides.left(group, row), step), zeros[0])

    def right(group: PrimExpr, step: PrimExpr, column: PrimExpr) -> PrimExpr:
        if packed:
            panel, lane = column // tiling.width, column % tiling.width
            return nest.read(b, sides.matrix(group), panel, step, lane)
        inner = (column, step) if op.attr("transpose_b") else (step, column)
        return less(nest.read(b, *sides.right(group), *inner), zeros[1])

    tiles = Tiles(
        product,
        tiling,
        Side(left),
        Side(right),
        left_packed=False,
        right_packed=packed,
        left_steps_first=True,
        right_steps_first=bool(op.attr("transpose_b")) and not packed,
    )

    finish = storing(workload, operands, result)
    return nest.function([a, b, *operands, result], multiply(tiles, traits.gpu.loops, finish))


class Sides:
    """Where rows and columns of a matmul's products lie in its tensors."""

    def __init__(self, workload: Workload) -> None:
        self.op, self.problem = workload.op, problem_of(workload)

    def place(self, group: PrimExpr, row: PrimExpr) -> tuple[PrimExpr, ...]:
        """The output's leading coordinates."""
        if not self.problem.batch:
            return nest.unflatten(row, self.op.output.shape[:-1])
        return (*nest.unflatten(group, self.problem.batch), row)

    def left(self, group: PrimExpr, row: PrimExpr) -> tuple[PrimExpr, ...]:
        """The leading coordinates of a row of the left operand."""
        shape = self.op.inputs[0].shape
        if not self.problem.batch:
            return nest.unflatten(row, shape[:-1])
        return (*aligned(self.place(group, row)[:-1], shape[:-2]), row)

    def right(self, group: PrimExpr) -> tuple[PrimExpr, ...]:
        """The coordinates of a group's matrix in the right operand."""
        return aligned(self.place(group, nest.integer(0))[:-1], self.op.inputs[1].shape[:-2])

    def matrix(self, group: PrimExpr) -> PrimExpr:
        """The number of that matrix."""
        flat: PrimExpr = nest.integer(0)
        for index, extent in zip(self.right(group), self.op.inputs[1].shape[:-2], strict=True):
            flat = flat * extent + index
        return flat


def storing(workload: Workload, operands: list[Buffer], result: Buffer) -> Finish:
    """What puts sums through the epilogue and in their place."""
    sides = Sides(workload)

    def finish(value: PrimExpr, group: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        index = (*sides.place(group, row), column)
        readers = [nest.reader(operand) for operand in operands]
        dtype = workload.op.output.dtype
        done = apply_epilogue(workload, cast(value, dtype), readers, PLAIN, index)
        return nest.write(result, done, *index)

    return finish
