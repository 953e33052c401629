"""Quantization operators; Q/DQ pairs are kept, passes turn them into integer work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.convolution import convolve
from graphopt.frontend.converters.linear_algebra import matrix_product
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    normal_axis,
    numpy_dtype,
    shape_of,
)
from graphopt.frontend.model import Array

op = relax.op

_STORAGE = ("int8", "uint8", "int16", "uint16")


def _scale(node: NodeContext, index: int) -> Array:
    scale = node.known(index, "the scale")
    if scale.dtype != np.float32:
        raise Unsupported(f"a {scale.dtype} scale is not supported")
    if not np.isfinite(scale).all() or (scale <= 0).any():
        raise Unsupported("a scale is not positive")
    if scale.ndim > 1:
        raise Unsupported("blocked quantization is not supported")
    return scale.reshape(()) if scale.size == 1 else scale


def _zero_point(node: NodeContext, index: int, dtype: str, scale: Array) -> Array:
    if not node.has(index):
        return np.zeros(scale.shape, dtype)
    zero = node.known(index, "the zero point")
    return np.broadcast_to(zero.reshape(-1) if scale.ndim else zero.reshape(()), scale.shape)


def _quantized_dtype(dtype: str) -> str:
    if dtype not in _STORAGE:
        raise Unsupported(f"quantization to {dtype} is not supported")
    return dtype


def _axis(node: NodeContext, x: Expr, scale: Array) -> int:
    rank = len(shape_of(x))
    axis = node.int_attr("axis", 1)
    if scale.ndim == 0:
        return 0 if rank == 0 else -1
    axis = normal_axis(axis, rank)
    if scale.size != shape_of(x)[axis]:
        raise Unsupported(f"{scale.size} scales do not fit axis {axis} of {shape_of(x)}")
    return axis


def quantize_linear(node: NodeContext) -> Expr:
    """saturate(round(x / scale) + zero_point)."""
    node.ignore("saturate")  # of float8 targets, which are refused
    if node.int_attr("block_size") or node.int_attr("precision") not in (0, 1):
        raise Unsupported("blocked or low-precision quantization is not supported")
    x, scale = node.input(0), _scale(node, 1)
    code = node.int_attr("output_dtype")
    stated = numpy_dtype(code) if code else "uint8"
    dtype = dtype_of(node.input(2)) if node.has(2) else stated
    _quantized_dtype(dtype)
    if dtype_of(x) != "float32":
        raise Unsupported(f"quantization of {dtype_of(x)} is not supported")
    zero = _zero_point(node, 2, dtype, scale)
    axis = _axis(node, x, scale)
    return node.emit(op.quantize(x, constant(scale), constant(zero), axis, dtype))


def dequantize_linear(node: NodeContext) -> Expr:
    """(x − zero_point)·scale."""
    if node.int_attr("block_size"):
        raise Unsupported("blocked quantization is not supported")
    if node.int_attr("output_dtype") not in (0, 1):
        raise Unsupported("dequantization to another type than float32 is not supported")
    x, scale = node.input(0), _scale(node, 1)
    dtype = dtype_of(x)
    if dtype not in (*_STORAGE, "int32"):
        raise Unsupported(f"dequantization of {dtype} is not supported")
    zero = _zero_point(node, 2, dtype, scale)
    axis = _axis(node, x, scale)
    return node.emit(op.dequantize(x, constant(scale), constant(zero), axis, "float32"))


def dynamic_quantize(node: NodeContext) -> tuple[Expr, ...]:
    """uint8 with scale and zero point from the data's range, which includes 0."""
    x = node.input(0)
    axes = list(range(len(shape_of(x))))
    zero = node.scalar(0, x)
    high = node.emit(op.maximum(node.emit(op.max(x, axes, False)), zero))
    low = node.emit(op.minimum(node.emit(op.min(x, axes, False)), zero))
    span = node.emit(op.subtract(high, low))
    scale = node.emit(op.divide(span, node.scalar(255, x)), 1)
    flat = node.emit(op.equal(scale, zero))
    safe = node.emit(op.where(flat, node.scalar(1, x), scale))
    shift = node.emit(op.divide(node.emit(op.negative(low)), safe))
    point = node.emit(op.clip(node.emit(op.round(shift)), 0, 255))
    steps = node.emit(op.add(node.emit(op.round(node.emit(op.divide(x, safe)))), point))
    result = node.cast(node.emit(op.clip(steps, 0, 255)), "uint8")
    return result, scale, node.cast(point, "uint8")


