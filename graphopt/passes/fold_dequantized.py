"""Quantizes constants at compile time, and dequantizes them where no kernel took the integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.ir import Graph
from graphopt.ops.base import attributes
from graphopt.passes.base import Outcome
from graphopt.passes.dataflow import OUTPUT
from graphopt.passes.fold_affine import CONVOLUTIONS
from graphopt.passes.quantized import DEQUANTIZE, QUANTIZE, dequantized_array, quantized_array
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Array, Expr, constant, dtype_of, op_name


@dataclass(frozen=True)
class Weights:
    """The operands of a dequantization, all constant."""

    x: Array
    scale: Array
    zero: Array
    dtype: str


_VIEWS = ("reshape", "permute_dims", "expand_dims", "squeeze", "flatten")
_READERS = (*CONVOLUTIONS, "matmul", "take")


def _feeds_product(view: View, var: Expr) -> bool:
    """Whether a convolution, product or lookup reads `var`, or a view or transpose of it."""
    pending = [var]
    while pending:
        for name in view.users(pending.pop()):
            kind = op_name(view.value(name)) if name != OUTPUT else ""
            if kind in _READERS:
                return True
            if kind in _VIEWS:
                pending.append(view.variable(name))
    return False


def _constants(view: View, _var: Expr, value: Expr) -> Weights | None:
    arrays = [view.constant(arg) for arg in value.args]
    if any(array is None for array in arrays):
        return None
    x, scale, zero = (np.asarray(array) for array in arrays)
    return Weights(x, scale, zero, dtype_of(value))


def _dequantized(_view: View, found: Weights) -> Expr:
    return constant(dequantized_array(found.x, found.scale, found.zero), found.dtype)


@dataclass(frozen=True)
class Numbers:
    """The operands of a quantization, all constant, and its attributes."""

    x: Array
    scale: Array
    zero: Array
    attrs: dict[str, Any]


def _numbers(view: View, _var: Expr, value: Expr) -> Numbers | None:
    arrays = [view.constant(arg) for arg in value.args]
    if any(array is None for array in arrays):
        return None
    x, scale, zero = (np.asarray(array) for array in arrays)
    return Numbers(x, scale, zero, attributes(value))


def _quantized(_view: View, found: Numbers) -> Expr:
    return constant(quantized_array(found.x, found.scale, found.zero, found.attrs))


@dataclass(frozen=True)
class FoldDequantized:
    """graphopt.dequantize of constants becomes a float constant, and quantize an integer one.

    A float kernel packs its weights at compile time. Dequantizing them in every run pays only
    where a kernel does so in registers (PackWeights); others would be left unable to pack.

    weights: also those that a product or lookup may still read as integers.
    """

    weights: bool = True
    name: str = "fold_dequantized"

    def run(self, graph: Graph) -> Outcome:
        def match(view: View, var: Expr, value: Expr) -> Weights | None:
            found = _constants(view, var, value)
            if found is None or self.weights or not _feeds_product(view, var):
                return found
            return None

        rules: tuple[Rule[Any], ...] = (
            Rule("quantize", (QUANTIZE,), _numbers, _quantized),
            Rule("dequantize", (DEQUANTIZE,), match, _dequantized),
        )
        return apply_rules(graph, self.name, rules)
