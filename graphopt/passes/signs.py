"""Signedness: quantized activations become uint8, but int8 where they are a second operand.

Dot-product instructions take unsigned data times signed weights. What a product of two activations
has second is its weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.base import attributes, call_op
from graphopt.ops.narrow import bitcast
from graphopt.ops.quantize import dequantize
from graphopt.passes.base import Outcome
from graphopt.passes.dataflow import OUTPUT
from graphopt.passes.movements import MOVEMENTS, moves, operands_of, readers, with_operands
from graphopt.passes.quantized import (
    BYTES,
    DEQUANTIZE,
    INTEGER_ANCHORS,
    QUANTIZE,
    REQUANTIZE,
    int32_shift,
)
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Array, Expr, constant, dtype_of, op_name

_SHIFT = 128
OTHER = {"int8": "uint8", "uint8": "int8"}


def other_sign(x: Expr, dtype: str | None = None) -> Expr:
    """uint8 numbers less 128 as int8, or int8 numbers plus 128 as uint8.

    dtype: that of x, where it is a call without a type yet.
    """
    flip = constant(np.asarray(_SHIFT, np.uint8))
    if (dtype or dtype_of(x)) == "uint8":
        return bitcast(relax.op.bitwise_xor(x, flip), dtype="int8")
    return relax.op.bitwise_xor(bitcast(x, dtype="uint8"), flip)


def as_bytes(x: Expr, zero: int, dtype: str) -> tuple[Expr, int]:
    """Bytes and their zero point as `dtype`, uint8 or int8."""
    return (x, zero) if dtype_of(x) == dtype else (other_sign(x), zero + shift_to(dtype))


def shifted_source(view: View, expr: Expr) -> Expr | None:
    """x where `expr` is other_sign(x)."""
    outer = view.call(expr, "graphopt.bitcast", "bitwise_xor")
    if outer is None or dtype_of(outer) not in BYTES:
        return None
    inner = view.call(outer.args[0], *({"graphopt.bitcast", "bitwise_xor"} - {op_name(outer)}))
    if inner is None or dtype_of(inner.args[0]) != OTHER[dtype_of(outer)]:
        return None
    flipped = outer if op_name(outer) == "bitwise_xor" else inner
    return inner.args[0] if view.scalar(flipped.args[1]) == _SHIFT else None


def as_other(integers: Array) -> Expr:
    """Constant bytes, a zero point say, shifted to the other sign."""
    dtype = OTHER[integers.dtype.name]
    return constant((integers.astype(np.int32) + shift_to(dtype)).astype(dtype))


def shift_to(dtype: str) -> int:
    return _SHIFT if dtype == "uint8" else -_SHIFT


def _preferred(view: View, expr: Expr) -> str | None:
    """The type that suits what reads `expr` as quantized data; None where nothing does."""
    second: list[bool] = []
    for name in readers(view, expr):
        call = view.value(name)
        if op_name(call) == DEQUANTIZE:
            second.append(_is_second(view, view.variable(name)))
        elif op_name(call) in INTEGER_ANCHORS and view.is_constant(call.args[1]):
            second.append(False)
    if not second:
        return None
    return "int8" if all(second) else "uint8"


def _is_second(view: View, number: Expr) -> bool:
    """Whether a dequantized tensor is only read as a product's second operand."""
    names = view.users(number)
    calls = [view.value(name) for name in names if name != OUTPUT]
    return (
        bool(calls)
        and len(calls) == len(names)
        and all(op_name(call) == "matmul" and not call.args[0].same_as(number) for call in calls)
    )


@dataclass(frozen=True)
class Shifted:
    """A call with bytes of the wrong sign behind it or in front, and its zero point."""

    call: Expr
    x: Expr
    zero: Array


def _quantized(view: View, var: Expr, value: Expr) -> Shifted | None:
    zero = view.constant(value.args[2])
    if dtype_of(value) not in BYTES or zero is None:
        return None
    if _preferred(view, var) in (None, dtype_of(value)):
        return None
    return Shifted(value, value.args[0], zero)


def _quantize(_view: View, found: Shifted) -> Expr:
    return other_sign(quantize_other(found.call, found.zero), OTHER[dtype_of(found.call)])


def quantize_other(call: Expr, zero: Array) -> Expr:
    """A quantize or requantize call to the other sign; the numbers stay."""
    attrs, shift = attributes(call), shift_to(OTHER[dtype_of(call)])
    attrs |= {bound: attrs[bound] + shift for bound in ("low", "high")}
    return call_op(call.op, (call.args[0], call.args[1], as_other(zero)), attrs)


def _dequantized(view: View, _var: Expr, value: Expr) -> Shifted | None:
    source, zero = shifted_source(view, value.args[0]), view.constant(value.args[2])
    return None if source is None or zero is None else Shifted(value, source, zero)


