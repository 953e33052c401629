"""Convolutions and matrix products of integers, with exact int32 sums, and their requantization.

Zero points are taken out of constants at import. That of an activation whose partner is constant
stays in the data and is corrected by one int32 constant per filter, which joins the bias; any other
is subtracted in int16 first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.linear_algebra import lifted_product
from graphopt.frontend.converters.quantization import STORAGE, dynamically_quantized, spread
from graphopt.frontend.converters.windows import read_window
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    constant_array,
    dtype_of,
    shape_of,
)
from graphopt.frontend.model import Array
from graphopt.ops import quantize as quantized

op = relax.op

_BYTES = ("int8", "uint8")


def _narrowest(array: Array) -> Array:
    """Integers in the smallest type that a product takes."""
    for dtype in ("int8", "uint8", "int16"):
        bounds = np.iinfo(dtype)
        if array.size == 0 or (array.min() >= bounds.min and array.max() <= bounds.max):
            return array.astype(dtype)
    raise Unsupported("an integer operand does not fit 16 bits")


@dataclass(frozen=True)
class Centred:
    """An integer operand: true values are `value` − `zero`."""

    value: Expr
    zero: int = 0


def _checked(node: NodeContext, value: Expr) -> Expr:
    if dtype_of(value) not in _BYTES:
        raise Unsupported(f"an operand of type {dtype_of(value)} is not supported")
    return value


def _centred(node: NodeContext, value: Expr, zero: Expr | None, keep: bool) -> Centred:
    """`value` less `zero`, which broadcasts; a constant scalar may be kept apart."""
    if zero is None:
        return Centred(value)
    known, shift = constant_array(value), constant_array(zero)
    if shift is not None and not shift.any():
        return Centred(value)
    if known is not None and shift is not None:
        return Centred(constant(_narrowest(known.astype(np.int32) - shift.astype(np.int32))))
    if keep and shift is not None and shift.size == 1:
        return Centred(value, int(shift.reshape(())))
    wide = (node.cast(value, "int16"), node.cast(zero, "int16"))
    return Centred(node.emit(op.subtract(*wide)))


def _zero(node: NodeContext, index: int, axis: int, shape: tuple[int, ...]) -> Expr | None:
    """The zero point input `index` as it broadcasts to an operand of `shape`."""
    if not node.has(index):
        return None
    axis = axis % len(shape)
    dims = shape_of(node.input(index))
    if len(dims) > 1 and int(np.prod(dims)) > 1:
        return node.input(index)  # of a matrix product: it has the operand's rank
    return spread(node, index, axis, shape[axis], len(shape))


def convolve_integers(node: NodeContext, x: Expr, w: Expr, zeros: tuple[int, int]) -> Expr:
    """Exact convolution of x (N,C,…) with w (O,C/groups,…), less the zero points, in int32."""
    x, w = _checked(node, x), _checked(node, w)
    rank = len(shape_of(x)) - 2
    if rank not in (1, 2, 3) or len(shape_of(w)) != rank + 2:
        raise Unsupported(f"convolution over {rank} axes is not supported")
    kernel = shape_of(w)[2:]
    stated = node.int_list("kernel_shape")
    if stated and tuple(stated) != kernel:
        raise Unsupported(f"kernel_shape is {stated}, the weight's is {list(kernel)}")
    window = read_window(node, kernel, shape_of(x)[2:])
    weight = _centred(node, w, _zero(node, zeros[1], 0, shape_of(w)), keep=False).value
    weights = constant_array(weight)
    zero = _zero(node, zeros[0], 1, shape_of(x))
    data = _centred(node, x, zero, keep=weights is not None)
    result = node.emit(
        quantized.conv_integer(
            data.value,
            weight,
            strides=window.strides,
            padding=window.padding,
            dilation=window.dilations,
            groups=node.int_attr("group", 1),
            pad_value=data.zero,
        )
    )
    if data.zero and weights is not None:
        sums = weights.astype(np.int64).sum(axis=tuple(range(1, rank + 2)))
        result = _add_constant(node, result, (-data.zero * sums).reshape(1, -1, *[1] * rank))
    return result


def _add_constant(node: NodeContext, value: Expr, shift: Array) -> Expr:
    wrapped = (shift & 0xFFFFFFFF).astype(np.uint32).view(np.int32)  # as the sums themselves wrap
    return node.emit(op.add(value, constant(wrapped)))


def multiply_integers(node: NodeContext, a: Expr, b: Expr, zeros: tuple[int, int]) -> Expr:
    """Exact product of a (…,M,K) and b (…,K,N), less the zero points, in int32; as NumPy's matmul.

    Zero points are one, one per row of a and per column of b, or of the operand's rank.
    """

    def product(a: Expr, b: Expr) -> Expr:
        right = _centred(node, b, _zero(node, zeros[1], -1, shape_of(b)), keep=False).value
        weights = constant_array(right)
        zero = _zero(node, zeros[0], -2, shape_of(a))
        left = _centred(node, a, zero, keep=weights is not None)
        result = node.emit(quantized.matmul_integer(left.value, right))
        if left.zero and weights is not None:
            sums = weights.astype(np.int64).sum(axis=-2, keepdims=True)
            result = _add_constant(node, result, -left.zero * sums)
        return result

    return lifted_product(node, _checked(node, a), _checked(node, b), product)


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
    b = _checked(node, node.input(1))
    if len(shape_of(a)) < 2 or len(shape_of(b)) < 2:
        raise Unsupported("a product of vectors is not supported")
    right = _centred(node, b, _zero(node, 3, -1, shape_of(b)), keep=False).value
    left = _centred(node, a, zero, keep=False).value
    result = node.cast(node.emit(quantized.matmul_integer(left, right)), "float32")
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
