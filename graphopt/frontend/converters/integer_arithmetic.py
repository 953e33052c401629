"""Convolutions and matrix products of integers, with exact int32 sums.

Bytes stay bytes where weights are constant, so that the fast kernels take them. A zero point of the
data, known or computed, stays in it: its product with the sums of the weights is subtracted from
the result, and joins the bias where it is known. Weights that leave int8 once their zero point is
subtracted keep what is too much of it, which multiplies sums of the data. Whatever else has a zero
point is widened to int16 first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from graphopt.frontend.converters.linear_algebra import lifted_product
from graphopt.frontend.converters.quantization import spread
from graphopt.frontend.converters.windows import Window, read_window
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
from graphopt.ops.byte_weights import ByteWeights, byte_weights, wrapped
from graphopt.ops.padding import pad_with

op = relax.op

_BYTES = ("int8", "uint8")


def _narrowest(array: Array) -> Array:
    """Integers in the smallest type that a product takes."""
    for dtype in ("int8", "uint8", "int16"):
        bounds = np.iinfo(dtype)
        if array.size == 0 or (array.min() >= bounds.min and array.max() <= bounds.max):
            return array.astype(dtype)
    raise Unsupported("an integer operand does not fit 16 bits")


def checked_bytes(value: Expr) -> Expr:
    """`value`, which is of 8-bit integers; Unsupported for others."""
    if dtype_of(value) not in _BYTES:
        raise Unsupported(f"an operand of type {dtype_of(value)} is not supported")
    return value


def _centred(node: NodeContext, value: Expr, zero: Expr | None) -> Expr:
    """`value` less `zero`, which broadcasts."""
    known, shift = constant_array(value), None if zero is None else constant_array(zero)
    if zero is None or (shift is not None and not shift.any()):
        return value
    if known is not None and shift is not None:
        return constant(_narrowest(known.astype(np.int32) - shift.astype(np.int32)))
    return node.emit(op.subtract(node.cast(value, "int16"), node.cast(zero, "int16")))


def _weights(value: Expr, zero: Expr | None, summed: Sequence[int]) -> ByteWeights | None:
    """Constant weights less a constant zero point; None where they are not so, or the zero point
    differs along the axes `summed` and is needed."""
    codes = constant_array(value)
    point = np.zeros((), np.int32) if zero is None else constant_array(zero)
    if codes is None or point is None:
        return None
    found = byte_weights(codes, point)
    varies = point.ndim > 0 and any(point.shape[axis] != 1 for axis in summed)
    return None if found.rest is not None and varies else found


def zero_point(node: NodeContext, index: int, axis: int, shape: tuple[int, ...]) -> Expr | None:
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
    x, w = checked_bytes(x), checked_bytes(w)
    rank = len(shape_of(x)) - 2
    if rank not in (1, 2, 3) or len(shape_of(w)) != rank + 2:
        raise Unsupported(f"convolution over {rank} axes is not supported")
    kernel = shape_of(w)[2:]
    stated = node.int_list("kernel_shape")
    if stated and tuple(stated) != kernel:
        raise Unsupported(f"kernel_shape is {stated}, the weight's is {list(kernel)}")
    window = read_window(node, kernel, shape_of(x)[2:])
    zero = zero_point(node, zeros[0], 1, shape_of(x))
    zero_w = zero_point(node, zeros[1], 0, shape_of(w))
    if rank == 1:  # as two, of which the first has one element
        x, w = _lifted(node, x), _lifted(node, w)
        zero, zero_w = (
            z if z is None or not shape_of(z) else _lifted(node, z) for z in (zero, zero_w)
        )
        window = window.lifted(0)
    result = _convolution(node, x, w, (zero, zero_w), window)
    shape = shape_of(result)
    return node.reshape(result, (*shape[:2], shape[3])) if rank == 1 else result


def _lifted(node: NodeContext, value: Expr) -> Expr:
    """(A, B, W) as (A, B, 1, W)."""
    a, b, width = shape_of(value)
    known = constant_array(value)
    if known is not None:
        return constant(known.reshape(a, b, 1, width))
    return node.reshape(value, (a, b, 1, width))


def _convolution(
    node: NodeContext, x: Expr, w: Expr, zeros: tuple[Expr | None, Expr | None], window: Window
) -> Expr:
    """As convolve_integers(), of tensors and zero points."""
    groups, padding, fill = node.int_attr("group", 1), window.padding, 0
    zero, zero_w = zeros
    rank = len(shape_of(x)) - 2
    weights = _weights(w, zero_w, range(1, rank + 2))
    scalar = zero is None or int(np.prod(shape_of(zero))) == 1
    if weights is not None and weights.rest is not None and groups not in (1, shape_of(w)[0]):
        weights = None  # of a group of several, sums of the data would have to be repeated
    if weights is None or not scalar:
        x, weight = _centred(node, x, zero), _centred(node, w, zero_w)
        return node.emit(_conv(x, weight, window, padding, groups, fill))
    known = None if zero is None else constant_array(zero)
    if known is not None:
        fill = int(known.reshape(()))
    elif zero is not None and any(padding):
        before, after = (0, 0, *padding[:rank]), (0, 0, *padding[rank:])
        x = node.emit(pad_with(x, node.reshape(zero, (1,)), before=before, after=after))
        padding = (0,) * (2 * rank)
    result = node.emit(_conv(x, constant(weights.integers), window, padding, groups, fill))
    if weights.rest is not None:
        ones = np.ones((groups, *weights.integers.shape[1:]), np.int8)
        sums = node.emit(_conv(x, constant(ones), window, padding, groups, fill))
        rest = weights.rest.reshape(1, -1, *[1] * rank)
        result = node.emit(op.add(result, node.emit(op.multiply(sums, constant(rest)))))
    sums = weights.total.astype(np.int64).sum(axis=tuple(range(1, rank + 2)))
    return _less(node, result, zero, sums.reshape(1, -1, *[1] * rank))


def _conv(x: Expr, w: Expr, window: Window, padding: Sequence[int], groups: int, fill: int) -> Expr:
    return quantized.conv_integer(
        x,
        w,
        strides=window.strides,
        padding=padding,
        dilation=window.dilations,
        groups=groups,
        pad_value=fill,
    )


def _less(node: NodeContext, value: Expr, zero: Expr | None, sums: Array) -> Expr:
    """`value` less `zero`, which broadcasts, times the sums of constant weights."""
    known = np.zeros((), np.int64) if zero is None else constant_array(zero)
    if known is None:
        product = node.emit(op.multiply(node.cast(zero, "int32"), constant(wrapped(sums))))
        return node.emit(op.subtract(value, product))
    if not known.any():
        return value
    return node.emit(op.add(value, constant(wrapped(-known.astype(np.int64) * sums))))


def multiply_integers(node: NodeContext, a: Expr, b: Expr, zeros: tuple[int, int]) -> Expr:
    """Exact product of a (…,M,K) and b (…,K,N), less the zero points, in int32; as NumPy's matmul.

    Zero points are one, one per row of a and per column of b, or of the operand's rank.
    """

    def product(a: Expr, b: Expr) -> Expr:
        left = zero_point(node, zeros[0], -2, shape_of(a))
        return integer_product(node, a, b, left, zero_point(node, zeros[1], -1, shape_of(b)))

    return lifted_product(node, checked_bytes(a), checked_bytes(b), product)


def integer_product(
    node: NodeContext, a: Expr, b: Expr, zero_a: Expr | None, zero_b: Expr | None
) -> Expr:
    """a (…,M,K) times b (…,K,N) of bytes, less their zero points, which broadcast, in int32."""
    weights = _weights(b, zero_b, (-2,))
    dims = () if zero_a is None else shape_of(zero_a)
    if weights is None or (dims and dims[-1] != 1):
        left, right = _centred(node, a, zero_a), _centred(node, b, zero_b)
        return node.emit(quantized.matmul_integer(left, right))
    result = node.emit(quantized.matmul_integer(a, constant(weights.integers)))
    if weights.rest is not None:
        rows = node.emit(op.sum(node.cast(a, "int32"), [len(shape_of(a)) - 1], keepdims=True))
        result = node.emit(op.add(result, node.emit(op.multiply(rows, constant(weights.rest)))))
    sums = weights.total.astype(np.int64).sum(axis=-2, keepdims=weights.total.ndim > 2)
    return _less(node, result, zero_a, sums)
