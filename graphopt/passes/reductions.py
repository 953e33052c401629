"""Means in one form: mean(x, axes), whether exported as pooling, as sum / n or in two steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose, prod

from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, ints, reduced_axes, shape_of


@dataclass(frozen=True)
class Mean:
    """The mean of x over `axes`."""

    x: Expr
    axes: tuple[int, ...]
    keepdims: bool
    shape: tuple[int, ...]


def _build(_view: View, found: Mean) -> Expr:
    return relax.op.mean(found.x, list(found.axes), keepdims=found.keepdims)


def _global_pool(_view: View, _var: Expr, value: Expr) -> Mean | None:
    source, result = shape_of(value.args[0]), shape_of(value)
    if value.attrs.layout != "NCHW" or result[2:] != (1, 1):
        return None
    return Mean(value.args[0], (2, 3), True, result) if len(source) == 4 else None


def _whole_window(view: View, var: Expr, value: Expr) -> Mean | None:
    found = _global_pool(view, var, value)
    if found is None or any(ints(value.attrs.padding)) or any(d != 1 for d in ints(value.attrs.dilation)):
        return None
    return found if ints(value.attrs.pool_size) == shape_of(value.args[0])[2:] else None


def _scaled_sum(view: View, _var: Expr, value: Expr) -> Mean | None:
    call = view.call(value.args[0], "sum")
    factor = view.scalar(value.args[1])
    if call is None or factor is None or shape_of(call) != shape_of(value):
        return None
    axes = reduced_axes(call)
    count = prod(shape_of(call.args[0])[axis] for axis in axes)
    if not isclose(factor * count, 1.0, rel_tol=1e-6):
        return None
    return Mean(call.args[0], axes, bool(call.attrs.keepdims), shape_of(value))


def _two_steps(view: View, _var: Expr, value: Expr) -> Mean | None:
    inner = view.call(value.args[0], "mean")
    if inner is None or not view.used_once(value.args[0]):
        return None
    if not (inner.attrs.keepdims and value.attrs.keepdims):
        return None
    axes = tuple(sorted({*reduced_axes(inner), *reduced_axes(value)}))
    return Mean(inner.args[0], axes, True, shape_of(value))


def _view_of_mean(view: View, _var: Expr, value: Expr) -> Mean | None:
    """reshape(mean(x), keepdims) that only puts the reduced axes back, as (N, C, 1, 1)."""
    call = view.call(value.args[0], "mean")
    if call is None or call.attrs.keepdims or not view.used_once(value.args[0]):
        return None
    axes, source = reduced_axes(call), shape_of(call.args[0])
    kept = tuple(1 if axis in axes else dim for axis, dim in enumerate(source))
    return Mean(call.args[0], axes, True, kept) if kept == shape_of(value) else None


def mean_of(view: View, expr: Expr) -> tuple[Expr, tuple[int, ...]] | None:
    """(x, axes) where `expr` is mean(x, axes, keepdims=True)."""
    call = view.call(expr, "mean")
    if call is None or not call.attrs.keepdims:
        return None
    return call.args[0], reduced_axes(call)


@dataclass(frozen=True)
class CanonicalizeMeans:
    """Global average pooling, sum · (1/n) and means of means become one mean."""

    name: str = "canonicalize_means"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[object], ...] = (
            Rule("global pooling", ("nn.adaptive_avg_pool2d",), _global_pool, _build),
            Rule("pooling over the whole map", ("nn.avg_pool2d",), _whole_window, _build),
            Rule("scaled sum", ("multiply",), _scaled_sum, _build),
            Rule("mean in two steps", ("mean",), _two_steps, _build),
            Rule("reduced axes put back", ("reshape",), _view_of_mean, _build),
        )
        return apply_rules(graph, self.name, rules)


