"""QuantizeLinear and its kin: operators of the IR, with scales and zero points that broadcast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tvm import relax

from graphopt.frontend.converters.narrow import (
    INTEGERS,
    decoded,
    encode,
    is_narrow,
    limits,
    number_dtype,
)
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    constant_array,
    dtype_of,
    normal_axis,
    numpy_dtype,
    shape_of,
)
from graphopt.ops import quantize as quantized

op = relax.op

STORAGE = ("int8", "uint8", "int16", "uint16")
"""Types that data can be quantized to."""

_FLOATS = ("float16", "float32")


def shaped(node: NodeContext, index: int, shape: tuple[int, ...]) -> Expr:
    """Input `index` as numbers in another shape; a constant stays one."""
    value = decoded(node, index)
    known = constant_array(value)
    return node.reshape(value, shape) if known is None else constant(known.reshape(shape))


def spread(node: NodeContext, index: int, axis: int, extent: int, rank: int) -> Expr:
    """A scale or zero point, one or one per element of `axis`, that broadcasts to `rank` axes."""
    dims = shape_of(node.input(index))
    if int(np.prod(dims)) == 1:
        return shaped(node, index, ())
    if len(dims) != 1 or dims[0] != extent:
        name = node.node.input[index]
        raise Unsupported(f"'{name}' of shape {dims} does not fit axis {axis} of {extent}")
    shape = [1] * rank
    shape[axis] = extent
    return shaped(node, index, tuple(shape))


class Blocks:
    """How the data and the parameters of one Q/DQ node lie so that they broadcast."""

    def __init__(self, node: NodeContext, x: Expr) -> None:
        self.node, self.shape = node, shape_of(x)
        self.block = node.int_attr("block_size")
        axis, rank = node.int_attr("axis", 1), len(self.shape)
        dims = shape_of(node.input(1))
        per_axis = self.block or int(np.prod(dims)) > 1
        self.axis = normal_axis(axis, rank) if per_axis else 0
        self.split: tuple[int, ...] | None = None
        if not self.block:
            return
        if self.block < 0 or len(dims) != rank:
            raise Unsupported(f"block_size {self.block} does not fit scales of shape {dims}")
        wanted = list(self.shape)
        wanted[self.axis] = -(-self.shape[self.axis] // self.block)
        if list(dims) != wanted:
            raise Unsupported(f"scales of shape {dims} do not fit blocks {wanted}")
        if self.shape[self.axis] % self.block == 0:
            inner = (wanted[self.axis], self.block)
            self.split = (*self.shape[: self.axis], *inner, *self.shape[self.axis + 1 :])

    def data(self, x: Expr) -> Expr:
        """x with an axis for the blocks."""
        return x if self.split is None else self.node.reshape(x, self.split)

    def parameter(self, index: int) -> Expr:
        """Scale or zero point, input `index` of the node."""
        node = self.node
        if not self.block:
            extent = self.shape[self.axis] if self.shape else 1
            return spread(node, index, self.axis, extent, len(self.shape))
        dims = shape_of(node.input(index))
        if self.split is not None:
            shape = (*dims[: self.axis + 1], 1, *dims[self.axis + 1 :])
            return shaped(node, index, shape)
        # The last block is shorter: every element names its block.
        which = np.arange(self.shape[self.axis]) // self.block
        value = decoded(node, index)
        known = constant_array(value)
        if known is not None:
            return constant(known.take(which, self.axis))
        return node.emit(op.take(value, constant(which), self.axis))

    def zero(self, index: int, dtype: str) -> Expr:
        """The zero point, or 0 of `dtype` where the node has none."""
        return self.parameter(index) if self.node.has(index) else constant(0, dtype)


def _checked_scale(node: NodeContext, index: int) -> str:
    dtype = dtype_of(decoded(node, index))
    if dtype not in _FLOATS:
        raise Unsupported(f"a {dtype} scale is not supported")
    return dtype


def check_divisor(node: NodeContext, index: int) -> None:
    """Refuse a constant scale that data cannot be divided by, input `index`."""
    known = node.array(index)
    if known is not None and (np.abs(known) < np.finfo(known.dtype).tiny).any():
        name = node.node.input[index]
        raise Unsupported(f"the scale '{name}' has an element that is 0, or no normal number")


def _target(node: NodeContext) -> int:
    """ONNX element type that the node quantizes to."""
    code = node.int_attr("output_dtype")
    if not node.has(2):
        return code or TensorProto.UINT8
    given = node.element(2) or helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(node.input(2))))
    if code and given != code:
        raise Unsupported(f"output_dtype is {code}, the zero point is of element type {given}")
    return int(given)


def quantize_linear(node: NodeContext) -> Expr:
    """saturate(round(x / scale) + zero_point); to floats of 4 and 8 bits, x / scale rounded."""
    x, scale_type, code = node.input(0), _checked_scale(node, 1), _target(node)
    saturate = node.flag_attr("saturate", 1)
    check_divisor(node, 1)
    if dtype_of(x) not in (*_FLOATS, "int32"):
        raise Unsupported(f"quantization of {dtype_of(x)} is not supported")
    precision = _precision(node, dtype_of(x), scale_type)
    blocks = Blocks(node, x)
    data, scale = blocks.data(x), blocks.parameter(1)
    if is_narrow(code) and code not in INTEGERS:
        # A zero point of a float type says which type it is; ONNX has it always 0.
        zero = constant_array(decoded(node, 2)) if node.has(2) else None
        if zero is not None and zero.any():
            raise Unsupported("a zero point other than 0 of a float type is not supported")
        value = node.emit(op.divide(node.cast(data, precision), node.cast(scale, precision)))
        return encode(node, node.reshape(value, shape_of(x)), code, saturate)
    dtype = number_dtype(code) if is_narrow(code) else numpy_dtype(code)
    if dtype not in STORAGE:
        raise Unsupported(f"quantization to {dtype} is not supported")
    low, high = (int(bound) for bound in limits(code)) if is_narrow(code) else (None, None)
    call = quantized.quantize(
        data, scale, blocks.zero(2, dtype), precision=precision, low=low, high=high
    )
    result = node.reshape(node.emit(call), shape_of(x))
    return encode(node, result, code) if is_narrow(code) else result


def _precision(node: NodeContext, x: str, scale: str) -> str:
    """The type of the division: as stated, else the scale's."""
    code = node.int_attr("precision")
    if code in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return numpy_dtype(code)
    if code:
        raise Unsupported(f"precision={code} is not supported")
    return "float16" if x == scale == "float16" else "float32"


