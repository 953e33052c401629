"""com.microsoft: matrices of 2, 4 and 8 bits in blocks, whose storage stays packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.narrow import INTEGERS, decoded_array
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    normal_axis,
    shape_of,
)
from graphopt.frontend.model import Array
from graphopt.ops import quantize as quantized
from graphopt.ops.packed_weights import matmul_codes

op = relax.op


def unpacked(array: Array, bits: int) -> Array:
    """uint8 (…, n) as codes (…, n·8/bits), the lowest bits of a byte first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (array[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(codes.reshape(*array.shape[:-1], -1))


def _zeros(node: NodeContext, bits: int, columns: int, blocks: int) -> Array:
    """Zero points (N, blocks) in float32."""
    if not node.has(3):
        return np.full((columns, blocks), float(1 << (bits - 1)), np.float32)
    zeros = node.known(3, "the zero points")
    if zeros.dtype == np.uint8:
        zeros = unpacked(zeros.reshape(columns, -1), bits)[:, :blocks]
    return zeros.reshape(columns, blocks).astype(np.float32)


def matmul_nbits(node: NodeContext) -> Expr:
    """MatMulNBits: A·dequantize(B)ᵀ (+ bias); computed in float32 whatever accuracy_level says."""
    node.ignore("accuracy_level")
    if node.int_attr("weight_prepacked"):
        raise Unsupported("weights that are packed for a GPU", "Export for the CPU.")
    if node.has(4):
        # With zero points, ONNX Runtime's result is not that of the blocks that g_idx names.
        raise Unsupported("the deprecated input g_idx is not supported")
    bits, block = node.int_attr("bits", 4), node.int_attr("block_size")
    depth, columns = node.int_attr("K"), node.int_attr("N")
    if bits not in (2, 4, 8) or block < 1 or block * bits % 8:
        raise Unsupported(f"{bits} bits in blocks of {block} are not supported")
    blocks = -(-depth // block)
    a = node.input(0)
    if shape_of(a)[-1] != depth:
        raise Unsupported(f"K is {depth}, the input has {shape_of(a)[-1]} features")
    b = node.known(1, "the weight")
    codes = unpacked(b.reshape(columns, blocks, -1), bits).reshape(columns, blocks * block)
    scales = node.known(2, "the scales").reshape(columns, blocks).astype(np.float32)
    zeros = _zeros(node, bits, columns, blocks)
    rows = a if len(shape_of(a)) > 1 else node.reshape(a, (1, depth))
    result = node.emit(
        matmul_codes(
            rows,
            np.ascontiguousarray(codes.T),
            np.ascontiguousarray(scales.T),
            np.ascontiguousarray(zeros.T),
            bits=bits,
        )
    )
    result = node.reshape(result, (*shape_of(a)[:-1], columns))
    return node.emit(op.add(result, node.input(5))) if node.has(5) else result


def gather_block_quantized(node: NodeContext) -> Expr:
    """GatherBlockQuantized: the picked rows of data, scales and zero points, then dequantized."""
    bits, block = node.int_attr("bits", 4), node.int_attr("block_size", 128)
    data = node.known(0, "the data")
    element = node.element(0)
    narrow = element in INTEGERS
    packed = data.dtype == np.uint8 and not element
    if not packed and not narrow:
        raise Unsupported(f"data of type {data.dtype} is not supported")
    rank = data.ndim
    axis = normal_axis(node.int_attr("gather_axis"), rank)
    along = normal_axis(node.int_attr("quantize_axis", 1), rank)
    if axis == along:
        raise Unsupported("gathering along the blocks is not supported")
    each = 8 // bits if packed else 1
    if packed and bits < 8 and along != rank - 1:
        raise Unsupported("packed data whose blocks do not lie along the last axis")
    codes = decoded_array(data, element) if narrow else data
    extent = codes.shape[along] * (each if along == rank - 1 else 1)
    if extent % block:
        raise Unsupported(f"{extent} elements are no whole blocks of {block}")
    indices = node.input(1)
    size = codes.shape[axis]
    negative = node.emit(op.less(indices, node.scalar(0, indices)))
    from_end = node.emit(op.add(indices, node.scalar(size, indices)))
    indices = node.emit(op.where(negative, from_end, indices))
    before, count = axis, len(shape_of(indices))
    at = along if along < axis else along + count - 1

    def picked(array: Array) -> Expr:
        if array.shape[axis] == 1 and size != 1:
            shape = (*array.shape[:before], *[1] * count, *array.shape[before + 1 :])
            return constant(array.reshape(shape))
        return node.emit(op.take(constant(array), indices, axis))

    value = picked(codes)
    if each > 1:
        value = _codes(node, value, bits)
    shape = shape_of(value)
    split = (*shape[:at], shape[at] // block, block, *shape[at + 1 :])

    def parameter(array: Array) -> Expr:
        rows = picked(array)
        dims = shape_of(rows)
        return node.reshape(rows, (*dims[: at + 1], 1, *dims[at + 1 :]))

    scales = node.known(2, "the scales")
    scale = parameter(scales)
    dtype = dtype_of(value)
    if node.has(3):
        zeros = node.known(3, "the zero points")
        zeros = decoded_array(zeros, node.element(3)) if node.element(3) else zeros
        if each > 1:
            zeros = unpacked(zeros, bits)[..., : scales.shape[-1]]
        zero = parameter(zeros)
    else:
        zero = constant((1 << (bits - 1)) if packed else 0, dtype)
    blocks = node.reshape(value, split)
    call = quantized.dequantize(blocks, scale, zero, dtype=str(scales.dtype))
    return node.reshape(node.emit(call), shape)


def _codes(node: NodeContext, value: Expr, bits: int) -> Expr:
    """Bytes (…, n) as codes (…, n·8/bits)."""
    *lead, width = shape_of(value)
    each = 8 // bits
    shifts = constant(np.arange(0, 8, bits), "uint8")
    wide = node.reshape(value, (*lead, width, 1))
    moved = node.emit(op.right_shift(wide, shifts))
    codes = node.emit(op.bitwise_and(moved, constant((1 << bits) - 1, "uint8")))
    return node.reshape(codes, (*lead, width * each))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("com.microsoft", "GatherBlockQuantized"): gather_block_quantized,
    ("com.microsoft", "MatMulNBits"): matmul_nbits,
}
