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

from functools import partial

from schedules import nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gpu.conv_operands import Image, RowBlocks, Shape, Weights
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
from schedules.scalar_values import cast

ACCUMULATORS = {
    "float16": "float32",
    "bfloat16": "float32",
    **{dtype: dtype for dtype in ("float32", "float64", "int32", "int64", "uint32", "uint64")},
}
"""The type of the sums for each type of results."""


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

    finish = storing(workload, shape, operands, result)
    return nest.function([x, w, *operands, result], multiply(tiles, traits.gpu.loops, finish))


def storing(workload: Workload, shape: Shape, operands: list[Buffer], result: Buffer) -> Finish:
    """What puts sums through the epilogue and in their place."""
    op = workload.op

    def finish(value: PrimExpr, group: PrimExpr, row: PrimExpr, column: PrimExpr) -> Stmt:
        channel = group % shape.groups * shape.filters + row
        index = (group // shape.groups, channel, *nest.unflatten(column, shape.out))
        readers = [nest.reader(operand) for operand in operands]
        done = apply_epilogue(workload, cast(value, op.output.dtype), readers, PLAIN, index)
        return nest.write(result, done, *index)

    return finish
