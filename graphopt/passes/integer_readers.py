"""Means, average pooling, resizing and normalisation of dequantized numbers read the integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.base import attributes
from graphopt.passes.base import Outcome
from graphopt.passes.quantized import BYTES, Dequantized, dequantized
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, ints, like, op_name

_AVERAGES = ("mean", "nn.avg_pool2d", "graphopt.avg_pool2d", "graphopt.resize2d")
_NORMALISATIONS = ("nn.layer_norm", "nn.rms_norm")
_LARGEST = 1e30  # such an epsilon leaves room for variances in float32


@dataclass(frozen=True)
class Reader:
    """A call whose first operand is dequantized from bytes."""

    call: Expr
    data: Dequantized


def _reader(view: View, _var: Expr, value: Expr) -> Reader | None:
    data = dequantized(view, value.args[0])
    if data is None or not data.params.per_tensor or data.dtype not in BYTES:
        return None
    return Reader(value, data)


def _averages(_view: View, found: Reader) -> str | None:
    """Weights of every element of the result must come to 1."""
    call = found.call
    if op_name(call) == "nn.avg_pool2d":
        counted = bool(call.attrs.count_include_pad) and any(ints(call.attrs.padding))
    else:
        counted = op_name(call) == "graphopt.avg_pool2d" and any(attributes(call)["padding"])
    if counted:
        return "it counts zeros of the padding, which are no integers of zero"
    return None


def _read(found: Reader) -> Expr:
    """The same call on the integers, as floats that are not stored."""
    call = found.call
    numbers = relax.op.astype(found.data.x, "float32")
    return tvm.ir.Call(call.op, [numbers, *call.args[1:]], call.attrs, list(call.ty_args))


def _average(_view: View, found: Reader) -> Expr:
    result, params = _read(found), found.data.params
    if params.point:
        result = relax.op.add(result, like(-params.point, found.call))
    return relax.op.multiply(result, like(float(params.scale.reshape(())), found.call))


def _normalised(_view: View, found: Reader) -> str | None:
    if op_name(found.call) == "nn.rms_norm" and found.data.params.point:
        return "a mean square is not that of the integers less their zero point"
    return None if _epsilon(found) < _LARGEST else "its epsilon is too large beside the scale"


def _epsilon(found: Reader) -> float:
    """The epsilon in the integers' units."""
    return float(found.call.attrs.epsilon) / float(found.data.params.scale.reshape(())) ** 2


def _normalise(_view: View, found: Reader) -> Expr:
    call, epsilon = found.call, _epsilon(found)
    numbers, axes = relax.op.astype(found.data.x, "float32"), ints(call.attrs.axes)
    if op_name(call) == "nn.rms_norm":
        return relax.op.nn.rms_norm(numbers, call.args[1], list(axes), epsilon)
    return relax.op.nn.layer_norm(numbers, call.args[1], call.args[2], list(axes), epsilon)


@dataclass(frozen=True)
class ReadIntegers:
    """average((x − z) · s) becomes (average(x) − z) · s, and norm((x − z) · s) norm(x).

    What averages is linear with weights that sum to 1; a normalisation takes away shift and scale,
    with its epsilon in the integers' units. Kernels read bytes as they read floats, so that no
    dequantized tensor is written. The zero point is subtracted once, not in each term: results
    differ in their last bits.
    """

    name: str = "read_integers"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule("average of integers", _AVERAGES, _reader, _average, _averages),
            Rule("normalise integers", _NORMALISATIONS, _reader, _normalise, _normalised),
        )
        return apply_rules(graph, self.name, rules)
