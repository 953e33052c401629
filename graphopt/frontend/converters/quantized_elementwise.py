"""com.microsoft QLinear operators: a float operator between dequantization and quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters import activation, pooling
from graphopt.frontend.converters.delegate import apply, passed_on
from graphopt.frontend.converters.quantization import STORAGE, check_divisor, shaped
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    normal_axis,
    shape_of,
)
from graphopt.ops import quantize as quantized

op = relax.op


def _scalar(node: NodeContext, index: int) -> Expr:
    if int(np.prod(shape_of(node.input(index)))) != 1:
        raise Unsupported("a scale or zero point per channel is not supported")
    return shaped(node, index, ())


def _zero(node: NodeContext, index: int, dtype: str) -> Expr:
    return _scalar(node, index) if node.has(index) else constant(0, dtype)


def dequantized(node: NodeContext, index: int, scale: int, zero: int) -> Expr:
    """Input `index` as float32; its scale and zero point are inputs too."""
    value = node.input(index)
    dtype = dtype_of(value)
    if dtype not in STORAGE:
        raise Unsupported(f"data of type {dtype} is not supported")
    call = quantized.dequantize(value, _scalar(node, scale), _zero(node, zero, dtype))
    return node.emit(call)


def requantized(node: NodeContext, value: Expr, scale: int, zero: int, like: int) -> Expr:
    """`value` in the type of input `like`."""
    check_divisor(node, scale)
    point = _zero(node, zero, dtype_of(node.input(like)))
    return node.emit(quantized.quantize(value, _scalar(node, scale), point))


def _binary(function: Callable[[Expr, Expr], Expr]) -> Callable[[NodeContext], Expr]:
    def convert(node: NodeContext) -> Expr:
        a, b = dequantized(node, 0, 1, 2), dequantized(node, 3, 4, 5)
        return requantized(node, node.emit(function(a, b)), 6, 7, 0)

    return convert


def _unary(function: Callable[[NodeContext, Expr], Expr]) -> Callable[[NodeContext], Expr]:
    """Operators with inputs X, scale, zero point, Y's scale, Y's zero point."""

    def convert(node: NodeContext) -> Expr:
        return requantized(node, function(node, dequantized(node, 0, 1, 2)), 3, 4, 0)

    return convert


def _leaky_relu(node: NodeContext, x: Expr) -> Expr:
    return node.emit(op.nn.leakyrelu(x, node.float_attr("alpha", 0.01)))


def _softmax(node: NodeContext, x: Expr) -> Expr:
    opset = node.int_attr("opset", 13)
    attributes = {"axis": node.int_attr("axis", -1 if opset >= 13 else 1)}
    return apply(node, activation.softmax, [x], attributes, opset)


def _channels_first(node: NodeContext, x: Expr, to_last: bool = False) -> Expr:
    rank = len(shape_of(x))
    if not node.flag_attr("channels_last"):
        return x
    return node.transpose(
        x, (0, *range(2, rank), 1) if to_last else (0, rank - 1, *range(1, rank - 1))
    )


def _average_pool(node: NodeContext, x: Expr) -> Expr:
    names = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
    x = _channels_first(node, x)
    pooled = apply(node, pooling.average_pool, [x], passed_on(node, *names))
    return _channels_first(node, pooled, to_last=True)


def _global_average_pool(node: NodeContext, x: Expr) -> Expr:
    pooled = apply(node, pooling.global_average_pool, [_channels_first(node, x)])
    return _channels_first(node, pooled, to_last=True)


def _reduce_mean(node: NodeContext, x: Expr) -> Expr:
    rank = len(shape_of(x))
    axes = [normal_axis(axis, rank) for axis in node.int_list("axes") or range(rank)]
    return node.emit(op.mean(x, axes, node.flag_attr("keepdims", 1)))


def qlinear_concat(node: NodeContext) -> Expr:
    """QLinearConcat: Y's scale and zero point, then (data, scale, zero point) per input."""
    parts = [dequantized(node, i, i + 1, i + 2) for i in range(2, len(node), 3)]
    axis = normal_axis(node.int_attr("axis"), len(shape_of(parts[0])))
    return requantized(node, node.emit(op.concat(parts, axis)), 0, 1, 2)


def qlinear_where(node: NodeContext) -> Expr:
    """QLinearWhere: condition, (X, scale, zero), (Y, scale, zero), Z's scale and zero."""
    x, y = dequantized(node, 1, 2, 3), dequantized(node, 4, 5, 6)
    return requantized(node, node.emit(op.where(node.input(0), x, y)), 7, 8, 1)


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("com.microsoft", name): converter
    for name, converter in {
        "QLinearAdd": _binary(op.add),
        "QLinearAveragePool": _unary(_average_pool),
        "QLinearConcat": qlinear_concat,
        "QLinearGlobalAveragePool": _unary(_global_average_pool),
        "QLinearLeakyRelu": _unary(_leaky_relu),
        "QLinearMul": _binary(op.multiply),
        "QLinearReduceMean": _unary(_reduce_mean),
        "QLinearSigmoid": _unary(lambda node, x: node.emit(op.sigmoid(x))),
        "QLinearSoftmax": _unary(_softmax),
        "QLinearWhere": qlinear_where,
    }.items()
}