def _dequantized(node: NodeContext, x: int, scale: int, zero: int, axis: int) -> Expr:
    value = node.input(x)
    factor = _scale(node, scale)
    dtype = _quantized_dtype(dtype_of(value))
    point = _zero_point(node, zero, dtype, factor)
    if factor.ndim:
        axis = normal_axis(axis, len(shape_of(value)))
        if factor.size != shape_of(value)[axis]:
            raise Unsupported(f"{factor.size} scales do not fit axis {axis} of {shape_of(value)}")
    else:
        axis = -1
    return node.emit(op.dequantize(value, constant(factor), constant(point), axis, "float32"))


def _requantized(node: NodeContext, value: Expr, scale: int, zero: int) -> Expr:
    factor = _scale(node, scale)
    if factor.ndim:
        raise Unsupported("an output scale per channel is not supported")
    dtype = _quantized_dtype(dtype_of(node.input(zero)))
    point = _zero_point(node, zero, dtype, factor)
    return node.emit(op.quantize(value, constant(factor), constant(point), -1, dtype))


def qlinear_conv(node: NodeContext) -> Expr:
    """QLinearConv as dequantize → convolution → quantize, the form that passes recognise."""
    x = _dequantized(node, 0, 1, 2, 1)
    w = _dequantized(node, 3, 4, 5, 0)
    result = convolve(node, x, w)
    if node.has(8):
        # The bias is int32 in units of x_scale·w_scale.
        unit = np.asarray(_scale(node, 1) * _scale(node, 4), np.float32)
        bias = node.known(8, "the bias")
        shape = (1, -1, *[1] * (len(shape_of(result)) - 2))
        values = np.asarray(bias * unit.reshape(-1), np.float32).reshape(shape)
        result = node.emit(op.add(result, constant(values)))
    return _requantized(node, result, 6, 7)


def qlinear_matmul(node: NodeContext) -> Expr:
    """QLinearMatMul as dequantize → matmul → quantize."""
    a = _dequantized(node, 0, 1, 2, -2)
    b = _dequantized(node, 3, 4, 5, -1)
    return _requantized(node, matrix_product(node, a, b), 6, 7)


def conv_integer(node: NodeContext) -> Expr:
    """Convolution of integers less their zero points, in int32."""
    zero_x, zero_w = node.array(2), node.array(3)
    if (node.has(2) and zero_x is None) or (node.has(3) and zero_w is None):
        raise Unsupported("a zero point that is computed at run time is not supported")
    x = node.cast(node.input(0), "int32")
    if zero_x is not None and zero_x.any():
        x = node.emit(op.subtract(x, constant(zero_x.reshape(()), "int32")))
    w = node.known(1, "the weight").astype(np.int32)
    if zero_w is not None:
        wide = zero_w.astype(np.int32)
        w = w - (wide.reshape(-1, *[1] * (w.ndim - 1)) if wide.size > 1 else wide.reshape(()))
    return convolve(node, x, constant(w), "int32")


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "QuantizeLinear"): quantize_linear,
    ("", "DequantizeLinear"): dequantize_linear,
    ("", "DynamicQuantizeLinear"): dynamic_quantize,
    ("", "QLinearConv"): qlinear_conv,
    ("", "QLinearMatMul"): qlinear_matmul,
    ("", "ConvInteger"): conv_integer,
    ("com.microsoft", "QuantizeLinear"): quantize_linear,
    ("com.microsoft", "DequantizeLinear"): dequantize_linear,
}
