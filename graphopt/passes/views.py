"""Reshapes: one op for every view, one view for a chain, none between a product and its sum."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import tvm
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.product_chains import Chain, product_chain, rebuilt, varies_elsewhere
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import (
    ELEMENTWISE,
    Expr,
    constant,
    permutation,
    reshaped,
    shape_of,
)


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


def _no_view(_view: View, _var: Expr, value: Expr) -> Viewed | None:
    same = shape_of(value) == shape_of(value.args[0])
    return Viewed(value.args[0], shape_of(value)) if same else None


def _reshape(_view: View, found: Viewed) -> Expr:
    same = shape_of(found.x) == found.shape
    return found.x if same else reshaped(found.x, found.shape)


@dataclass(frozen=True)
class CanonicalizeViews:
    """squeeze, expand_dims, flatten and permutations of unit axes become reshape; chains one."""

    name: str = "canonicalize_views"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule(
                "view",
                ("squeeze", "expand_dims", "flatten", "nn.batch_flatten"),
                _view_op,
                _reshape,
            ),
            Rule("chain of views", ("reshape",), _chain, _reshape),
            Rule("view of the same shape", ("reshape",), _no_view, _reshape),
            Rule("permutation of unit axes", ("permute_dims",), _unit_permutation, _reshape),
        )
        return apply_rules(graph, self.name, rules)


@dataclass(frozen=True)
class Projection:
    """reshape(f(product(x, w)))."""

    chain: Chain
    shape: tuple[int, ...]  # after the reshape
    old: tuple[int, ...]  # before it


def _projection(view: View, _var: Expr, value: Expr) -> Projection | None:
    chain = product_chain(view, value.args[0])
    return None if chain is None else Projection(chain, shape_of(value), shape_of(value.args[0]))


def _movable(view: View, found: Projection) -> str | None:
    if not all(view.used_once(link) for link in found.chain.links):
        return "the product is used in its old shape, too"
    if varies_elsewhere(found.chain):
        return "an operand varies along other axes than the last"
    if _single_rows(found.old):
        return None
    if len(found.shape) < 2 or found.shape[-1] != found.old[-1]:
        return "the view changes the last axis"
    if _single_rows(found.shape):
        return "the view makes a batch of single rows"
    return None


def _single_rows(shape: tuple[int, ...]) -> bool:
    """Whether a product of this shape is a batch of single rows, (M, 1, N), not one matrix."""
    return len(shape) > 2 and shape[-2] == 1 and prod(shape[:-1]) > 1


def _move(view: View, found: Projection) -> Expr:
    lead: tuple[int, ...] = found.shape[:-1]
    if found.shape[-1] != found.old[-1] or _single_rows(found.shape):
        lead = (*[1] * (len(found.old) - 2), prod(found.old[:-1]))
    x, weight = found.chain.product.args
    rows = reshaped(x, (*lead, shape_of(x)[-1]))
    result = rebuilt(view, found.chain, rows, weight, len(lead) + 1, lambda vector: vector)
    return result if (*lead, found.old[-1]) == found.shape else reshaped(result, found.shape)


@dataclass(frozen=True)
class HoistViews:
    """reshape(x @ W + b) becomes reshape(x) @ W + b where the last axis stays.

    The view then stands at the product's input, and what follows it, a residual sum say, can be
    fused with the product. A batch of single rows, (M,1,K), becomes one matrix, (1,M,K).
    """

    name: str = "hoist_views"

    def run(self, graph: Graph) -> Outcome:
        rule = Rule("view after projection", ("reshape",), _projection, _move, _movable)
        return apply_rules(graph, self.name, (rule,))


@dataclass(frozen=True)
class Sinkable:
    """op(reshape(y), reshape(z), constants) where the reshapes move unit axes only."""

    call: Expr
    operands: tuple[Expr, ...]
    shape: tuple[int, ...]


def _same_but_units(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return [d for d in left if d != 1] == [d for d in right if d != 1]


def _sinkable(view: View, _var: Expr, value: Expr) -> Sinkable | None:
    after = shape_of(value)
    sources = []
    for operand in value.args:
        call = view.call(operand, "reshape") if isinstance(operand, relax.Var) else None
        if call is not None and view.has_one_user(operand):
            sources.append(call.args[0])
        elif isinstance(operand, relax.Var):
            return None
    if not sources:
        return None
    before = shape_of(sources[0])
    if any(shape_of(s) != before for s in sources) or not _same_but_units(before, after):
        return None
    moved: list[Expr] = []
    for operand in value.args:
        array = view.constant(operand)
        if isinstance(operand, relax.Var):
            source = view.call(operand, "reshape")
            if shape_of(operand) != after or source is None:
                return None
            moved.append(source.args[0])
        elif array is None:
            moved.append(operand)  # clip's bounds
        elif array.size == 1:
            moved.append(constant(array.reshape(())))
        else:
            dims = (1,) * (len(after) - array.ndim) + array.shape
            long_axes = iter(d for d, full in zip(dims, after, strict=True) if full != 1)
            moved.append(
                constant(array.reshape([1 if d == 1 else next(long_axes) for d in before]))
            )
    return Sinkable(value, tuple(moved), after)


def _sink(_view: View, found: Sinkable) -> Expr:
    inner = tvm.ir.Call(found.call.op, list(found.operands), found.call.attrs)
    return reshaped(inner, found.shape)


@dataclass(frozen=True)
class SinkViews:
    """f(reshape(y)) becomes reshape(f(y)) for elementwise f and reshapes that move unit axes.

    Bias and activation of a one-dimensional convolution, which runs as a two-dimensional one,
    then follow it directly.
    """

    name: str = "sink_views"

    def run(self, graph: Graph) -> Outcome:
        rule = Rule("elementwise before view", ELEMENTWISE, _sinkable, _sink)
        return apply_rules(graph, self.name, (rule,))
