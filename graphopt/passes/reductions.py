"""Reductions in one form: they keep their axes, and a mean is a mean however it was exported."""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose, prod
from typing import Any

from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, ints, op_name, reduced_axes, reshaped, shape_of


@dataclass(frozen=True)
class Mean:
    """The mean of x over `axes`, seen as `shape`."""

    x: Expr
    axes: tuple[int, ...]
    shape: tuple[int, ...]


def _build(_view: View, found: Mean) -> Expr:
    dims = shape_of(found.x)
    kept = tuple(1 if axis in found.axes else dim for axis, dim in enumerate(dims))
    mean = relax.op.mean(found.x, list(found.axes), keepdims=True)
    return mean if kept == found.shape else reshaped(mean, found.shape)


def _global_pool(_view: View, _var: Expr, value: Expr) -> Mean | None:
    source, result = shape_of(value.args[0]), shape_of(value)
    if value.attrs.layout != "NCHW" or result[2:] != (1, 1):
        return None
    return Mean(value.args[0], (2, 3), result) if len(source) == 4 else None


def _whole_window(view: View, var: Expr, value: Expr) -> Mean | None:
    found = _global_pool(view, var, value)
    if (
        found is None
        or any(ints(value.attrs.padding))
        or any(d != 1 for d in ints(value.attrs.dilation))
    ):
        return None
    return found if ints(value.attrs.pool_size) == shape_of(value.args[0])[2:] else None


def _scaled_sum(view: View, _var: Expr, value: Expr) -> Mean | None:
    call = view.call(value.args[0], "sum", "reshape")
    factor = view.scalar(value.args[1])
    if call is None or factor is None or shape_of(call) != shape_of(value):
        return None
    if op_name(call) == "reshape":  # the dropped axes, see _keep_axes
        call = view.call(call.args[0], "sum")
        if call is None or not call.attrs.keepdims:
            return None
    axes = reduced_axes(call)
    count = prod(shape_of(call.args[0])[axis] for axis in axes)
    if not isclose(factor * count, 1.0, rel_tol=1e-6):
        return None
    return Mean(call.args[0], axes, shape_of(value))


def _two_steps(view: View, _var: Expr, value: Expr) -> Mean | None:
    inner = view.call(value.args[0], "mean")
    if inner is None or not view.used_once(value.args[0]):
        return None
    if not (inner.attrs.keepdims and value.attrs.keepdims):
        return None
    axes = tuple(sorted({*reduced_axes(inner), *reduced_axes(value)}))
    return Mean(inner.args[0], axes, shape_of(value))


REDUCTIONS = {
    "max": relax.op.max,
    "mean": relax.op.mean,
    "min": relax.op.min,
    "prod": relax.op.prod,
    "sum": relax.op.sum,
}


def _drops_axes(_view: View, _var: Expr, value: Expr) -> Expr | None:
    return None if value.attrs.keepdims else value


def _keep_axes(_view: View, call: Expr) -> Expr:
    make = REDUCTIONS[op_name(call)]
    kept = make(call.args[0], list(reduced_axes(call)), keepdims=True)
    return reshaped(kept, shape_of(call))


def mean_of(view: View, expr: Expr) -> tuple[Expr, tuple[int, ...]] | None:
    """(x, axes) where `expr` is mean(x, axes, keepdims=True)."""
    call = view.call(expr, "mean")
    if call is None or not call.attrs.keepdims:
        return None
    return call.args[0], reduced_axes(call)


@dataclass(frozen=True)
class CanonicalizeReductions:
    """Global average pooling, sum · (1/n) and means of means become one mean.

    Every reduction keeps its axes, with a view behind it where the model drops them.
    """

    name: str = "canonicalize_reductions"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule("global pooling", ("nn.adaptive_avg_pool2d",), _global_pool, _build),
            Rule("pooling over the whole map", ("nn.avg_pool2d",), _whole_window, _build),
            Rule("scaled sum", ("multiply",), _scaled_sum, _build),
            Rule("mean in two steps", ("mean",), _two_steps, _build),
            Rule("keep reduced axes", tuple(REDUCTIONS), _drops_axes, _keep_axes),
        )
        return apply_rules(graph, self.name, rules)
