"""Activation functions, written with the plain operators that epilogues are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.elementwise import float_unary, is_float, unary
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    normal_axis,
    shape_of,
)

op = relax.op


def _affine(node: NodeContext, x: Expr, scale: float, shift: float) -> Expr:
    if scale != 1.0:
        x = node.emit(op.multiply(x, node.scalar(scale, x)))
    if shift != 0.0:
        x = node.emit(op.add(x, node.scalar(shift, x)))
    return x


def _exp_below_zero(node: NodeContext, x: Expr) -> Expr:
    """exp(min(x, 0)) − 1: the negative half of ELU-like functions, without overflow."""
    below = node.emit(op.minimum(x, node.scalar(0, x)))
    return _affine(node, node.emit(op.exp(below)), 1.0, -1.0)


def _softplus(node: NodeContext, x: Expr) -> Expr:
    """log(1 + e^x) = max(x, 0) + log(1 + e^−|x|), which cannot overflow."""
    decay = node.emit(op.exp(node.emit(op.negative(node.emit(op.abs(x))))))
    tail = node.emit(op.log(_affine(node, decay, 1.0, 1.0)))
    return node.emit(op.add(node.emit(op.nn.relu(x)), tail))


def leaky_relu(node: NodeContext) -> Expr:
    """x where x ≥ 0, else alpha·x."""
    return node.emit(op.nn.leakyrelu(node.input(0), node.float_attr("alpha", 0.01)))


def prelu(node: NodeContext) -> Expr:
    """x where x ≥ 0, else slope·x; the slope broadcasts to x."""
    x, slope = node.input(0), node.input(1)
    if dtype_of(x).startswith("uint"):
        return x
    if not is_float(x):
        scaled = node.emit(op.multiply(x, slope))
        below = node.emit(op.less(x, node.scalar(0, x)))
        return node.emit(op.where(below, scaled, x))
    zero = node.scalar(0, x)
    below = node.emit(op.multiply(slope, node.emit(op.minimum(x, zero))))
    return node.emit(op.add(node.emit(op.maximum(x, zero)), below))


def elu(node: NodeContext) -> Expr:
    """max(x, 0) + alpha·(e^min(x, 0) − 1)."""
    x = node.input(0)
    below = _affine(node, _exp_below_zero(node, x), node.float_attr("alpha", 1.0), 0.0)
    return node.emit(op.add(node.emit(op.nn.relu(x)), below))


def selu(node: NodeContext) -> Expr:
    """gamma·(max(x, 0) + alpha·(e^min(x, 0) − 1))."""
    x = node.input(0)
    alpha = node.float_attr("alpha", 1.67326319217681884765625)
    gamma = node.float_attr("gamma", 1.05070102214813232421875)
    below = _affine(node, _exp_below_zero(node, x), alpha, 0.0)
    return _affine(node, node.emit(op.add(node.emit(op.nn.relu(x)), below)), gamma, 0.0)


def celu(node: NodeContext) -> Expr:
    """max(x, 0) + alpha·(e^(min(x, 0)/alpha) − 1)."""
    x, alpha = node.input(0), node.float_attr("alpha", 1.0)
    if alpha == 0:
        raise Unsupported("alpha is 0")
    below = _exp_below_zero(node, _affine(node, x, 1.0 / alpha, 0.0))
    if alpha < 0:
        raise Unsupported("a negative alpha is not supported")
    return node.emit(op.add(node.emit(op.nn.relu(x)), _affine(node, below, alpha, 0.0)))


def hard_sigmoid(node: NodeContext) -> Expr:
    """clip(alpha·x + beta, 0, 1)."""
    x = _affine(node, node.input(0), node.float_attr("alpha", 0.2), node.float_attr("beta", 0.5))
    return node.emit(op.clip(x, 0, 1))


def hard_swish(node: NodeContext) -> Expr:
    """x·clip(x/6 + 0.5, 0, 1)."""
    x = node.input(0)
    return node.emit(op.multiply(x, node.emit(op.clip(_affine(node, x, 1 / 6, 0.5), 0, 1))))


def swish(node: NodeContext) -> Expr:
    """x·sigmoid(alpha·x)."""
    x = node.input(0)
    gate = node.emit(op.sigmoid(_affine(node, x, node.float_attr("alpha", 1.0), 0.0)))
    return node.emit(op.multiply(x, gate))


def softplus(node: NodeContext) -> Expr:
    """log(1 + e^x)."""
    return _softplus(node, node.input(0))


def softsign(node: NodeContext) -> Expr:
    """x / (1 + |x|)."""
    x = node.input(0)
    return node.emit(op.divide(x, _affine(node, node.emit(op.abs(x)), 1.0, 1.0)))


def mish(node: NodeContext) -> Expr:
    """x·tanh(softplus(x)) = x·n/(n + 2) with n = e^x·(e^x + 2).

    Unlike the logarithm this keeps small results exact; from x = 20 on the ratio is 1.
    """
    x = node.input(0)
    if dtype_of(x) != "float32":
        return node.emit(op.multiply(x, node.emit(op.tanh(_softplus(node, x)))))
    e = node.emit(op.exp(node.emit(op.minimum(x, node.scalar(20, x)))))
    n = node.emit(op.multiply(e, _affine(node, e, 1.0, 2.0)))
    ratio = node.emit(op.divide(n, _affine(node, n, 1.0, 2.0)))
    return node.emit(op.multiply(x, ratio))


def thresholded_relu(node: NodeContext) -> Expr:
    """x where x > alpha, else 0."""
    x = node.input(0)
    above = node.emit(op.greater(x, node.scalar(node.float_attr("alpha", 1.0), x)))
    return node.emit(op.where(above, x, node.scalar(0, x)))


def shrink(node: NodeContext) -> Expr:
    """x ∓ bias outside [−lambd, lambd], 0 inside."""
    x = node.input(0)
    limit, bias = node.float_attr("lambd", 0.5), node.float_attr("bias")
    zero = node.scalar(0, x)
    low = node.emit(op.less(x, node.scalar(-limit, x)))
    high = node.emit(op.greater(x, node.scalar(limit, x)))
    up = node.emit(op.where(low, _affine(node, x, 1.0, bias), zero))
    return node.emit(op.where(high, _affine(node, x, 1.0, -bias), up))


def gelu_exact(node: NodeContext, x: Expr) -> Expr:
    """x/2·(1 + erf(x/√2))."""
    inner = node.emit(op.erf(_affine(node, x, 1 / math.sqrt(2), 0.0)))
    return _affine(node, node.emit(op.multiply(x, _affine(node, inner, 1.0, 1.0))), 0.5, 0.0)


def gelu(node: NodeContext) -> Expr:
    """Gelu, exact or by its tanh approximation."""
    x, approximate = node.input(0), node.string_attr("approximate", "none")
    if approximate == "none":
        return gelu_exact(node, x)
    if approximate != "tanh":
        raise Unsupported(f"approximate='{approximate}' is unknown")
    cube = node.emit(op.multiply(node.emit(op.multiply(x, x)), x))
    sum_ = node.emit(op.add(x, _affine(node, cube, 0.044715, 0.0)))
    inner = node.emit(op.tanh(_affine(node, sum_, math.sqrt(2 / math.pi), 0.0)))
    return _affine(node, node.emit(op.multiply(x, _affine(node, inner, 1.0, 1.0))), 0.5, 0.0)


def _along_axis(node: NodeContext, function: Callable[[Expr, int], Expr]) -> Expr:
    """Softmax and its kin: before operator set 13 they flatten all axes from `axis` on."""
    x = node.input(0)
    shape = shape_of(x)
    axis = normal_axis(node.int_attr("axis", -1 if node.opset >= 13 else 1), len(shape))
    if node.opset >= 13 or axis == len(shape) - 1 or math.prod(shape[axis + 1 :]) == 1:
        return function(x, axis)
    flat = node.reshape(x, (math.prod(shape[:axis]), math.prod(shape[axis:])))
    return node.reshape(function(flat, 1), shape)


def softmax(node: NodeContext) -> Expr:
    """Softmax along an axis."""
    return _along_axis(node, lambda x, axis: node.emit(op.nn.softmax(x, axis)))


def log_softmax(node: NodeContext) -> Expr:
    """Logarithm of softmax along an axis."""
    return _along_axis(node, lambda x, axis: node.emit(op.nn.log_softmax(x, axis)))


def hardmax(node: NodeContext) -> Expr:
    """1 at the first maximum along an axis, 0 elsewhere."""

    def first_maximum(x: Expr, axis: int) -> Expr:
        best = node.emit(op.argmax(x, axis, True))
        shape = [1] * len(shape_of(x))
        shape[axis] = shape_of(x)[axis]
        positions = constant(np.arange(shape[axis]).reshape(shape), dtype_of(best))
        return node.cast(node.emit(op.equal(positions, best)), dtype_of(x))

    return _along_axis(node, first_maximum)


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Relu"): unary(op.nn.relu),
    ("", "Sigmoid"): float_unary(op.sigmoid),
    ("", "Tanh"): float_unary(op.tanh),
    ("", "LeakyRelu"): leaky_relu,
    ("", "PRelu"): prelu,
    ("", "Elu"): elu,
    ("", "Selu"): selu,
    ("", "Celu"): celu,
    ("", "HardSigmoid"): hard_sigmoid,
    ("", "HardSwish"): hard_swish,
    ("", "Swish"): swish,
    ("", "Softplus"): softplus,
    ("", "Softsign"): softsign,
    ("", "Mish"): mish,
    ("", "ThresholdedRelu"): thresholded_relu,
    ("", "Shrink"): shrink,
    ("", "Gelu"): gelu,
    ("", "Softmax"): softmax,
    ("", "LogSoftmax"): log_softmax,
    ("", "Hardmax"): hardmax,
}
