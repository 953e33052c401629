"""Convolutions read half-precision numbers as they are, for devices that compute with those."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Array, Expr, constant, dtype_of


@dataclass(frozen=True)
class Widened:
    """A convolution of `x` as float32; `weight` is its other operand as halves, None if it is not
    made of such."""

    call: Expr
    x: Expr
    weight: Expr | None


def _match(view: View, _var: Expr, value: Expr) -> Widened | None:
    x = _half(view, value.args[0])
    if x is None or dtype_of(value) != "float32":
        return None
    weight = view.constant(value.args[1])
    if weight is None:
        return Widened(value, x, _half(view, value.args[1]))
    return Widened(value, x, constant(_halves(weight)) if _exact(weight) else None)


def _half(view: View, expr: Expr) -> Expr | None:
    """The half-precision numbers that `expr` is, as float32."""
    cast = view.call(expr, "astype")
    return cast.args[0] if cast is not None and dtype_of(cast.args[0]) == "float16" else None


def _halves(weight: Array) -> Array:
    with np.errstate(over="ignore"):  # what overflows is not exact
        return weight.astype(np.float16)


def _exact(weight: Array) -> bool:
    return bool(np.array_equal(_halves(weight).astype(np.float32), weight, equal_nan=True))


def _check(_view: View, found: Widened) -> str | None:
    return None if found.weight is not None else "the weights are no halves"


def _rewrite(_view: View, found: Widened) -> Expr:
    call = found.call
    return tvm.ir.Call(call.op, [found.x, found.weight], call.attrs, list(call.ty_args))


@dataclass(frozen=True)
class KeepHalves:
    """conv(astype(x, float32), w) = conv(x, w as halves), with float32 sums.

    Products of halves are exact in float32, so that both sums are of the same terms. The importer
    widens what a convolution reads since CPUs compute in float32; a device moves half the bytes,
    and its tensor cores take nothing but halves. Weights that are no halves, as where a batch
    normalisation was folded into them, stay as they are.
    """

    name: str = "keep_halves"

    def run(self, graph: Graph) -> Outcome:
        return apply_rules(
            graph, self.name, (Rule("halves", ("nn.conv2d",), _match, _rewrite, _check),)
        )
