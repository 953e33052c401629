"""Quantized convolutions and matrix products: integer sums, and their requantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.integer_arithmetic import (
    checked_bytes,
    convolve_integers,
    integer_product,
    multiply_integers,
    zero_point,
)
from graphopt.frontend.converters.quantization import (
    STORAGE,
    check_divisor,
    dynamically_quantized,
    spread,
)
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    constant_array,
    dtype_of,
    shape_of,
)
from graphopt.ops import quantize as quantized

op = relax.op


def scale_of(node: NodeContext, index: int, axis: int, shape: tuple[int, ...]) -> Expr:
    """A scale in float32 that broadcasts to a result of `shape`; one per element of `axis`."""
    if dtype_of(node.input(index)) not in ("float32", "float16"):
        raise Unsupported(f"a {dtype_of(node.input(index))} scale is not supported")
    dims = shape_of(node.input(index))
    if len(dims) > 1 and int(np.prod(dims)) > 1:
        value = node.input(index)
        value = node.reshape(value, (1,) * (len(shape) - len(dims)) + dims)
    else:
        value = spread(node, index, axis % max(len(shape), 1), shape[axis], len(shape))
    known = constant_array(value)
    return node.cast(value, "float32") if known is None else constant(known, "float32")


def arithmetic(node: NodeContext, name: str, a: Expr, b: Expr) -> Expr:
    """a (multiply, divide, add, subtract) b; of constants, a constant in their type."""
    left, right = constant_array(a), constant_array(b)
    if left is not None and right is not None:
        return constant(np.asarray(getattr(np, name)(left, right)), dtype_of(a))
    return node.emit(getattr(op, name)(a, b))


def requantized(
    node: NodeContext, value: Expr, scales: tuple[Expr, Expr], scale: int, zero: int
) -> Expr:
    """An int32 result in units of the product of `scales` as the node's output type."""
    check_divisor(node, scale)
    unit = arithmetic(node, "multiply", *scales)
    multiplier = arithmetic(node, "divide", unit, scale_of(node, scale, -1, (1,)))
    if dtype_of(node.input(zero)) not in STORAGE:
        raise Unsupported(f"an output of type {dtype_of(node.input(zero))} is not supported")
    point = spread(node, zero, 0, 1, 1)
    multiplier = _ranked(node, multiplier, len(shape_of(value)))
    return node.emit(quantized.requantize(value, multiplier, point))


def _ranked(node: NodeContext, value: Expr, rank: int) -> Expr:
    shape = shape_of(value)
    if not shape or len(shape) == rank:
        return value
    known = constant_array(value)
    wanted = (1,) * (rank - len(shape)) + shape
    return constant(known.reshape(wanted)) if known is not None else node.reshape(value, wanted)


def _image_order(node: NodeContext, x: Expr, last: bool) -> Expr:
    """x with channels in axis 1 where they come last."""
    rank = len(shape_of(x))
    return node.transpose(x, (0, rank - 1, *range(1, rank - 1))) if last else x


def qlinear_conv(node: NodeContext) -> Expr:
    """QLinearConv; com.microsoft's may have its channels last."""
    last = node.flag_attr("channels_last")
    x = _image_order(node, node.input(0), last)
    result = convolve_integers(node, x, node.input(3), (2, 5))
    shape = shape_of(result)
    if node.has(8):
        bias = (1, -1, *[1] * (len(shape) - 2))
        known = node.array(8)
        if known is not None:
            result = node.emit(op.add(result, constant(known.reshape(bias))))
        else:
            shaped = node.reshape(node.input(8), (1, shape[1], *bias[2:]))
            result = node.emit(op.add(result, shaped))
    scales = (scale_of(node, 1, 1, shape), scale_of(node, 4, 1, shape))
    result = requantized(node, result, scales, 6, 7)
    if last:
        result = node.transpose(result, (0, *range(2, len(shape)), 1))
    return result


