"""Tensors of bytes that are only read with the other sign are made so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.movements import MOVEMENTS, moves, operands_of, with_operands
from graphopt.passes.quantized import QUANTIZE, REQUANTIZE
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.signs import OTHER, other_sign, quantize_other, shift_to, shifted_source
from graphopt.passes.values import Array, Expr, dtype_of


@dataclass(frozen=True)
class Made:
    """other_sign(call), a quantization with this zero point."""

    call: Expr
    zero: Array


def _source(view: View, var: Expr, *kinds: str) -> Expr | None:
    """The call in other_sign(call), where nothing else reads it or what lies between."""
    source = shifted_source(view, var)
    if source is None or not view.used_once(source):
        return None
    return view.call(source, *kinds) if view.used_once(view.value(var.name).args[0]) else None


def _made(view: View, var: Expr, _value: Expr) -> Made | None:
    call = _source(view, var, QUANTIZE, REQUANTIZE)
    zero = None if call is None else view.constant(call.args[2])
    return None if call is None or zero is None else Made(call, zero)


def _moved(view: View, var: Expr, _value: Expr) -> Expr | None:
    """A movement of one tensor."""
    call = _source(view, var, *MOVEMENTS)
    return call if call is not None and moves(call) and len(operands_of(call)) == 1 else None


def _shift_first(_view: View, call: Expr) -> Expr:
    shift = shift_to(OTHER[dtype_of(call)])
    return with_operands(call, [other_sign(operands_of(call)[0])], shift=shift)


@dataclass(frozen=True)
class AbsorbShifts:
    """other_sign(movement(quantize(x))) becomes movement(quantize(x)) to the other sign.

    For shifts that stand in front of a product, where the tensor is used for nothing else.
    """

    name: str = "absorb_shifts"

    def run(self, graph: Graph) -> Outcome:
        flips = ("bitwise_xor", "graphopt.bitcast")
        rules: tuple[Rule[Any], ...] = (
            Rule("made so", flips, _made, lambda _view, made: quantize_other(made.call, made.zero)),
            Rule("in front of movements", flips, _moved, _shift_first),
        )
        return apply_rules(graph, self.name, rules)
