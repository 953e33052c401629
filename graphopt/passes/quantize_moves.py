"""Moves quantizations in front of what only moves numbers, into the kernel that computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.base import attributes
from graphopt.ops.quantize import quantize
from graphopt.passes.base import Outcome
from graphopt.passes.movements import MOVEMENTS, moves, operands_of, padded, with_operands
from graphopt.passes.quantized import (
    QUANTIZE,
    dequantized,
    integer_of,
    parameters,
    quantized_number,
)
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, constant, dtype_of, ints, op_name

_SHRINKING = ("strided_slice", "take", "nn.max_pool2d")


@dataclass(frozen=True)
class Hoisted:
    """quantize(movement(x, …)), `call` being the quantization."""

    call: Expr
    movement: Expr
    pad: int | None


def _hoisted(view: View, _var: Expr, value: Expr) -> Hoisted | None:
    movement, params = view.call(value.args[0], *MOVEMENTS), parameters(view, value)
    if movement is None or params is None or not moves(movement) or not params.per_tensor:
        return None
    pad = None
    if op_name(movement) == "nn.pad":
        pad = integer_of(float(movement.attrs.pad_value), params, dtype_of(value))
    return Hoisted(value, movement, pad)


def _hoistable(view: View, found: Hoisted) -> str | None:
    if not view.used_once(found.call.args[0]):
        return "the numbers are used as floats, too"
    kind = op_name(found.movement)
    if kind == "nn.pad" and str(found.movement.attrs.pad_mode) == "constant" and found.pad is None:
        return "no integer stands for what it pads with"
    if kind in _SHRINKING and not all(map(view.used_once, operands_of(found.movement))):
        return "other parts of the tensor are used, too"
    if kind == "nn.max_pool2d" and not _has_least(found):
        return "windows may be empty, and the least integer is not its type's"
    return None


def _has_least(found: Hoisted) -> bool:
    """Whether an empty window would give the same, or there is none."""
    if attributes(found.call)["low"] == np.iinfo(dtype_of(found.call)).min:
        return True
    attrs = found.movement.attrs
    reach = ints(attrs.pool_size) * 2
    hangs = any(pad >= size for pad, size in zip(ints(attrs.padding), reach, strict=True))
    return not hangs and set(ints(attrs.dilation)) == {1}


def _hoist(_view: View, found: Hoisted) -> Expr:
    call = found.call
    operands = [
        _quantize(operand, call, attributes(call)) for operand in operands_of(found.movement)
    ]
    if found.pad is not None:
        return padded(found.movement, operands[0], found.pad)
    return with_operands(found.movement, operands)


def _quantize(x: Expr, call: Expr, attrs: dict[str, Any]) -> Expr:
    """Another tensor quantized as `call` does, but for these attributes."""
    return quantize(
        x,
        call.args[1],
        call.args[2],
        precision=attrs["precision"],
        low=attrs["low"],
        high=attrs["high"],
    )


@dataclass(frozen=True)
class Bounded:
    """quantize(x) of what lies within bounds, which `low` and `high` are as integers."""

    call: Expr
    x: Expr
    low: int
    high: int


def _bounded(view: View, _var: Expr, value: Expr) -> Bounded | None:
    bound, params = view.call(value.args[0], "nn.relu", "clip"), parameters(view, value)
    attrs = attributes(value)
    if bound is None or params is None or not params.per_tensor:
        return None
    if attrs["precision"] != "float32" or dtype_of(bound) != "float32":
        return None
    low, high = 0.0, np.inf
    if op_name(bound) == "clip":
        low, high = (float(arg.value) for arg in bound.args[1:3])
    if not low <= high:
        return None
    limits = (attrs["low"], attrs["high"])
    within = [quantized_number(number, params, limits) for number in (low, high)]
    return Bounded(value, bound.args[0], *within)


def _unbounded_unused(view: View, found: Bounded) -> str | None:
    once = view.used_once(found.call.args[0])
    return None if once else "the numbers within bounds are used as floats, too"


def _bound(_view: View, found: Bounded) -> Expr:
    attrs = attributes(found.call) | {"low": found.low, "high": found.high}
    return _quantize(found.x, found.call, attrs)


@dataclass(frozen=True)
class Unchanged:
    """Integers x that a dequantization and quantization only bring within bounds."""

    x: Expr
    low: int
    high: int


def _unchanged(view: View, _var: Expr, value: Expr) -> Unchanged | None:
    params, found = parameters(view, value), dequantized(view, value.args[0])
    if params is None or found is None or found.dtype != dtype_of(value):
        return None
    attrs = attributes(value)
    if attrs["precision"] != "float32" or not params.same(found.params):
        return None
    return Unchanged(found.x, attrs["low"], attrs["high"])


def _limit(_view: View, found: Unchanged) -> Expr:
    x, limits = found.x, np.iinfo(dtype_of(found.x))
    if found.low > limits.min:
        x = relax.op.maximum(x, constant(np.asarray(found.low, limits.dtype)))
    if found.high < limits.max:
        x = relax.op.minimum(x, constant(np.asarray(found.high, limits.dtype)))
    return x


@dataclass(frozen=True)
class HoistQuantize:
    """quantize(movement(x)) becomes movement(quantize(x)); a concatenation's parts alike.

    relu and bounds in front become the limits of the integers, and quantize(dequantize(x)) with
    the same parameters becomes x. All of it is exact: quantization keeps the order of numbers.
    """

    name: str = "hoist_quantize"

    def run(self, graph: Graph) -> Outcome:
        root = (QUANTIZE,)
        rules: tuple[Rule[Any], ...] = (
            Rule("unchanged", root, _unchanged, _limit),
            Rule("bounds", root, _bounded, _bound, _unbounded_unused),
            Rule("movement", root, _hoisted, _hoist, _hoistable),
        )
        return apply_rules(graph, self.name, rules)