def qlinear_matmul(node: NodeContext) -> Expr:
    """QLinearMatMul."""
    result = multiply_integers(node, node.input(0), node.input(3), (2, 5))
    shape = shape_of(result)
    ranks = [len(shape_of(node.input(i))) for i in (0, 3)]
    if min(ranks) < 2:  # vectors have one scale
        scales = (scale_of(node, 1, -1, (1,)), scale_of(node, 4, -1, (1,)))
    else:
        scales = (scale_of(node, 1, -2, shape), scale_of(node, 4, -1, shape))
    return requantized(node, result, scales, 6, 7)


def conv_integer(node: NodeContext) -> Expr:
    """ConvInteger."""
    return convolve_integers(node, node.input(0), node.input(1), (2, 3))


def matmul_integer(node: NodeContext) -> Expr:
    """MatMulInteger."""
    return multiply_integers(node, node.input(0), node.input(1), (2, 3))


def scaled_product(
    node: NodeContext,
    a: Expr,
    b: Expr,
    scales: tuple[Expr, Expr],
    zeros: tuple[int, int],
    bias: int,
) -> Expr:
    """(a − zero)·(b − zero) in int32, then times both scales, plus the bias, in float32."""
    result = multiply_integers(node, a, b, zeros)
    unit = arithmetic(node, "multiply", *scales)
    result = node.emit(op.multiply(node.cast(result, "float32"), unit))
    return node.emit(op.add(result, node.input(bias))) if node.has(bias) else result


def matmul_integer_to_float(node: NodeContext) -> Expr:
    """com.microsoft MatMulIntegerToFloat."""
    a, b = node.input(0), node.input(1)
    scales = (
        scale_of(node, 2, -2, shape_of(a)),
        scale_of(node, 3, -1, shape_of(b)),
    )
    return scaled_product(node, a, b, scales, (4, 5), 6)


def dynamic_quantize_matmul(node: NodeContext) -> Expr:
    """com.microsoft DynamicQuantizeMatMul: the first operand quantized by its own range."""
    a, scale, zero = dynamically_quantized(node, node.input(0))
    b = checked_bytes(node.input(1))
    if len(shape_of(a)) < 2 or len(shape_of(b)) < 2:
        raise Unsupported("a product of vectors is not supported")
    product = integer_product(node, a, b, zero, zero_point(node, 3, -1, shape_of(b)))
    result = node.cast(product, "float32")
    factor = arithmetic(node, "multiply", scale, scale_of(node, 2, -1, shape_of(b)))
    result = node.emit(op.multiply(result, factor))
    return node.emit(op.add(result, node.input(4))) if node.has(4) else result


def qgemm(node: NodeContext) -> Expr:
    """com.microsoft QGemm: alpha·A'·B' + C, requantized where an output zero point is given."""
    alpha = node.float_attr("alpha", 1.0)
    sides = []
    for index, name in ((0, "transA"), (3, "transB")):
        array = node.array(index)
        if node.int_attr(name):
            value = node.input(index)
            sides.append(
                node.transpose(value, (1, 0)) if array is None else constant(array.T.copy())
            )
        else:
            sides.append(node.input(index))
    result = multiply_integers(node, sides[0], sides[1], (2, 5))
    shape = shape_of(result)
    if node.has(6):
        result = node.emit(op.add(result, node.input(6)))
    scales = (scale_of(node, 1, -2, shape), scale_of(node, 4, -1, shape))
    if alpha != 1.0:
        factor = constant(np.float32(alpha))
        scales = (arithmetic(node, "multiply", scales[0], factor), scales[1])
    if node.has(7) and node.has(8):
        return requantized(node, result, scales, 7, 8)
    unit = arithmetic(node, "multiply", *scales)
    return node.emit(op.multiply(node.cast(result, "float32"), unit))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "QLinearConv"): qlinear_conv,
    ("", "QLinearMatMul"): qlinear_matmul,
    ("", "ConvInteger"): conv_integer,
    ("", "MatMulInteger"): matmul_integer,
    ("com.microsoft", "QLinearConv"): qlinear_conv,
    ("com.microsoft", "MatMulIntegerToFloat"): matmul_integer_to_float,
    ("com.microsoft", "DynamicQuantizeMatMul"): dynamic_quantize_matmul,
    ("com.microsoft", "QGemm"): qgemm,
}
