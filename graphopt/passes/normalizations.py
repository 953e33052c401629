"""Recovers softmax, layer normalisation and RMS normalisation from reductions and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.reductions import mean_of
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import (
    Array,
    Expr,
    constant,
    dtype_of,
    ints,
    is_float,
    op_name,
    reduced_axes,
    shape_of,
)


@dataclass(frozen=True)
class Softmax:
    """exp(x − max(x)) / sum(exp(x − max(x))) over `axes`."""

    x: Expr
    axes: tuple[int, ...]


def _softmax(view: View, _var: Expr, value: Expr) -> Softmax | None:
    numerator, denominator = value.args
    exponential = view.call(numerator, "exp")
    total = view.call(denominator, "sum")
    if exponential is None or total is None or not total.args[0].same_as(numerator):
        return None
    if not total.attrs.keepdims:
        return None
    axes = reduced_axes(total)
    x = exponential.args[0]
    shifted = view.call(x, "subtract")
    largest = None if shifted is None else view.call(shifted.args[1], "max")
    if (
        shifted is not None
        and largest is not None
        and largest.args[0].same_as(shifted.args[0])
        and largest.attrs.keepdims
        and reduced_axes(largest) == axes
    ):
        # Subtracting anything constant along the axis leaves softmax as it is.
        x = shifted.args[0]
    return Softmax(x, axes)


def _single_axis(_view: View, found: Softmax) -> str | None:
    return None if len(found.axes) == 1 else f"it normalises over {len(found.axes)} axes at once"


def _make_softmax(_view: View, found: Softmax) -> Expr:
    return relax.op.nn.softmax(found.x, axis=found.axes[0])


@dataclass(frozen=True)
class Normalized:
    """x / sqrt(mean(x²) + epsilon), or the same of x − mean(x) where `centred`."""

    x: Expr
    axes: tuple[int, ...]
    epsilon: float
    centred: bool
    result: tuple[int, ...]


def _core(view: View, _var: Expr, value: Expr) -> Normalized | None:
    if not is_float(value):
        return None
    left, right = value.args
    if op_name(value) == "divide":
        return _normalized(view, value, left, view.call(right, "sqrt"))
    found = _normalized(view, value, left, view.call(right, "rsqrt"))
    return found or _normalized(view, value, right, view.call(left, "rsqrt"))


def _normalized(view: View, value: Expr, x: Expr, root: Expr | None) -> Normalized | None:
    variance = None if root is None else view.call(root.args[0], "add")
    epsilon = None if variance is None else view.scalar(variance.args[1])
    mean = None if variance is None else mean_of(view, variance.args[0])
    square = None if mean is None else view.call(mean[0], "multiply")
    if square is None or mean is None or epsilon is None:
        return None
    if not isinstance(x, relax.Var) or not all(arg.same_as(x) for arg in square.args):
        return None
    axes = mean[1]
    centre = view.call(x, "subtract")
    average = None if centre is None else mean_of(view, centre.args[1])
    if centre is not None and average is not None and average[0].same_as(centre.args[0]):
        if average[1] != axes:
            return None
        return Normalized(centre.args[0], axes, epsilon, True, shape_of(value))
    return Normalized(x, axes, epsilon, False, shape_of(value))


def _trailing(_view: View, found: Normalized) -> str | None:
    rank = len(shape_of(found.x))
    if shape_of(found.x) != found.result:
        return "the result is broadcast to another shape"
    if found.axes != tuple(range(rank - len(found.axes), rank)):
        return "the normalised axes are not the trailing ones"
    return None


def _make_norm(_view: View, found: Normalized) -> Expr:
    dims = tuple(shape_of(found.x)[axis] for axis in found.axes)
    dtype = dtype_of(found.x)
    ones, axes = constant(np.ones(dims, dtype)), list(found.axes)
    if not found.centred:
        return relax.op.nn.rms_norm(found.x, ones, axes, found.epsilon)
    zeros = constant(np.zeros(dims, dtype))
    return relax.op.nn.layer_norm(found.x, ones, zeros, axes, found.epsilon)


@dataclass(frozen=True)
class Affine:
    """norm(x) · scale or norm(x) + shift, with a constant along the normalised axes."""

    norm: Expr
    link: Expr
    gamma: Array
    beta: Array | None  # None for RMS normalisation
    operand: Array
    adds: bool


def _affine(view: View, _var: Expr, value: Expr) -> Affine | None:
    link, right = value.args
    norm = view.call(link, "nn.layer_norm", "nn.rms_norm")
    operand = view.constant(right)
    if norm is None or operand is None or shape_of(norm) != shape_of(value):
        return None
    gamma = view.constant(norm.args[1])
    if gamma is None:
        return None
    if op_name(norm) == "nn.rms_norm":
        adds = op_name(value) == "add"
        return None if adds else Affine(norm, link, gamma, None, operand, False)
    beta = view.constant(norm.args[2])
    if beta is None or not (norm.attrs.center and norm.attrs.scale):
        return None
    return Affine(norm, link, gamma, beta, operand, op_name(value) == "add")


def _foldable(view: View, found: Affine) -> str | None:
    if not view.used_once(found.link):
        return "the normalised value is used elsewhere"
    dims = found.operand.shape
    while dims and dims[0] == 1:
        dims = dims[1:]
    if len(dims) > found.gamma.ndim:
        return "the factor or summand varies along other axes than the normalised ones"
    return None


def _fold(_view: View, found: Affine) -> Expr:
    gamma, beta = found.gamma, found.beta
    dims = found.operand.shape[-gamma.ndim :] if found.operand.ndim else ()
    operand = np.broadcast_to(found.operand.reshape(dims), gamma.shape)
    if found.adds and beta is not None:
        found = replace(found, beta=beta + operand)
    else:
        scaled = None if beta is None else beta * operand
        found = replace(found, gamma=gamma * operand, beta=scaled)
    axes, epsilon = list(ints(found.norm.attrs.axes)), float(found.norm.attrs.epsilon)
    x = found.norm.args[0]
    if found.beta is None:
        return relax.op.nn.rms_norm(x, constant(found.gamma), axes, epsilon)
    return relax.op.nn.layer_norm(x, constant(found.gamma), constant(found.beta), axes, epsilon)


@dataclass(frozen=True)
class RecoverNormalizations:
    """softmax, layer_norm (Ba et al., 2016) and rms_norm (Zhang and Sennrich, 2019).

    Factors and summands that follow a normalisation are folded into its gamma and beta.
    """

    name: str = "recover_normalizations"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule("softmax", ("divide",), _softmax, _make_softmax, _single_axis),
            Rule("normalisation", ("divide", "multiply"), _core, _make_norm, _trailing),
            Rule("affine after norm", ("multiply", "add"), _affine, _fold, _foldable),
        )
        return apply_rules(graph, self.name, rules)
