"""What passes on quantized graphs ask of dequantizations, and the integers they make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from graphopt.ops.byte_weights import ByteWeights, byte_weights, wrapped
from graphopt.ops.quantize import dequantize
from graphopt.passes.rewrite import View
from graphopt.passes.values import Array, Expr, constant, dtype_of, shape_of

DEQUANTIZE = "graphopt.dequantize"
QUANTIZE = "graphopt.quantize"
REQUANTIZE = "graphopt.requantize"
INTEGER_ANCHORS = ("graphopt.conv_integer", "graphopt.matmul_integer")
BYTES = ("int8", "uint8")

INTEGER_CONVOLUTION, INTEGER_PRODUCT = "integer convolution", "integer product"
INTEGER_RULES = (INTEGER_CONVOLUTION, INTEGER_PRODUCT)
"""The rules whose refusals say what of a quantized graph stays in floats."""

INT32_MAX = 2**31 - 1
_LEAST_SCALE, _LARGEST_SCALE = 1e-30, 1e30
"""Beyond these, numbers may leave float32 where the integers that stand for them do not."""


@dataclass(frozen=True)
class Parameters:
    """Constant scale and zero point: numbers stand for (integer − zero) · scale, in float32."""

    scale: Array  # float32, of the tensor's rank or scalar
    zero: Array  # int32, likewise

    @property
    def per_tensor(self) -> bool:
        """Whether the whole tensor has one scale and one zero point."""
        return self.scale.size == 1 and self.zero.size == 1

    @property
    def point(self) -> int:
        """The zero point of a whole tensor."""
        return int(self.zero.reshape(()))

    def same(self, other: Parameters) -> bool:
        """Whether equal integers stand for equal numbers; for parameters of whole tensors."""
        return (
            self.per_tensor
            and other.per_tensor
            and self.scale.reshape(()) == other.scale.reshape(())
            and self.point == other.point
        )


def parameters(view: View, call: Expr) -> Parameters | None:
    """Those of a quantize or dequantize call; None where they are computed at run time, or are of
    another type than float32, or are no positive numbers of a usual size."""
    scale, zero = view.constant(call.args[1]), view.constant(call.args[2])
    if scale is None or zero is None or scale.dtype != np.float32:
        return None
    if not ((scale > _LEAST_SCALE) & (scale < _LARGEST_SCALE)).all():
        return None
    return Parameters(scale, np.asarray(zero, np.int32))


@dataclass(frozen=True)
class Dequantized:
    """A tensor of numbers as a tensor of integers: (x − zero) · scale in float32."""

    x: Expr
    params: Parameters

    @property
    def dtype(self) -> str:
        """The integers' type."""
        return dtype_of(self.x)


def dequantized(view: View, expr: Expr) -> Dequantized | None:
    """`expr` where it is a dequantization to float32 with usable constant parameters."""
    call = view.call(expr, DEQUANTIZE)
    found = None if call is None else parameters(view, call)
    if call is None or found is None or dtype_of(call) != "float32":
        return None
    return Dequantized(call.args[0], found)


def dequantize_like(x: Expr, call: Expr) -> Expr:
    """Other integers of the same type, dequantized with the parameters of `call`."""
    return dequantize(x, call.args[1], call.args[2], dtype=dtype_of(call))


def dequantization(view: View, expr: Expr) -> Expr | None:
    """The dequantize call that gives `expr`, perhaps cast to a wider float."""
    cast = view.call(expr, "astype")
    return view.call(expr if cast is None else cast.args[0], DEQUANTIZE)


def obstacle(view: View, expr: Expr, what: str) -> str:
    """Why dequantized() says no to `expr`, which is called `what` ("the data", say)."""
    call = dequantization(view, expr)
    if call is None:
        return f"{what} is not quantized"
    if dtype_of(call) != "float32":
        return f"{what} is dequantized to {dtype_of(call)}"
    scale, zero = view.constant(call.args[1]), view.constant(call.args[2])
    if scale is None or zero is None:
        return f"the scale or zero point of {what} is computed at run time"
    if scale.dtype != np.float32:
        return f"the scale of {what} is of {scale.dtype}"
    return f"a scale of {what} is not a positive number, or far from 1"


def weights_of(view: View, found: Dequantized, channel: int) -> ByteWeights | None:
    """Constant integers less their zero points; None where those differ along other axes than
    `channel`, or the tensor is not constant."""
    array, zero = view.constant(found.x), found.params.zero
    if array is None or along(zero, channel, array.ndim) is None:
        return None
    return byte_weights(array, zero)


def along(values: Array, axis: int, rank: int) -> Array | None:
    """The vector along `axis` that `values`, scalar or of rank `rank`, is; None for other axes."""
    if values.size == 1:
        return values.reshape(1)
    if values.ndim != rank or values.shape[axis] != values.size:
        return None
    return values.reshape(-1)


def int32_shift(values: Array) -> Expr:
    """A constant to be added to int32 sums."""
    return constant(wrapped(np.asarray(values, np.int64)))


def elements(expr: Expr) -> int:
    """How many elements a tensor has."""
    return prod(shape_of(expr))


def integer_of(number: float, params: Parameters, dtype: str) -> int | None:
    """The integer of `dtype` that stands for `number` exactly, if there is one."""
    scale = np.float32(params.scale.reshape(()))
    ratio = number / float(scale)
    if not np.isfinite(ratio):
        return None
    steps = round(ratio)
    bounds = np.iinfo(dtype)
    fits = bounds.min <= steps + params.point <= bounds.max
    return steps + params.point if fits and np.float32(steps) * scale == number else None


def quantized_number(number: float, params: Parameters, limits: tuple[int, int]) -> int:
    """What quantize makes of `number`, infinities included."""
    low, high = limits
    with np.errstate(all="ignore"):
        ratio = np.float32(number) / np.float32(params.scale.reshape(()))
    inside = np.clip(ratio, low - params.point, high - params.point)
    return int(np.round(inside)) + params.point


def dequantized_array(x: Array, scale: Array, zero: Array) -> Array:
    """What dequantize makes of constants, in float32."""
    difference = (x.astype(np.int32) - zero.astype(np.int32)).astype(np.float32)
    with np.errstate(all="ignore"):
        return np.asarray(difference * scale.astype(np.float32))


def quantized_array(x: Array, scale: Array, zero: Array, attrs: Mapping[str, Any]) -> Array:
    """What quantize makes of constants."""
    precision = np.dtype(attrs["precision"])
    with np.errstate(all="ignore"):
        steps = (x.astype(precision) / scale.astype(precision)).astype(np.float32)
    return _rounded(steps, zero, attrs)


def requantized_array(x: Array, multiplier: Array, zero: Array, attrs: Mapping[str, Any]) -> Array:
    """What requantize makes of constants."""
    with np.errstate(all="ignore"):
        steps = x.astype(np.float32) * multiplier.astype(np.float32)
    return _rounded(steps, zero, attrs)


def _rounded(steps: Array, zero: Array, limits: Mapping[str, Any]) -> Array:
    point = zero.astype(np.float32)
    numbers = np.where(np.isnan(steps), -np.inf, steps)
    inside = np.clip(numbers, limits["low"] - point, limits["high"] - point)
    return np.asarray(np.round(inside) + point, zero.dtype)
