"""Convolutions of dequantized data and weights, computed on the integers themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.byte_weights import ByteWeights
from graphopt.ops.quantize import conv_integer
from graphopt.passes.base import Outcome
from graphopt.passes.fold_affine import CONVOLUTIONS, TRANSPOSED
from graphopt.passes.integer_sums import after_sums, fits_int32, rescaled
from graphopt.passes.quantized import (
    BYTES,
    INTEGER_CONVOLUTION,
    Dequantized,
    along,
    dequantization,
    dequantized,
    int32_shift,
    obstacle,
    weights_of,
)
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.signs import as_bytes
from graphopt.passes.values import Array, Expr, constant, ints, op_name, shape_of


@dataclass(frozen=True)
class Quantized:
    """A convolution of which at least one operand is dequantized."""

    call: Expr
    data: Dequantized | None
    weight: Dequantized | None


def _match(view: View, _var: Expr, value: Expr) -> Quantized | None:
    data, weight = (dequantization(view, arg) for arg in value.args)
    if data is None and weight is None:
        return None
    return Quantized(value, *(dequantized(view, arg) for arg in value.args))


def _check(view: View, found: Quantized) -> str | None:
    call, data, weight = found.call, found.data, found.weight
    if op_name(call) in TRANSPOSED:
        return "transposed convolutions have no kernels for integers"
    if data is None:
        return obstacle(view, call.args[0], "the data")
    if weight is None:
        return obstacle(view, call.args[1], "the weight")
    attrs, spatial = call.attrs, "DHW"[5 - len(shape_of(call)) :]
    if attrs.data_layout != "NC" + spatial or attrs.kernel_layout != "OI" + spatial:
        return "the convolution has another layout than NCHW"
    if data.dtype not in BYTES or weight.dtype not in BYTES:
        return f"data of {data.dtype} and weights of {weight.dtype} are no bytes"
    if not data.params.per_tensor:
        return "the data has more than one scale or zero point"
    if not view.is_constant(weight.x):
        return "the weight is computed at run time"
    if along(weight.params.scale, 0, len(shape_of(call))) is None:
        return "the scales of the weight are not one for each filter"
    numbers = weights_of(view, weight, 0)
    if numbers is None:
        return "the zero points of the weight are not one for each filter"
    if not fits_int32(numbers.total, tuple(range(1, numbers.total.ndim))):
        return "sums of this length may not fit 32 bits"
    if numbers.rest is not None and int(attrs.groups) not in (1, numbers.total.shape[0]):
        return "the weight has a zero point, less which it does not fit eight bits, and groups"
    return None


def _rewrite(view: View, found: Quantized) -> Expr:
    call, data, weight = found.call, found.data, found.weight
    assert data is not None  # checked
    assert weight is not None  # checked
    weights = weights_of(view, weight, 0)
    assert weights is not None  # checked
    x, zero = as_bytes(data.x, data.params.point, "uint8")
    rank = weights.total.ndim
    columns = (1, -1, *[1] * (rank - 2))
    result = _sums(call, x, weights.integers, zero)
    if weights.rest is not None:
        result = relax.op.add(result, _rest(call, x, weights, zero))
    sums = weights.total.astype(np.int64).sum(axis=tuple(range(1, rank)))
    if zero and sums.any():
        result = relax.op.add(result, int32_shift((-zero * sums).reshape(columns)))
    scale = along(weight.params.scale, 0, rank)
    assert scale is not None  # checked
    return rescaled(result, data.params.scale, scale, columns)


def _sums(call: Expr, x: Expr, integers: Array, zero: int) -> Expr:
    """The convolution `call` of bytes."""
    return conv_integer(
        x,
        constant(integers),
        strides=ints(call.attrs.strides),
        padding=ints(call.attrs.padding),
        dilation=ints(call.attrs.dilation),
        groups=int(call.attrs.groups),
        pad_value=zero,
    )


def _rest(call: Expr, x: Expr, weights: ByteWeights, zero: int) -> Expr:
    """What the rest of the weights adds: it is one number for each filter, so that it multiplies
    the sums of all data in a window, which are those of one filter for each group."""
    assert weights.rest is not None
    rank, groups = weights.total.ndim, int(call.attrs.groups)
    ones = np.ones((groups, *weights.integers.shape[1:]), np.int8)
    rest = along(weights.rest, 0, rank)
    assert rest is not None  # weights_of
    sums = _sums(call, x, ones, zero)
    return relax.op.multiply(sums, int32_shift(rest.reshape(1, -1, *[1] * (rank - 2))))


@dataclass(frozen=True)
class IntegerConvolutions:
    """conv(dequantize(x), dequantize(w)) becomes float(conv_integer(x, w) − zx·Σw) · sx·sw.

    The int32 sums are exact; their product with the scales is rounded once or twice. A bias behind
    that is a multiple of the scales, as exporters make it, becomes a part of the sums.
    """

    name: str = "integer_convolutions"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule(INTEGER_CONVOLUTION, (*CONVOLUTIONS, *TRANSPOSED), _match, _rewrite, _check),
            *after_sums("graphopt.conv_integer"),
        )
        return apply_rules(graph, self.name, rules)