def _dequantize(_view: View, found: Shifted) -> Expr:
    call = found.call
    return dequantize(found.x, call.args[1], as_other(found.zero), dtype=dtype_of(call))


@dataclass(frozen=True)
class Moved:
    """A movement, with operands of the other sign."""

    call: Expr
    operands: tuple[Expr, ...]


def _moved(view: View, var: Expr, value: Expr) -> Moved | None:
    """A movement of bytes of which an operand was of the other sign.

    Shifts gather at the end, whatever is preferred there. Operands that are joined are brought to
    the sign that is.
    """
    if not moves(value) or dtype_of(value) not in BYTES:
        return None
    sources = [shifted_source(view, operand) for operand in operands_of(value)]
    if all(source is None for source in sources):
        return None
    preferred = _preferred(view, var)
    if preferred is None or (len(sources) > 1 and preferred == dtype_of(value)):
        return None
    operands = []
    for operand, source in zip(operands_of(value), sources, strict=True):
        array = view.constant(operand)
        if source is None:
            source = other_sign(operand) if array is None else as_other(array)
        operands.append(source)
    return Moved(value, tuple(operands))


def _move(_view: View, found: Moved) -> Expr:
    dtype = OTHER[dtype_of(found.call)]
    moved = with_operands(found.call, found.operands, shift=shift_to(dtype))
    return other_sign(moved, dtype)


@dataclass(frozen=True)
class Anchored:
    """Integer sums over x less 128, with constant weights."""

    call: Expr
    x: Expr
    weight: Array


def _anchored(view: View, _var: Expr, value: Expr) -> Anchored | None:
    source, weight = shifted_source(view, value.args[0]), view.constant(value.args[1])
    if source is None or weight is None or dtype_of(value.args[0]) != "int8":
        return None
    return Anchored(value, source, weight)


def _anchor(_view: View, found: Anchored) -> Expr:
    attrs, wide = attributes(found.call), found.weight.astype(np.int64)
    if any(attrs.get("zeros", ())) or attrs.get("transpose_b"):
        left, right = attrs["zeros"]
        attrs["zeros"] = (left + _SHIFT, right)
        return call_op(found.call.op, (found.x, found.call.args[1]), attrs)
    if "pad_value" in attrs:
        attrs["pad_value"] += _SHIFT
        sums = wide.sum(axis=tuple(range(1, wide.ndim))).reshape(1, -1, *[1] * (wide.ndim - 2))
    else:
        sums = wide.sum(axis=-2, keepdims=wide.ndim > 2)
    result = call_op(found.call.op, (found.x, found.call.args[1]), attrs)
    return relax.op.add(result, int32_shift(-_SHIFT * sums))


@dataclass(frozen=True)
class Corrected:
    """sums + first + second, with constants."""

    sums: Expr
    total: Array


def _corrected(view: View, _var: Expr, value: Expr) -> Corrected | None:
    inner = view.call(value.args[0], "add") if dtype_of(value) == "int32" else None
    if inner is None or not view.used_once(value.args[0]):
        return None
    first, second = view.constant(inner.args[1]), view.constant(value.args[1])
    if first is None or second is None:
        return None
    return Corrected(inner.args[0], first.astype(np.int64) + second)


def _correct(_view: View, found: Corrected) -> Expr:
    return relax.op.add(found.sums, int32_shift(found.total))


def _there_and_back(view: View, var: Expr, value: Expr) -> Expr | None:
    """y where a value is other_sign(other_sign(y))."""
    once = shifted_source(view, var)
    return None if once is None else shifted_source(view, once)


@dataclass(frozen=True)
class NormalizeSigns:
    """int8 between quantize and dequantize becomes uint8 with a zero point 128 higher.

    Also behind views, pooling and the like. A tensor that is used otherwise, too, or comes from
    elsewhere, is shifted by 128 where it has to be int8 or was. What products have only as their
    second operand becomes int8 in the same way.
    """

    name: str = "normalize_signs"

    def run(self, graph: Graph) -> Outcome:
        flips = ("bitwise_xor", "graphopt.bitcast")
        rules: tuple[Rule[Any], ...] = (
            Rule("quantize to the other sign", (QUANTIZE, REQUANTIZE), _quantized, _quantize),
            Rule("dequantize from the other sign", (DEQUANTIZE,), _dequantized, _dequantize),
            Rule("move the other sign", MOVEMENTS, _moved, _move),
            Rule("sums over the other sign", INTEGER_ANCHORS, _anchored, _anchor),
            Rule("corrections of sums", ("add",), _corrected, _correct),
            Rule("there and back", flips, _there_and_back, lambda _view, x: x),
        )
        return apply_rules(graph, self.name, rules)
