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
    INT32_MAX,
    INTEGER_PRODUCT,
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
from graphopt.passes.values import Expr, constant, shape_of

_TOO_LONG = "sums of this length may not fit 32 bits"


@dataclass(frozen=True)
class Quantized:
    """A product of which at least one operand is dequantized."""

    call: Expr
    left: Dequantized | None
    right: Dequantized | None


def _match(view: View, _var: Expr, value: Expr) -> Quantized | None:
    left, right = (dequantization(view, arg) for arg in value.args)
    if left is None and right is None:
        return None
    return Quantized(value, *(dequantized(view, arg) for arg in value.args))


def _check(view: View, found: Quantized) -> str | None:
    call, left, right = found.call, found.left, found.right
    if left is None:
        return obstacle(view, call.args[0], "the first operand")
    if right is None:
        return obstacle(view, call.args[1], "the second operand")
    if left.dtype not in BYTES or right.dtype not in BYTES:
        return f"operands of {left.dtype} and {right.dtype} are no bytes"
    if not left.params.per_tensor:
        return "the first operand has more than one scale or zero point"
    if not view.is_constant(right.x):
        return _check_activations(left, right)
    if along(right.params.scale, -1, len(shape_of(right.x))) is None:
        return "the scales of the second operand are not one for each column"
    weights = weights_of(view, right, -1)
    if weights is None:
        return "the zero points of the second operand are not one for each column"
    return None if fits_int32(weights.total, (-2,)) else _TOO_LONG


def _check_activations(left: Dequantized, right: Dequantized) -> str | None:
    if not right.params.per_tensor:
        return "the second operand has more than one scale or zero point"
    depth = shape_of(left.x)[-1]
    return _TOO_LONG if depth * 255 * 255 > INT32_MAX else None


def _rewrite(view: View, found: Quantized) -> Expr:
    left, right = found.left, found.right
    assert left is not None  # checked
    assert right is not None  # checked
    scale = along(right.params.scale, -1, len(shape_of(right.x)))
    assert scale is not None  # checked
    if not view.is_constant(right.x):
        zeros = (left.params.point, right.params.point)
        result = matmul_integer(left.x, right.x, zeros=zeros)
        return rescaled(result, left.params.scale, scale, ())
    a, zero = as_bytes(left.x, left.params.point, "uint8")
    weights = weights_of(view, right, -1)
    assert weights is not None  # checked
    result = matmul_integer(a, constant(weights.integers))
    if weights.rest is not None:
        rows = relax.op.sum(relax.op.astype(a, "int32"), [len(shape_of(left.x)) - 1], keepdims=True)
        result = relax.op.add(result, relax.op.multiply(rows, int32_shift(weights.rest)))
    sums = weights.total.astype(np.int64).sum(axis=-2, keepdims=weights.total.ndim > 2)
    if zero and sums.any():
        result = relax.op.add(result, int32_shift(-zero * sums))
    return rescaled(result, left.params.scale, scale, (-1,))


@dataclass(frozen=True)
class IntegerProducts:
    """dequantize(a) @ dequantize(w) becomes float(a @ w − za·Σw) · sa·sw of the integers.

    The sums of constants are constants. Where both are activations, the product's kernel has the
    zero points. Weights whose zero point is not in the middle leave a rest, which is one more sum,
    of the rows of a.
    """

    name: str = "integer_products"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule(INTEGER_PRODUCT, ("matmul",), _match, _rewrite, _check),
            *after_sums("graphopt.matmul_integer"),
        )
        return apply_rules(graph, self.name, rules)
