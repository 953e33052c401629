"""Costly functions between two quantizations of bytes become tables of all 256 values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special
from tvm import relax

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
_LOOKUP = "graphopt.lookup"
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


@dataclass(frozen=True)
class _Reach:
    """The bytes that a value is computed from, number by number, and whether that is costly."""

    sources: frozenset[str]
    costly: bool = False


class _Cone:
    """What the values around a binding are computed from."""

    def __init__(self, view: View, shape: tuple[int, ...]) -> None:
        self.view, self.shape = view, shape
        self.bytes: dict[str, Expr] = {}
        self._known: dict[str, _Reach | None] = {}

    def reach(self, expr: Expr) -> _Reach | None:
        """Of `expr`; None where it is no function of constants and of bytes of its shape."""
        if self.view.scalar(expr) is not None:
            return _Reach(frozenset())
        if not isinstance(expr, relax.Var) or shape_of(expr) != self.shape:
            return None
        call = self.view.producer(expr)
        if expr.name not in self._known:
            found = None if call is None else self._reach_of(call)
            if found is None and dtype_of(expr) in BYTES:
                self.bytes[expr.name] = expr
                found = _Reach(frozenset((expr.name,)))
            self._known[expr.name] = found
        return self._known[expr.name]

    def _reach_of(self, call: Expr) -> _Reach | None:
        kind = op_name(call)
        if kind in (QUANTIZE, REQUANTIZE, DEQUANTIZE):
            scalars = all(self.view.scalar(arg) is not None for arg in call.args[1:])
            whole = kind == DEQUANTIZE or (dtype_of(call) in BYTES and is_float(call.args[0]))
            return self._joined(call.args[:1], False) if scalars and whole else None
        if kind == _LOOKUP:  # a part that was found before
            constant_table = self.view.is_constant(call.args[1])
            return self._joined(call.args[:1], True) if constant_table else None
        if kind not in _COSTLY | _CHEAP or not is_float(call):
            return None
        return self._joined(call.args[:1] if kind == "clip" else call.args, kind in _COSTLY)

    def _joined(self, args: Sequence[Expr], costly: bool) -> _Reach | None:
        found = [self.reach(arg) for arg in args]
        known = [reach for reach in found if reach is not None]
        if len(known) < len(found):
            return None
        sources = frozenset[str]().union(*(reach.sources for reach in known))
        return _Reach(sources, costly or any(reach.costly for reach in known))


def _match(view: View, var: Expr, value: Expr) -> Function | None:
    if dtype_of(value) not in BYTES or not is_float(value.args[0]):
        return None
    cone = _Cone(view, shape_of(value))
    reach = cone.reach(var)
    if reach is None or len(reach.sources) != 1 or var.name in reach.sources:
        return None
    (source,) = reach.sources
    return Function(value, cone.bytes[source], reach.costly)


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
            return known.reshape(()) if known.size == 1 else known
        if expr.name not in values:
            values[expr.name] = _value(view.producer(expr), value)
        return values[expr.name]

    return lookup(found.source, constant(_value(found.call, value)))


def _value(call: Expr, value: Callable[[Expr], Array]) -> Array:
    """A call's result for all values of the source."""
    kind = op_name(call)
    inputs = [value(arg) for arg in (call.args[:1] if kind == "clip" else call.args)]
    if kind == _LOOKUP:
        result = inputs[1][inputs[0].view(np.uint8)]
    elif kind == DEQUANTIZE:
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
