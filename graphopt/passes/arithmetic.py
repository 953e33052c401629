"""Brings arithmetic with constants into one form, so that later patterns need to know only one."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import (
    Array,
    Expr,
    constant,
    dtype_of,
    is_float,
    like,
    op_name,
    shape_of,
)


@dataclass(frozen=True)
class WithConstant:
    """op(x, c) with a constant c on the right."""

    op: str
    x: Expr
    c: Array
    dtype: str


def with_constant(view: View, value: Expr) -> WithConstant | None:
    """Match a binary call whose right operand only is a constant."""
    x, right = value.args
    if view.is_constant(x):
        return None
    c = view.constant(right)
    return None if c is None else WithConstant(op_name(value), x, c, dtype_of(x))


def _constant_left(view: View, _var: Expr, value: Expr) -> Expr | None:
    left, right = value.args
    return value if view.is_constant(left) and not view.is_constant(right) else None


def _swap(_view: View, value: Expr) -> Expr:
    make = {
        "add": relax.op.add,
        "multiply": relax.op.multiply,
        "maximum": relax.op.maximum,
        "minimum": relax.op.minimum,
    }[op_name(value)]
    return make(value.args[1], value.args[0])


def _float_constant(view: View, _var: Expr, value: Expr) -> WithConstant | None:
    return with_constant(view, value) if is_float(value) else None


def _subtract(_view: View, found: WithConstant) -> Expr:
    return relax.op.add(found.x, constant(-found.c, found.dtype))


def _invertible(_view: View, found: WithConstant) -> str | None:
    with np.errstate(all="ignore"):
        inverse = (1.0 / found.c.astype(np.float64)).astype(found.c.dtype)
    tiny = np.finfo(np.float16 if found.dtype == "float16" else np.float32).tiny
    if not (np.isfinite(inverse) & (np.abs(inverse) >= tiny)).all():
        return "the divisor has no finite, normal reciprocal"
    powers_of_two = np.frexp(np.abs(found.c.astype(np.float64)))[0] == 0.5
    # The scale that DynamicQuantizeLinear computes is one division; its last bit decides ties.
    if prod(int(dim) for dim in found.x.ty.shape) == 1 and not powers_of_two.all():
        return "one division costs nothing, and a rounded reciprocal may move quantized codes"
    return None


def _divide(_view: View, found: WithConstant) -> Expr:
    inverse = (1.0 / found.c.astype(np.float64)).astype(found.c.dtype)
    return relax.op.multiply(found.x, constant(inverse, found.dtype))


def _any_float(_view: View, _var: Expr, value: Expr) -> Expr | None:
    return value if is_float(value) else None


def _power(view: View, _var: Expr, value: Expr) -> tuple[Expr, float] | None:
    exponent = view.scalar(value.args[1])
    same = shape_of(value) == shape_of(value.args[0])
    if exponent is None or not same or not is_float(value):
        return None
    return value.args[0], exponent


def _known_exponent(_view: View, found: tuple[Expr, float]) -> str | None:
    known = found[1] in (-0.5, 0.5, 1.0, 2.0, 3.0)
    return None if known else f"the exponent {found[1]:g} has no cheaper form"


def _expand_power(_view: View, found: tuple[Expr, float]) -> Expr:
    x, exponent = found
    if exponent == 0.5:
        return relax.op.sqrt(x)
    if exponent == -0.5:
        return relax.op.rsqrt(x)
    if exponent == 1.0:
        return x
    square = relax.op.multiply(x, x)
    return square if exponent == 2.0 else relax.op.multiply(square, x)


def _one_over_sqrt(view: View, _var: Expr, value: Expr) -> Expr | None:
    root = view.call(value.args[1], "sqrt")
    if root is None or view.scalar(value.args[0]) != 1.0:
        return None
    return root.args[0] if shape_of(value) == shape_of(root) else None


COMMUTATIVE = ("add", "multiply", "maximum", "minimum")

_RULES: tuple[Rule[Any], ...] = (
    Rule("constant to the right", COMMUTATIVE, _constant_left, _swap),
    Rule("x - c to x + (-c)", ("subtract",), _float_constant, _subtract),
    Rule("x / c to x * (1/c)", ("divide",), _float_constant, _divide, _invertible),
    Rule(
        "-x to x * -1",
        ("negative",),
        _any_float,
        lambda _view, call: relax.op.multiply(call.args[0], like(-1.0, call)),
    ),
    Rule(
        "square to x * x",
        ("square",),
        _any_float,
        lambda _view, call: relax.op.multiply(call.args[0], call.args[0]),
    ),
    Rule("power to products", ("power",), _power, _expand_power, _known_exponent),
    Rule(
        "1 / sqrt(x) to rsqrt(x)",
        ("divide",),
        _one_over_sqrt,
        lambda _view, x: relax.op.rsqrt(x),
    ),
)


@dataclass(frozen=True)
class CanonicalizeArithmetic:
    """Constants go right, x − c becomes x + (−c), x / c becomes x · (1/c), powers products.

    A reciprocal is rounded to the tensor's dtype: one more rounding (relative 2⁻²⁴) per division.
    """

    name: str = "canonicalize_arithmetic"

    def run(self, graph: Graph) -> Outcome:
        return apply_rules(graph, self.name, _RULES)


def _chain(view: View, _var: Expr, value: Expr) -> tuple[WithConstant, WithConstant, Expr] | None:
    outer = _float_constant(view, _var, value)
    if outer is None:
        return None
    call = view.call(outer.x, outer.op)
    inner = None if call is None else with_constant(view, call)
    return None if inner is None else (inner, outer, outer.x)


def _mergeable(view: View, found: tuple[WithConstant, WithConstant, Expr]) -> str | None:
    inner, outer, link = found
    if not view.used_once(link):
        return "the inner result is used elsewhere"
    merged = _merged(inner, outer)
    if merged.size > max(inner.c.size, outer.c.size):
        return "the merged constant would be larger than both"
    vanished = (merged == 0) & (inner.c != 0) & (outer.c != 0) if outer.op == "multiply" else False
    if not np.isfinite(merged).all() or np.any(vanished):
        return "the merged constant is out of range"
    return None


def _merged(inner: WithConstant, outer: WithConstant) -> Array:
    a, b = inner.c.astype(np.float64), outer.c.astype(np.float64)
    with np.errstate(all="ignore"):
        return (a + b if outer.op == "add" else a * b).astype(outer.c.dtype)


def _merge(_view: View, found: tuple[WithConstant, WithConstant, Expr]) -> Expr:
    inner, outer, _ = found
    make = relax.op.add if outer.op == "add" else relax.op.multiply
    return make(inner.x, constant(_merged(inner, outer), outer.dtype))


@dataclass(frozen=True)
class MergeConstantChains:
    """(x + a) + b becomes x + (a + b), (x · a) · b becomes x · (a · b); floats only."""

    name: str = "merge_constant_chains"

    def run(self, graph: Graph) -> Outcome:
        rule = Rule("merge constants", ("add", "multiply"), _chain, _merge, _mergeable)
        return apply_rules(graph, self.name, (rule,))
