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
    centred,
    dequantization,
    dequantized,
    int32_shift,
    obstacle,
)
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.signs import as_bytes
from graphopt.passes.values import Expr, constant, shape_of

_FEWEST = 8
"""Rows or columns of a result; sums over operands are that many times less work."""
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
    array = centred(view, right)
    if array is None:
        return "the second operand has a zero point, less which it does not fit eight bits"
    return None if fits_int32(array, (-2,)) else _TOO_LONG


def _check_activations(left: Dequantized, right: Dequantized) -> str | None:
    if not right.params.per_tensor:
        return "the second operand has more than one scale or zero point"
    *_, rows, depth = shape_of(left.x)
    if depth * 255 * 255 > INT32_MAX:
        return _TOO_LONG
    zero, other = _points(left, right)
    if (zero and rows < _FEWEST) or (other and shape_of(right.x)[-1] < _FEWEST):
        return "sums for the zero points would cost as much as the product"
    return None


def _points(left: Dequantized, right: Dequantized) -> tuple[int, int]:
    """The zero points of operands as uint8 and int8."""
    return (
        left.params.point + (128 if left.dtype == "int8" else 0),
        right.params.point - (128 if right.dtype == "uint8" else 0),
    )


def _rewrite(view: View, found: Quantized) -> Expr:
    left, right = found.left, found.right
    assert left is not None  # checked
    assert right is not None  # checked
    a, zero = as_bytes(left.x, left.params.point, "uint8")
    scale = along(right.params.scale, -1, len(shape_of(right.x)))
    assert scale is not None  # checked
    if not view.is_constant(right.x):
        return rescaled(_activations(a, zero, left, right), left.params.scale, scale, ())
    array = centred(view, right)
    assert array is not None  # checked
    result = matmul_integer(a, constant(array))
    sums = array.astype(np.int64).sum(axis=-2, keepdims=array.ndim > 2)
    if zero and sums.any():
        result = relax.op.add(result, int32_shift(-zero * sums))
    return rescaled(result, left.params.scale, scale, (-1,))


def _activations(a: Expr, zero: int, left: Dequantized, right: Dequantized) -> Expr:
    """(a − zero) @ (b − other) as a @ b − other·Σa − zero·Σb + K·zero·other."""
    b, other = as_bytes(right.x, right.params.point, "int8")
    result = matmul_integer(a, b)
    if other:
        rows = _times(_sums(a, shape_of(left.x), -1), -other)
        if zero:
            rows = relax.op.add(rows, _integer(shape_of(left.x)[-1] * zero * other))
        result = relax.op.add(result, rows)
    if zero:
        result = relax.op.add(result, _times(_sums(b, shape_of(right.x), -2), -zero))
    return result


def _sums(x: Expr, shape: tuple[int, ...], axis: int) -> Expr:
    wide = relax.op.astype(x, "int32")
    return relax.op.sum(wide, [len(shape) + axis], keepdims=True)


def _times(x: Expr, factor: int) -> Expr:
    return relax.op.multiply(x, _integer(factor))


def _integer(value: int) -> Expr:
    return constant(np.asarray(value, np.int32))


@dataclass(frozen=True)
class IntegerProducts:
    """dequantize(a) @ dequantize(w) becomes float(a @ w − za·Σw) · sa·sw of the integers.

    The sums of constants are constants. Those of an activation that meets a zero point of the
    other operand are one more reduction, of bytes.
    """

    name: str = "integer_products"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule(INTEGER_PRODUCT, ("matmul",), _match, _rewrite, _check),
            *after_sums("graphopt.matmul_integer"),
        )
        return apply_rules(graph, self.name, rules)
