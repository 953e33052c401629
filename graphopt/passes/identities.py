"""Removes bindings that compute nothing: copies, casts to the same type, x + 0, x · 1, dropout."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import (
    Expr,
    dtype_of,
    op_name,
    permutation,
    shape_of,
    slice_ranges,
)


def _leaf(_view: View, _var: Expr, value: Expr) -> Expr | None:
    return value


def _same_type(_view: View, _var: Expr, value: Expr) -> Expr | None:
    """Casts, reshapes and broadcasts that change neither shape nor dtype."""
    x = value.args[0]
    same = shape_of(x) == shape_of(value) and dtype_of(x) == dtype_of(value)
    return x if same else None


def _identity_permutation(_view: View, _var: Expr, value: Expr) -> Expr | None:
    axes = permutation(value)
    return value.args[0] if axes == tuple(range(len(axes))) else None


def _full_slice(_view: View, _var: Expr, value: Expr) -> Expr | None:
    whole = tuple((0, dim, 1) for dim in shape_of(value.args[0]))
    return value.args[0] if slice_ranges(value) == whole else None


NEUTRAL = {
    "add": 0.0,
    "subtract": 0.0,
    "multiply": 1.0,
    "divide": 1.0,
    "maximum": -inf,
    "minimum": inf,
}


def _neutral_constant(view: View, _var: Expr, value: Expr) -> Expr | None:
    x, right = value.args
    c = view.constant(right)
    neutral = NEUTRAL[op_name(value)]
    if c is None or shape_of(x) != shape_of(value) or dtype_of(x) != dtype_of(value):
        return None
    return x if c.size and c.flat[0] == neutral and (c == neutral).all() else None


def _single_concat(_view: View, _var: Expr, value: Expr) -> Expr | None:
    parts = value.args[0]
    return parts.fields[0] if isinstance(parts, relax.Tuple) and len(parts.fields) == 1 else None


def _known_item(view: View, _var: Expr, value: Expr) -> Expr | None:
    """Item of a tuple that is known, or the value that dropout passes through at inference."""
    source = view.producer(value.tuple_value)
    if source is not None and op_name(source) == "tuple":
        return source.fields[value.index]
    if source is not None and op_name(source) == "nn.dropout" and value.index == 0:
        return source.args[0]
    return None


def _known_choice(view: View, _var: Expr, value: Expr) -> Expr | None:
    """The one operand that `where` takes for all elements."""
    condition = view.constant(value.args[0])
    if condition is None or not condition.size or condition.any() != condition.all():
        return None
    x = value.args[1 if condition.all() else 2]
    return x if shape_of(x) == shape_of(value) else None


def _through(_view: View, x: Expr) -> Expr:
    return x


_RULES: tuple[Rule[Any], ...] = (
    Rule("copy", ("variable", "constant"), _leaf, _through),
    Rule("same type", ("astype", "reshape", "broadcast_to"), _same_type, _through),
    Rule("identity permutation", ("permute_dims",), _identity_permutation, _through),
    Rule("whole slice", ("strided_slice",), _full_slice, _through),
    Rule("neutral constant", tuple(NEUTRAL), _neutral_constant, _through),
    Rule("concatenation of one", ("concat",), _single_concat, _through),
    Rule("known choice", ("where",), _known_choice, _through),
    Rule("item of a known tuple", ("item",), _known_item, _through),
)


@dataclass(frozen=True)
class RemoveIdentities:
    """Let users read the input of a binding that passes it through unchanged.

    x + 0 turns −0 into +0 in IEEE arithmetic; removing it does not.
    """

    name: str = "remove_identities"

    def run(self, graph: Graph) -> Outcome:
        return apply_rules(graph, self.name, _RULES)
