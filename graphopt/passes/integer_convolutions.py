"""Convolutions of dequantized data and weights, computed on the integers themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.quantize import conv_integer
from graphopt.passes.base import Outcome
from graphopt.passes.fold_affine import CONVOLUTIONS, TRANSPOSED
from graphopt.passes.integer_sums import after_sums, fits_int32, rescaled
from graphopt.passes.quantized import (
    BYTES,
    INTEGER_CONVOLUTION,
    Dequantized,
    along,
    centred,
    dequantization,
    dequantized,
    int32_shift,
    obstacle,
)
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.signs import as_bytes
from graphopt.passes.values import Expr, constant, ints, op_name, shape_of


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
    array = centred(view, weight)
    if array is None:
        return "the weight has a zero point, less which it does not fit eight bits"
    if not fits_int32(array, tuple(range(1, array.ndim))):
        return "sums of this length may not fit 32 bits"
    return None


def _rewrite(view: View, found: Quantized) -> Expr:
    call, data, weight = found.call, found.data, found.weight
    assert data is not None  # checked
    assert weight is not None  # checked
    array = centred(view, weight)
    assert array is not None  # checked
    x, zero = as_bytes(data.x, data.params.point, "uint8")
    rank = array.ndim
    columns = (1, -1, *[1] * (rank - 2))
    result = conv_integer(
        x,
        constant(array),
        strides=ints(call.attrs.strides),
        padding=ints(call.attrs.padding),
        dilation=ints(call.attrs.dilation),
        groups=int(call.attrs.groups),
        pad_value=zero,
    )
    sums = array.astype(np.int64).sum(axis=tuple(range(1, rank)))
    if zero and sums.any():
        result = relax.op.add(result, int32_shift((-zero * sums).reshape(columns)))
    scale = along(weight.params.scale, 0, rank)
    assert scale is not None  # checked
    return rescaled(result, data.params.scale, scale, columns)


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