def dequantize_linear(node: NodeContext) -> Expr:
    """(x − zero_point)·scale."""
    x, dtype = decoded(node, 0), _checked_scale(node, 1)
    code = node.int_attr("output_dtype")
    if code:
        dtype = numpy_dtype(code)
        if dtype not in _FLOATS:
            raise Unsupported(f"dequantization to {dtype} is not supported")
    blocks = Blocks(node, x)
    data, scale = blocks.data(x), blocks.parameter(1)
    if dtype_of(x) == "float32":  # of 8 bits or fewer
        if node.has(2):
            data = node.emit(op.subtract(data, blocks.parameter(2)))
        value = node.emit(op.multiply(data, node.cast(scale, "float32")))
        return node.reshape(node.cast(value, dtype), shape_of(x))
    if dtype_of(x) not in (*STORAGE, "int32"):
        raise Unsupported(f"dequantization of {dtype_of(x)} is not supported")
    call = quantized.dequantize(data, scale, blocks.zero(2, dtype_of(x)), dtype=dtype)
    return node.reshape(node.emit(call), shape_of(x))


def dynamically_quantized(node: NodeContext, x: Expr) -> tuple[Expr, Expr, Expr]:
    """x as uint8, its scale and its zero point, from the range of the data and 0.

    Where all data is zero the scale is 1, as in ONNX Runtime; ONNX's definition divides by 0.
    """
    if dtype_of(x) != "float32":
        raise Unsupported(f"dynamic quantization of {dtype_of(x)} is not supported")
    axes = list(range(len(shape_of(x))))
    zero = node.scalar(0, x)
    ends = (op.max(x, axes, False), op.min(x, axes, False)) if axes else (x, x)
    high = node.emit(op.maximum(node.emit(ends[0]) if axes else x, zero))
    low = node.emit(op.minimum(node.emit(ends[1]) if axes else x, zero))
    span = node.emit(op.subtract(high, low))
    step = node.emit(op.divide(span, node.scalar(255, x)))
    flat = node.emit(op.equal(high, low))
    scale = node.emit(op.where(flat, node.scalar(1, x), step), 1)
    shift = node.emit(op.divide(node.emit(op.negative(low)), scale))
    point = node.emit(op.round(node.emit(op.clip(shift, 0, 255))))
    point = node.cast(point, "uint8")
    return node.emit(quantized.quantize(x, scale, point)), scale, point


def dynamic_quantize(node: NodeContext) -> tuple[Expr, ...]:
    """DynamicQuantizeLinear."""
    return dynamically_quantized(node, node.input(0))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "QuantizeLinear"): quantize_linear,
    ("", "DequantizeLinear"): dequantize_linear,
    ("", "DynamicQuantizeLinear"): dynamic_quantize,
    ("com.microsoft", "QuantizeLinear"): quantize_linear,
    ("com.microsoft", "DequantizeLinear"): dequantize_linear,
}
