"""Recovers activation functions from the pieces in which exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi, sqrt
from typing import Any

from tvm import relax, tirx

from graphopt.ir import Graph
from graphopt.ops import fused
from graphopt.passes.algebra import (
    Polynomial,
    close,
    is_polynomial,
    polynomial,
    scaled_by,
    subproducts,
)
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, is_float, op_name, shape_of


@dataclass(frozen=True)
class Clipped:
    """min(max(x, low), high)."""

    x: Expr
    low: float
    high: float


def _bounds(view: View, expr: Expr) -> Clipped | None:
    """One-sided or two-sided bounds that the call producing `expr` puts on its input."""
    call = view.call(expr, "maximum", "minimum", "nn.relu", "clip")
    return None if call is None else _bounds_of(view, call)


def _bounds_of(view: View, call: Expr) -> Clipped | None:
    kind, x = op_name(call), call.args[0]
    if kind == "nn.relu":
        return Clipped(x, 0.0, inf)
    if kind == "clip":
        return Clipped(x, float(call.args[1].value), float(call.args[2].value))
    bound = view.scalar(call.args[1])
    if bound is None or shape_of(x) != shape_of(call):
        return None
    return Clipped(x, bound, inf) if kind == "maximum" else Clipped(x, -inf, bound)


def _clip(view: View, _var: Expr, value: Expr) -> Clipped | None:
    outer = _bounds_of(view, value) if is_float(value) else None
    if outer is None:
        return None
    inner = _bounds(view, outer.x)
    if inner is not None and view.used_once(outer.x) and inner.low <= outer.high:
        low, high = max(inner.low, outer.low), min(inner.high, outer.high)
        if low <= high:
            return Clipped(inner.x, low, high)
    if op_name(value) in ("maximum", "minimum") and outer.high == inf and outer.low == 0.0:
        return outer
    return outer if op_name(value) == "clip" and (outer.low, outer.high) == (0.0, inf) else None


def clip(x: Expr, low: float, high: float) -> Expr:
    """relax.op.clip, or relu where only negative values are cut."""
    if (low, high) == (0.0, inf):
        return relax.op.nn.relu(x)
    return relax.op.clip(x, tirx.FloatImm("float32", low), tirx.FloatImm("float32", high))


@dataclass(frozen=True)
class HardSigmoid:
    """clip(alpha · x + beta, 0, 1)."""

    x: Expr
    alpha: float
    beta: float


def _saturating_line(view: View, call: Expr, factor: float) -> HardSigmoid | None:
    """factor · clip(a · x + b, 0, 1 / factor) as a hard sigmoid of x."""
    low, high = float(call.args[1].value), float(call.args[2].value)
    if low != 0.0 or not close(high * factor, 1.0):
        return None
    alpha, beta, x = factor, 0.0, call.args[0]
    inner = view.call(x, "add")
    shift = None if inner is None else view.scalar(inner.args[1])
    if inner is not None and shift is not None and shape_of(inner.args[0]) == shape_of(call):
        x, beta = inner.args[0], alpha * shift
    inner = view.call(x, "multiply")
    scale = None if inner is None else view.scalar(inner.args[1])
    if inner is not None and scale is not None and shape_of(inner.args[0]) == shape_of(call):
        x, alpha = inner.args[0], alpha * scale
    return HardSigmoid(x, alpha, beta)


def _hard_sigmoid(view: View, _var: Expr, value: Expr) -> HardSigmoid | None:
    if not is_float(value):
        return None
    if op_name(value) == "clip":
        found = _saturating_line(view, value, 1.0)
        # clip(x, 0, 1) alone is cheaper as it is.
        return None if found is None or found.x.same_as(value.args[0]) else found
    call, factor = view.call(value.args[0], "clip"), view.scalar(value.args[1])
    if call is None or factor is None or shape_of(call) != shape_of(value):
        return None
    return _saturating_line(view, call, factor)


def _has_slope(view: View, found: HardSigmoid) -> str | None:
    return "the slope is zero" if found.alpha == 0.0 else None


@dataclass(frozen=True)
class Gated:
    """coefficient · x · gate(x)."""

    name: str
    x: Expr
    coefficient: float


SQRT_HALF: Polynomial = {1: sqrt(0.5)}
TANH_ARGUMENT: Polynomial = {1: sqrt(2 / pi), 3: sqrt(2 / pi) * 0.044715}


def _gate(view: View, factor: Expr) -> tuple[str, Expr, float, Polynomial] | None:
    """(activation, argument u, multiple a, what u must be in x) if `factor` is a gate.

    The gates are a · sigmoid(u), a · (1 + erf(u)), a · (1 + tanh(u)) and a · hard_sigmoid(u).
    """
    call = view.call(factor, "sigmoid", "graphopt.hard_sigmoid", "clip", "add")
    kind = "" if call is None else op_name(call)
    if call is None:
        return None
    if kind == "sigmoid":
        return "silu", call.args[0], 1.0, {1: 1.0}
    if kind == "graphopt.hard_sigmoid":
        if not close(call.attrs["alpha"], 1 / 6) or not close(call.attrs["beta"], 0.5):
            return None
        return "hard_swish", call.args[0], 1.0, {1: 1.0}
    if kind == "clip":
        high = float(call.args[2].value)
        if float(call.args[1].value) != 0.0 or high <= 0.0:
            return None
        return "hard_swish", call.args[0], high, {1: high / 6, 0: high / 2}
    one = view.scalar(call.args[1])
    scaled = view.call(call.args[0], "erf", "tanh", "multiply")
    half = 1.0
    if scaled is not None and op_name(scaled) == "multiply":
        factor_value = view.scalar(scaled.args[1])
        half = 0.0 if factor_value is None else factor_value
        scaled = view.call(scaled.args[0], "erf", "tanh")
    if scaled is None or one is None or not close(one, half) or half == 0.0:
        return None
    if op_name(scaled) == "erf":
        return "gelu", scaled.args[0], 2 * half, SQRT_HALF
    return "gelu_tanh", scaled.args[0], 2 * half, TANH_ARGUMENT


def _gated(view: View, var: Expr, value: Expr) -> Gated | None:
    if not is_float(value):
        return None
    parts = list(subproducts(view, var))
    for factor in parts:
        gate = _gate(view, factor)
        if gate is None:
            continue
        name, argument, multiple, wanted = gate
        for x in parts:
            if x.same_as(factor) or shape_of(x) != shape_of(value):
                continue
            if not is_polynomial(polynomial(view, argument, x), wanted):
                continue
            scale = scaled_by(view, var, x, factor)
            if scale is not None:
                return Gated(name, x, scale * multiple)
    return None


def _unscaled(_view: View, found: Gated) -> str | None:
    if close(found.coefficient, 1.0):
        return None
    return f"the product is {found.coefficient:g} times {found.name}"


GATED: dict[str, Callable[[Expr], Expr]] = {
    "silu": relax.op.nn.silu,
    "gelu": relax.op.nn.gelu,
    "gelu_tanh": relax.op.nn.gelu_tanh,
    "hard_swish": fused.hard_swish,
}


def _make_gated(_view: View, found: Gated) -> Expr:
    return GATED[found.name](found.x)


def _logistic(view: View, _var: Expr, value: Expr) -> tuple[Expr, Expr] | None:
    """(n, x) of n / (1 + exp(−x))."""
    denominator = view.call(value.args[1], "add")
    exponential = None if denominator is None else view.call(denominator.args[0], "exp")
    if denominator is None or exponential is None or view.scalar(denominator.args[1]) != 1.0:
        return None
    negative = view.call(exponential.args[0], "multiply")
    if negative is None or view.scalar(negative.args[1]) != -1.0:
        return None
    x = negative.args[0]
    return (value.args[0], x) if shape_of(x) == shape_of(value) else None


def _make_logistic(view: View, found: tuple[Expr, Expr]) -> Expr:
    numerator, x = found
    sigmoid = relax.op.sigmoid(x)
    return sigmoid if view.scalar(numerator) == 1.0 else relax.op.multiply(numerator, sigmoid)


@dataclass(frozen=True)
class RecoverActivations:
    """clip, relu, sigmoid, hard_sigmoid, hard_swish, SiLU and both forms of GELU.

    GELU: Hendrycks and Gimpel, 2016; hard-swish: Howard et al., 2019.
    """

    name: str = "recover_activations"

    def run(self, graph: Graph) -> Outcome:
        bounds = ("maximum", "minimum", "clip", "nn.relu")
        rules: tuple[Rule[Any], ...] = (
            Rule("clip", bounds, _clip, lambda _view, c: clip(c.x, c.low, c.high)),
            Rule("sigmoid", ("divide",), _logistic, _make_logistic),
            Rule(
                "hard sigmoid",
                ("clip", "multiply"),
                _hard_sigmoid,
                lambda _view, h: fused.hard_sigmoid(h.x, h.alpha, h.beta),
                _has_slope,
            ),
            Rule("gated activation", ("multiply",), _gated, _make_gated, _unscaled),
        )
        return apply_rules(graph, self.name, rules)
