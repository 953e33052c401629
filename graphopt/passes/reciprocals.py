"""Quantizations behind integer sums multiply by the reciprocal of their scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.base import attributes
from graphopt.ops.quantize import requantize
from graphopt.passes.base import Outcome
from graphopt.passes.quantized import INTEGER_ANCHORS, QUANTIZE, REQUANTIZE, parameters
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import (
    ELEMENTWISE,
    Array,
    Expr,
    constant,
    dtype_of,
    op_name,
    shape_of,
)

_LONGEST = 24  # bindings between sums and quantization; longer chains are several kernels


@dataclass(frozen=True)
class Scaled:
    """A quantize or requantize call of `x` times `factor`."""

    call: Expr
    x: Expr
    factor: Array


def _behind_sums(view: View, expr: Expr) -> bool:
    """Whether `expr` comes of integer sums by float arithmetic alone."""
    pending = [expr]
    for _ in range(_LONGEST):
        if not pending:
            return False
        current = pending.pop()
        cast = view.call(current, "astype")
        if cast is not None and _is_sums(view, cast.args[0]):
            return True
        call = view.call(current, *ELEMENTWISE)
        if call is not None:
            pending.extend(arg for arg in call.args if isinstance(arg, relax.Var))
    return False


def _is_sums(view: View, expr: Expr) -> bool:
    """Whether `expr` is an integer product or convolution, with corrections or a bias added."""
    call = view.call(expr, "add", *INTEGER_ANCHORS)
    while call is not None and op_name(call) == "add":
        call = view.call(call.args[0], "add", *INTEGER_ANCHORS)
    return call is not None


def _quantized(view: View, _var: Expr, value: Expr) -> Scaled | None:
    params, attrs = parameters(view, value), attributes(value)
    if params is None or attrs["precision"] != "float32" or dtype_of(value.args[0]) != "float32":
        return None
    inverse = (1.0 / params.scale.astype(np.float64)).astype(np.float32)
    return Scaled(value, value.args[0], inverse)


def _worth(view: View, found: Scaled) -> str | None:
    if not _behind_sums(view, found.x):
        return "no integer sums are in front: ties are common, and a rounded reciprocal breaks them"
    return None


def _multiplied(view: View, _var: Expr, value: Expr) -> Scaled | None:
    multiplier = view.constant(value.args[1])
    call = view.call(value.args[0], "multiply")
    factor = None if call is None else view.constant(call.args[1])
    if call is None or factor is None or multiplier is None:
        return None
    if dtype_of(call) != "float32" or shape_of(call.args[0]) != shape_of(call):
        return None
    product = factor.astype(np.float64) * multiplier.astype(np.float64)
    return Scaled(value, call.args[0], np.asarray(product.astype(np.float32)))


def _mergeable(view: View, found: Scaled) -> str | None:
    if not view.used_once(found.call.args[0]):
        return "the product is used elsewhere"
    tiny = np.finfo(np.float32).tiny
    if not (np.isfinite(found.factor) & (np.abs(found.factor) >= tiny)).all():
        return "the product of the factors is out of range"
    return None


def _of_integers(view: View, _var: Expr, value: Expr) -> Scaled | None:
    cast, factor = view.call(value.args[0], "astype"), view.constant(value.args[1])
    if cast is None or factor is None or dtype_of(cast.args[0]) != "int32":
        return None
    return Scaled(value, cast.args[0], factor)


def _requantize(_view: View, found: Scaled) -> Expr:
    attrs, factor, rank = attributes(found.call), found.factor, len(shape_of(found.call))
    if factor.ndim:
        factor = factor.reshape((1,) * (rank - factor.ndim) + factor.shape)
    return requantize(
        found.x, constant(factor), found.call.args[2], low=attrs["low"], high=attrs["high"]
    )


@dataclass(frozen=True)
class MultiplyByReciprocals:
    """quantize(x, scale) becomes requantize(x, 1 / scale) where x comes of integer sums.

    A division is the slowest instruction of an epilogue. The reciprocal moves a result that lies
    within 2⁻²³ of a tie, which sums times arbitrary scales hardly ever do; numbers that were
    quantized before meet ties all the time. A factor in front joins the multiplier, so that sums
    are multiplied once.
    """

    name: str = "multiply_by_reciprocals"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule("reciprocal", (QUANTIZE,), _quantized, _requantize, _worth),
            Rule("merge factors", (REQUANTIZE,), _multiplied, _requantize, _mergeable),
            Rule("of integers", (REQUANTIZE,), _of_integers, _requantize),
        )
        return apply_rules(graph, self.name, rules)
