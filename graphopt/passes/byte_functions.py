"""Costly functions between two quantizations of bytes become tables of all 256 values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from graphopt.ir import Graph
from graphopt.ops.base import attributes
from graphopt.ops.lookup import lookup
from graphopt.passes.base import Outcome
from graphopt.passes.evaluate import EVALUATORS
from graphopt.passes.quantized import (
    BYTES,
    DEQUANTIZE,
    QUANTIZE,
    REQUANTIZE,
    dequantized_array,
    elements,
    quantized_array,
    requantized_array,
)
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Array, Expr, constant, dtype_of, is_float, op_name, shape_of

_COSTLY = frozenset(
    (
        *("erf", "exp", "log", "tanh", "sigmoid", "power", "cos", "sin"),
        *("nn.gelu", "nn.gelu_tanh", "nn.silu"),
    )
)
_CHEAP = frozenset(
    (
        *("abs", "add", "astype", "ceil", "clip", "divide", "floor", "maximum", "minimum"),
        *("multiply", "negative", "round", "rsqrt", "sqrt", "subtract", "nn.relu"),
    )
)
_FEWEST = 1 << 11
"""Elements of a tensor that is worth a kernel of its own."""

_MORE: Mapping[str, Callable[[Array], Array]] = {
    "nn.gelu": lambda x: x * 0.5 * (1 + special.erf(x * np.sqrt(0.5))),
    "nn.gelu_tanh": lambda x: x * special.expit(1.5957691216057308 * (x + 0.044715 * x**3)),
    "nn.silu": lambda x: x * special.expit(x),
}


@dataclass(frozen=True)
class Function:
    """A quantization, the bytes that it is a function of, and whether that is costly."""

    call: Expr
    source: Expr
    costly: bool


class _Cone:
    """What the value of a binding is computed from, as far as that is scalar by scalar."""

    def __init__(self, view: View, shape: tuple[int, ...]) -> None:
        self.view, self.shape = view, shape
        self.costly = False
        self.sources: dict[str, Expr] = {}
        self._known: dict[str, bool] = {}

    def covers(self, expr: Expr) -> bool:
        """Whether `expr` is a function of constants and of the sources, which are noted."""
        if self.view.scalar(expr) is not None:
            return True
        call = self.view.producer(expr)
        if shape_of(expr) != self.shape:
            return False
        if call is not None and expr.name not in self._known:
            self._known[expr.name] = self._covers_call(call)
        if call is not None and self._known[expr.name]:
            return True
        if dtype_of(expr) not in BYTES:
            return False
        self.sources[expr.name] = expr
        return True

    def _covers_call(self, call: Expr) -> bool:
        kind = op_name(call)
        if kind in (QUANTIZE, REQUANTIZE, DEQUANTIZE):
            if any(self.view.scalar(arg) is None for arg in call.args[1:]):
                return False
            whole = kind == DEQUANTIZE or (dtype_of(call) in BYTES and is_float(call.args[0]))
            return whole and self._all(call.args[:1])
        if kind not in _COSTLY | _CHEAP or not is_float(call):
            return False
        self.costly |= kind in _COSTLY
        tensors = call.args[:1] if kind == "clip" else call.args
        return self._all(tensors)

    def _all(self, args: list[Expr]) -> bool:
        """Whether all are covered; a branch that is not leaves no sources behind."""
        before = dict(self.sources), self.costly
        if all(self.covers(arg) for arg in args):
            return True
        self.sources, self.costly = before
        return False


def _match(view: View, var: Expr, value: Expr) -> Function | None:
    if dtype_of(value) not in BYTES or not is_float(value.args[0]):
        return None
    cone = _Cone(view, shape_of(value))
    if not cone.covers(var) or var.name in cone.sources or len(cone.sources) != 1:
        return None
    (source,) = cone.sources.values()
    return Function(value, source, cone.costly)


def _check(view: View, found: Function) -> str | None:
    if not found.costly:
        return "what it computes costs no more than a table"
    made = view.call(found.source, QUANTIZE, REQUANTIZE)
    if made is not None and view.used_once(found.source):
        return "the kernel that makes the bytes can go on with them"
    return "the tensor is small" if elements(found.call) < _FEWEST else None


def _table(view: View, found: Function) -> Expr:
    dtype = np.dtype(dtype_of(found.source))
    values: dict[str, Array] = {found.source.name: np.arange(256, dtype=np.uint8).view(dtype)}

    def value(expr: Expr) -> Array:
        known = view.constant(expr)
        if known is not None:
            return known.reshape(())
        if expr.name not in values:
            values[expr.name] = _value(view.producer(expr), value)
        return values[expr.name]

    return lookup(found.source, constant(_value(found.call, value)))


def _value(call: Expr, value: Callable[[Expr], Array]) -> Array:
    """A call's result for all values of the source."""
    kind = op_name(call)
    inputs = [value(arg) for arg in (call.args[:1] if kind == "clip" else call.args)]
    if kind == DEQUANTIZE:
        x, scale, zero = inputs
        result = dequantized_array(x, scale, zero)
    elif kind == QUANTIZE:
        x, scale, zero = inputs
        result = quantized_array(x, scale, zero, attributes(call))
    elif kind == REQUANTIZE:
        x, scale, zero = inputs
        result = requantized_array(x, scale, zero, attributes(call))
    else:
        with np.errstate(all="ignore"):
            result = _MORE[kind](*inputs) if kind in _MORE else EVALUATORS[kind](call, inputs)
    return np.asarray(result, dtype_of(call))


@dataclass(frozen=True)
class TabulateBytes:
    """quantize(f(dequantize(x))) becomes a lookup, where x has 8 bits and f is costly.

    f is any composition of operators with one number in and one out, with other quantizations
    between them. For networks whose exporter quantized on both sides of GELU, or inside it.
    """

    name: str = "tabulate_bytes"

    def run(self, graph: Graph) -> Outcome:
        rule = Rule("function of a byte", (QUANTIZE, REQUANTIZE), _match, _table, _check)
        return apply_rules(graph, self.name, (rule,))
