"""Elementwise operators: arithmetic, comparison, logic, casts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    shape_of,
)

op = relax.op


def is_float(value: Expr) -> bool:
    """Whether the element type is a floating-point type."""
    return np.dtype(dtype_of(value)).kind == "f"


def unary(function: Callable[[Expr], Expr]) -> Callable[[NodeContext], Expr]:
    """Converter of an operator with one input and no attributes."""
    return lambda node: node.emit(function(node.input(0)))


def float_unary(function: Callable[[Expr], Expr]) -> Callable[[NodeContext], Expr]:
    """As `unary`, for functions that are defined on floats only."""

    def convert(node: NodeContext) -> Expr:
        if not is_float(node.input(0)):
            raise Unsupported(f"{dtype_of(node.input(0))} inputs are not supported")
        return node.emit(function(node.input(0)))

    return convert


def binary(function: Callable[[Expr, Expr], Expr]) -> Callable[[NodeContext], Expr]:
    """Converter of a broadcasting operator with two inputs and no attributes."""
    return lambda node: node.emit(function(node.input(0), node.input(1)))


def variadic(function: Callable[[Expr, Expr], Expr]) -> Callable[[NodeContext], Expr]:
    """Converter of an operator that combines any number of inputs from the left."""
    return lambda node: reduce(lambda a, b: node.emit(function(a, b)), node.inputs())


def mean(node: NodeContext) -> Expr:
    """Mean of all inputs."""
    total = variadic(op.add)(node)
    return node.emit(op.multiply(total, node.scalar(1.0 / len(node), total)))


def power(node: NodeContext) -> Expr:
    """x^y; small constant exponents become multiplications, which are exact and fast."""
    x, exponent = node.input(0), node.array(1)
    if exponent is not None and exponent.size == 1 and exponent.ndim <= len(shape_of(x)):
        value = float(exponent.reshape(-1)[0])
        if value == 1.0:
            return x
        if value == 2.0:
            return node.emit(op.multiply(x, x))
        if value == 3.0:
            return node.emit(op.multiply(node.emit(op.multiply(x, x)), x))
        if value == 0.5 and is_float(x):
            return node.emit(op.sqrt(x))
        if value == -1.0 and is_float(x):
            return node.emit(op.divide(node.scalar(1, x), x))
    if is_float(x):
        return _float_power(node, x, exponent)
    return _integer_power(node, x, node.input(1))


def _float_power(node: NodeContext, x: Expr, exponent: Any) -> Expr:
    dtype = dtype_of(x)
    if exponent is not None:
        return node.emit(op.power(x, constant(exponent, dtype)))
    y = node.input(1)
    # A float64 exponent means more than its nearest float32 does.
    wide = "float64" if dtype_of(y) == "float64" else dtype
    return node.cast(node.emit(op.power(node.cast(x, wide), node.cast(y, wide))), dtype)


def _integer_power(node: NodeContext, x: Expr, y: Expr) -> Expr:
    """Integers to an integer power are exact, to a float power rounded as float64 towards zero."""
    dtype = dtype_of(x)
    if is_float(y):
        result = op.power(node.cast(x, "float64"), node.cast(y, "float64"))
        return node.cast(node.emit(result), dtype)
    same = dtype == dtype_of(y)
    wide = dtype if same else "int64"
    result = op.power(node.cast(x, wide), node.cast(y, wide))
    return node.cast(node.emit(result), dtype)


def reciprocal(node: NodeContext) -> Expr:
    """1/x."""
    x = node.input(0)
    return node.emit(op.divide(node.scalar(1, x), x))


def modulo(node: NodeContext) -> Expr:
    """Mod: the sign of the divisor (fmod=0) or of the dividend (fmod=1)."""
    function = op.mod if node.flag_attr("fmod") else op.floor_mod
    return node.emit(function(node.input(0), node.input(1)))


def clip(node: NodeContext) -> Expr:
    """Clip to [min, max]; a bound may be missing."""
    x = node.input(0)
    if node.opset < 11:
        limit = float(np.finfo(np.float32).max)
        low_value, high_value = node.float_attr("min", -limit), node.float_attr("max", limit)
        low = None if low_value <= -limit else np.float32(low_value)
        high = None if high_value >= limit else np.float32(high_value)
        return _clip_constant(node, x, low, high)
    low_known, high_known = node.array(1), node.array(2)
    if (node.has(1) and low_known is None) or (node.has(2) and high_known is None):
        if node.has(1):
            x = node.emit(op.maximum(x, node.input(1)))
        return node.emit(op.minimum(x, node.input(2))) if node.has(2) else x
    return _clip_constant(node, x, low_known, high_known)


def _clip_constant(node: NodeContext, x: Expr, low: Any, high: Any) -> Expr:
    if low is None and high is None:
        return x
    if high is None:
        return node.emit(op.maximum(x, node.scalar(np.asarray(low).item(), x)))
    if low is None:
        return node.emit(op.minimum(x, node.scalar(np.asarray(high).item(), x)))
    bottom, top = np.asarray(low).item(), np.asarray(high).item()
    if bottom > top or not is_float(x):  # ONNX: max wins; Relax's clip takes float bounds
        x = node.emit(op.maximum(x, node.scalar(bottom, x)))
        return node.emit(op.minimum(x, node.scalar(top, x)))
    return node.emit(op.clip(x, bottom, top))


def is_inf(node: NodeContext) -> Expr:
    """IsInf with either sign switched off."""
    x = node.input(0)
    positive, negative = node.flag_attr("detect_positive", 1), node.flag_attr("detect_negative", 1)
    if positive and negative:
        return node.emit(op.isinf(x))
    if positive:
        return node.emit(op.equal(x, node.scalar(np.inf, x)))
    if negative:
        return node.emit(op.equal(x, node.scalar(-np.inf, x)))
    return constant(np.zeros(shape_of(x), bool))


def bit_shift(node: NodeContext) -> Expr:
    """BitShift; amounts that are negative or at least the width leave nothing but the sign."""
    direction = node.string_attr("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise Unsupported(f"direction '{direction}' is unknown")
    shift = op.left_shift if direction == "LEFT" else op.right_shift
    return node.emit(shift(node.input(0), node.input(1)))


def where(node: NodeContext) -> Expr:
    """Select elementwise, with broadcasting of all three inputs."""
    return node.emit(op.where(node.input(0), node.input(1), node.input(2)))


def dropout(node: NodeContext) -> tuple[Expr, ...]:
    """Dropout at inference: the identity, and a mask of ones."""
    node.ignore("ratio", "seed", "is_test")
    x = node.input(0)
    if node.has(2):
        ratio = node.array(1)
        training = bool(node.known(2, "training_mode").reshape(-1)[0])
        if training and (ratio is None or float(ratio.reshape(-1)[0]) != 0):
            raise Unsupported("Dropout in training mode is random", "Export with model.eval().")
    mask = constant(np.ones(shape_of(x), bool)) if node.wants(1) else None
    return (x, mask)


def _bool_aware(name: str, function: Callable[[Expr, Expr], Expr]) -> Callable[[NodeContext], Expr]:
    # TVM compares booleans as it does integers for equality only.
    def convert(node: NodeContext) -> Expr:
        a, b = node.input(0), node.input(1)
        if dtype_of(a) == "bool":
            raise Unsupported(f"{name} of booleans is not supported")
        return node.emit(function(a, b))

    return convert


def equal(node: NodeContext) -> Expr:
    """a == b; booleans as well."""
    a, b = node.input(0), node.input(1)
    if dtype_of(a) == "bool":
        return node.emit(op.logical_not(node.emit(op.logical_xor(a, b))))
    return node.emit(op.equal(a, b))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Abs"): unary(op.abs),
    ("", "Neg"): unary(op.negative),
    ("", "Sign"): unary(op.sign),
    ("", "Floor"): float_unary(op.floor),
    ("", "Ceil"): float_unary(op.ceil),
    ("", "Round"): float_unary(op.round),
    ("", "Sqrt"): float_unary(op.sqrt),
    ("", "Exp"): float_unary(op.exp),
    ("", "Log"): float_unary(op.log),
    ("", "Erf"): float_unary(op.erf),
    ("", "Sin"): float_unary(op.sin),
    ("", "Cos"): float_unary(op.cos),
    ("", "Tan"): float_unary(op.tan),
    ("", "Asin"): float_unary(op.asin),
    ("", "Acos"): float_unary(op.acos),
    ("", "Atan"): float_unary(op.atan),
    ("", "Sinh"): float_unary(op.sinh),
    ("", "Cosh"): float_unary(op.cosh),
    ("", "Asinh"): float_unary(op.asinh),
    ("", "Acosh"): float_unary(op.acosh),
    ("", "Atanh"): float_unary(op.atanh),
    ("", "Not"): unary(op.logical_not),
    ("", "BitwiseNot"): unary(op.bitwise_not),
    ("", "IsNaN"): unary(op.isnan),
    ("", "IsInf"): is_inf,
    ("", "Reciprocal"): reciprocal,
    ("", "Add"): binary(op.add),
    ("", "Sub"): binary(op.subtract),
    ("", "Mul"): binary(op.multiply),
    ("", "Div"): binary(op.divide),
    ("", "Pow"): power,
    ("", "Mod"): modulo,
    ("", "Equal"): equal,
    ("", "Less"): _bool_aware("Less", op.less),
    ("", "LessOrEqual"): _bool_aware("LessOrEqual", op.less_equal),
    ("", "Greater"): _bool_aware("Greater", op.greater),
    ("", "GreaterOrEqual"): _bool_aware("GreaterOrEqual", op.greater_equal),
    ("", "And"): binary(op.logical_and),
    ("", "Or"): binary(op.logical_or),
    ("", "Xor"): binary(op.logical_xor),
    ("", "BitwiseAnd"): binary(op.bitwise_and),
    ("", "BitwiseOr"): binary(op.bitwise_or),
    ("", "BitwiseXor"): binary(op.bitwise_xor),
    ("", "BitShift"): bit_shift,
    ("", "Sum"): variadic(op.add),
    ("", "Mean"): mean,
    ("", "Max"): variadic(op.maximum),
    ("", "Min"): variadic(op.minimum),
    ("", "Clip"): clip,
    ("", "Where"): where,
    ("", "Dropout"): dropout,
}
