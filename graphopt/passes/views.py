"""Reshapes: one op for all views, one view for a chain of them, none between a matmul and its sum."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import tvm
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, op_name, permutation, reshaped, shape_of


@dataclass(frozen=True)
class Viewed:
    """A tensor to be seen in another shape."""

    x: Expr
    shape: tuple[int, ...]


def _view_op(_view: View, _var: Expr, value: Expr) -> Viewed:
    return Viewed(value.args[0], shape_of(value))


def _chain(view: View, _var: Expr, value: Expr) -> Viewed | None:
    inner = view.call(value.args[0], "reshape")
    return None if inner is None else Viewed(inner.args[0], shape_of(value))


def _unit_permutation(_view: View, _var: Expr, value: Expr) -> Viewed | None:
    """A permutation that keeps the order of all axes longer than 1 moves no element."""
    source = shape_of(value.args[0])
    long_axes = [axis for axis in permutation(value) if source[axis] != 1]
    if long_axes != sorted(long_axes):
        return None
    return Viewed(value.args[0], shape_of(value))


def _reshape(_view: View, found: Viewed) -> Expr:
    return reshaped(found.x, found.shape)


@dataclass(frozen=True)
class CanonicalizeViews:
    """squeeze, expand_dims, flatten and permutations of unit axes become reshape; chains one."""

    name: str = "canonicalize_views"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[object], ...] = (
            Rule(
                "view",
                ("squeeze", "expand_dims", "flatten", "nn.batch_flatten"),
                _view_op,
                _reshape,
            ),
            Rule("chain of views", ("reshape",), _chain, _reshape),
            Rule("permutation of unit axes", ("permute_dims",), _unit_permutation, _reshape),
        )
        return apply_rules(graph, self.name, rules)


@dataclass(frozen=True)
class Projection:
    """reshape(f(matmul(x, w))), f adding and multiplying constants along the last axis."""

    x: Expr
    weight: Expr
    steps: tuple[tuple[Expr, Expr], ...]  # (call, constant operand), innermost first
    links: tuple[Expr, ...]  # the variables between matmul and reshape
    shape: tuple[int, ...]  # after the reshape
    old: tuple[int, ...]  # before it


def _projection(view: View, _var: Expr, value: Expr) -> Projection | None:
    steps: list[tuple[Expr, Expr]] = []
    links = [value.args[0]]
    call = view.call(links[-1], "add", "multiply", "matmul")
    while call is not None and op_name(call) != "matmul":
        if not view.is_constant(call.args[1]):
            return None
        steps.append((call, call.args[1]))
        links.append(call.args[0])
        call = view.call(links[-1], "add", "multiply", "matmul")
    if call is None or len(shape_of(call.args[1])) != 2:
        return None
    return Projection(
        call.args[0], call.args[1], tuple(reversed(steps)), tuple(links), shape_of(value),
        shape_of(value.args[0]),
    )


def _movable(view: View, found: Projection) -> str | None:
    last = found.old[-1]
    if not all(view.used_once(link) for link in found.links):
        return "the product is used in its old shape, too"
    if not found.shape or found.shape[-1] != last or len(found.shape) < 2:
        return "the view changes the last axis"
    for _, operand in found.steps:
        dims = shape_of(operand)
        if prod(dims) not in (1, last) or (prod(dims) == last and dims[-1:] != (last,)):
            return "an operand varies along other axes than the last"
    return None


def _move(_view: View, found: Projection) -> Expr:
    rows = (*found.shape[:-1], shape_of(found.x)[-1])
    result = relax.op.matmul(reshaped(found.x, rows), found.weight)
    for call, operand in found.steps:
        dims = shape_of(operand)
        flat = operand if len(dims) <= 1 else reshaped(operand, (prod(dims),))
        result = tvm.ir.Call(call.op, [result, flat], call.attrs)
    return result


@dataclass(frozen=True)
class HoistViews:
    """reshape(x @ W + b) becomes reshape(x) @ W + b where the last axis stays.

    The view then stands at the product's input, and what follows it, a residual sum say, can be
    fused with the product.
    """

    name: str = "hoist_views"

    def run(self, graph: Graph) -> Outcome:
        rule = Rule("view after projection", ("reshape",), _projection, _move, _movable)
        return apply_rules(graph, self.name, (rule,))
