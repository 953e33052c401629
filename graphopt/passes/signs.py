"""Signedness: quantized activations become uint8, the type that dot-product instructions want."""

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
from graphopt.passes.movements import MOVEMENTS, moves, operands_of, reaches, with_operands
from graphopt.passes.quantized import DEQUANTIZE, QUANTIZE, REQUANTIZE
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Array, Expr, constant, dtype_of

_SHIFT = 128


def signed(x: Expr) -> Expr:
    """uint8 numbers less 128, as int8."""
    return bitcast(relax.op.bitwise_xor(x, _flip()), dtype="int8")


def unsigned(x: Expr) -> Expr:
    """int8 numbers plus 128, as uint8."""
    return relax.op.bitwise_xor(bitcast(x, dtype="uint8"), _flip())


def _flip() -> Expr:
    return constant(np.asarray(_SHIFT, np.uint8))


def as_unsigned(x: Expr, zero: int) -> tuple[Expr, int]:
    """Bytes and their zero point as uint8."""
    return (x, zero) if dtype_of(x) == "uint8" else (unsigned(x), zero + _SHIFT)


def _shifted(view: View, expr: Expr) -> Expr | None:
    """x where `expr` is bitwise_xor(x, 128)."""
    call = view.call(expr, "bitwise_xor")
    return call.args[0] if call is not None and view.scalar(call.args[1]) == _SHIFT else None


def signed_source(view: View, expr: Expr) -> Expr | None:
    """x where `expr` is signed(x)."""
    call = view.call(expr, "graphopt.bitcast")
    if call is None or dtype_of(call) != "int8":
        return None
    return _shifted(view, call.args[0])


def _raised(zero: Array) -> Expr:
    return constant((zero.astype(np.int32) + _SHIFT).astype(np.uint8))


@dataclass(frozen=True)
class Signed:
    """A call with int8 in front of or behind it, and its zero point."""

    call: Expr
    x: Expr
    zero: Array


def _wanted(view: View, expr: Expr) -> bool:
    return reaches(view, expr, (DEQUANTIZE,))


def _quantized(view: View, var: Expr, value: Expr) -> Signed | None:
    zero = view.constant(value.args[2])
    if dtype_of(value) != "int8" or zero is None or not _wanted(view, var):
        return None
    return Signed(value, value.args[0], zero)


def _quantize_unsigned(_view: View, found: Signed) -> Expr:
    attrs = dict(attributes(found.call))
    attrs |= {bound: attrs[bound] + _SHIFT for bound in ("low", "high") if bound in attrs}
    args = (found.x, found.call.args[1], _raised(found.zero))
    return signed(call_op(found.call.op, args, attrs))


def _dequantized(view: View, _var: Expr, value: Expr) -> Signed | None:
    source, zero = signed_source(view, value.args[0]), view.constant(value.args[2])
    return None if source is None or zero is None else Signed(value, source, zero)


def _dequantize_unsigned(_view: View, found: Signed) -> Expr:
    return dequantize(found.x, found.call.args[1], _raised(found.zero), dtype=dtype_of(found.call))


def _moved(view: View, var: Expr, value: Expr) -> tuple[Expr, list[Expr]] | None:
    """A movement of int8 of which an operand was uint8, with its operands as uint8."""
    if not moves(value) or dtype_of(value) != "int8" or not _wanted(view, var):
        return None
    sources = [signed_source(view, operand) for operand in operands_of(value)]
    if all(source is None for source in sources):
        return None
    operands = []
    for operand, source in zip(operands_of(value), sources, strict=True):
        array = view.constant(operand)
        if source is None and array is not None:
            operands.append(_raised(array))
        else:
            operands.append(unsigned(operand) if source is None else source)
    return value, operands


def _move_unsigned(_view: View, found: tuple[Expr, list[Expr]]) -> Expr:
    return signed(with_operands(*found, shift=_SHIFT))


def _there_and_back(view: View, _var: Expr, value: Expr) -> Expr | None:
    """y where a value is unsigned(signed(y))."""
    back = view.call(value.args[0], "graphopt.bitcast")
    if back is None or view.scalar(value.args[1]) != _SHIFT:
        return None
    return signed_source(view, back.args[0])


@dataclass(frozen=True)
class NormalizeSigns:
    """int8 between quantize and dequantize becomes uint8 with a zero point 128 higher.

    Also behind views, pooling and the like. A tensor that is used otherwise, too, or comes from
    elsewhere, is shifted by 128 where it has to be int8 or was.
    """

    name: str = "normalize_signs"

    def run(self, graph: Graph) -> Outcome:
        made = (QUANTIZE, REQUANTIZE)
        rules: tuple[Rule[Any], ...] = (
            Rule("quantize to uint8", made, _quantized, _quantize_unsigned),
            Rule(
                "dequantize from uint8",
                ("graphopt.dequantize",),
                _dequantized,
                _dequantize_unsigned,
            ),
            Rule("move uint8", MOVEMENTS, _moved, _move_unsigned),
            Rule("there and back", ("bitwise_xor",), _there_and_back, lambda _view, x: x),
        )
        return apply_rules(graph, self.name, rules)
