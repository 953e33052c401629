"""Matrix products of dequantized operands, computed on the integers themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.quantize import matmul_integer
from graphopt.passes.base import Outcome
from graphopt.passes.integer_sums import after_sums, fits_int32, rescaled
from graphopt.passes.quantized import (
    BYTES,
    DEQUANTIZE,
    Dequantized,
    along,
    centred,
    dequantized,
    int32_shift,
    obstacle,
)
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.signs import as_unsigned
from graphopt.passes.values import Expr, constant, shape_of


@dataclass(frozen=True)
class Quantized:
    """A product of which at least one operand is dequantized."""

    call: Expr
    data: Dequantized | None
    weight: Dequantized | None


def _match(view: View, _var: Expr, value: Expr) -> Quantized | None:
    left, right = (view.call(arg, DEQUANTIZE) for arg in value.args)
    if left is None and right is None:
        return None
    return Quantized(value, *(dequantized(view, arg) for arg in value.args))


def _check(view: View, found: Quantized) -> str | None:
    call, data, weight = found.call, found.data, found.weight
    if data is None:
        return obstacle(view, call.args[0], "the first operand")
    if weight is None:
        return obstacle(view, call.args[1], "the second operand")
    if data.dtype not in BYTES or weight.dtype not in BYTES:
        return f"operands of {data.dtype} and {weight.dtype} are no bytes"
    if not data.params.per_tensor:
        return "the first operand has more than one scale or zero point"
    if not view.is_constant(weight.x):
        return "the second operand is computed at run time"
    if along(weight.params.scale, -1, len(shape_of(weight.x))) is None:
        return "the scales of the second operand are not one for each column"
    array = centred(view, weight)
    if array is None:
        return "the second operand has a zero point, less which it does not fit eight bits"
    if not fits_int32(array, (-2,)):
        return "sums of this length may not fit 32 bits"
    return None


def _rewrite(view: View, found: Quantized) -> Expr:
    data, weight = found.data, found.weight
    assert data is not None  # checked
    assert weight is not None  # checked
    array = centred(view, weight)
    scale = along(weight.params.scale, -1, len(shape_of(weight.x)))
    assert array is not None  # checked
    assert scale is not None  # checked
    x, zero = as_unsigned(data.x, data.params.point)
    result = matmul_integer(x, constant(array))
    sums = array.astype(np.int64).sum(axis=-2, keepdims=array.ndim > 2)
    if zero and sums.any():
        result = relax.op.add(result, int32_shift(-zero * sums))
    return rescaled(result, data.params.scale, scale, (-1,))


@dataclass(frozen=True)
class IntegerProducts:
    """dequantize(a) @ dequantize(w) becomes float(a @ w − za·Σw) · sa·sw of the integers."""

    name: str = "integer_products"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule("integer product", ("matmul",), _match, _rewrite, _check),
            *after_sums("graphopt.matmul_integer"),
        )
        return apply_rules(graph, self.name, rules)
