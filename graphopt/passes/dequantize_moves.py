"""Moves dequantizations behind what only moves numbers, so that integers are moved instead."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.quantize import dequantize
from graphopt.passes.base import Outcome
from graphopt.passes.movements import MOVEMENTS, moves, operands_of, padded, with_operands
from graphopt.passes.quantized import (
    DEQUANTIZE,
    QUANTIZE,
    Dequantized,
    dequantize_like,
    dequantized,
    integer_of,
)
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import (
    Array,
    Expr,
    constant,
    dtype_of,
    op_name,
    permutation,
    shape_of,
)


@dataclass(frozen=True)
class Moved:
    """movement(dequantize(x), …) with parameters that all of them share."""

    call: Expr
    operands: tuple[Dequantized, ...]
    first: Expr  # a dequantize call with the parameters
    pad: int | None  # what an explicit padding pads with, as an integer


def _moved(view: View, _var: Expr, value: Expr) -> Moved | None:
    if not moves(value):
        return None
    found = [dequantized(view, operand) for operand in operands_of(value)]
    operands = tuple(each for each in found if each is not None)
    if len(operands) < len(found) or not operands:
        return None
    first, params = operands[0], operands[0].params
    if not all(params.same(each.params) and each.dtype == first.dtype for each in operands):
        return None
    pad = None
    if op_name(value) == "nn.pad":
        pad = integer_of(float(value.attrs.pad_value), params, first.dtype)
    return Moved(value, operands, view.call(operands_of(value)[0], DEQUANTIZE), pad)


def _movable(_view: View, found: Moved) -> str | None:
    if op_name(found.call) == "nn.pad" and str(found.call.attrs.pad_mode) == "constant":
        return "no integer stands for what it pads with" if found.pad is None else None
    return None


def _move(_view: View, found: Moved) -> Expr:
    sources = [each.x for each in found.operands]
    if found.pad is not None:
        inner = padded(found.call, sources[0], found.pad)
    else:
        inner = with_operands(found.call, sources)
    return dequantize_like(inner, found.first)


@dataclass(frozen=True)
class Part:
    """One part of a split dequantization."""

    index: int
    split: Expr
    source: Expr  # the dequantize call


def _part(view: View, _var: Expr, value: Expr) -> Part | None:
    split = view.call(value.tuple_value, "split")
    found = None if split is None else dequantized(view, split.args[0])
    if split is None or found is None or not found.params.per_tensor:
        return None
    return Part(int(value.index), split, view.call(split.args[0], DEQUANTIZE))


def _move_part(_view: View, found: Part) -> Expr:
    attrs = found.split.attrs
    parts = relax.op.split(found.source.args[0], attrs.indices_or_sections, int(attrs.axis))
    return dequantize_like(relax.TupleGetItem(parts, found.index), found.source)


@dataclass(frozen=True)
class Rectified:
    """relu(dequantize(x))."""

    x: Dequantized
    source: Expr  # the dequantize call


_INTEGER_READERS = (QUANTIZE, "nn.conv1d", "nn.conv2d", "nn.conv3d", "matmul", *MOVEMENTS)


def _rectified(view: View, var: Expr, value: Expr) -> Rectified | None:
    found = dequantized(view, value.args[0])
    if found is None or not found.params.per_tensor:
        return None
    readers = view.users(var)
    if not all(name and op_name(view.value(name)) in _INTEGER_READERS for name in readers):
        return None
    return Rectified(found, view.call(value.args[0], DEQUANTIZE))


def _maximum(_view: View, found: Rectified) -> Expr:
    zero = constant(np.asarray(found.x.params.point, found.x.dtype))
    return dequantize_like(relax.op.maximum(found.x.x, zero), found.source)


@dataclass(frozen=True)
class Weight:
    """A view or transpose of a dequantized constant: the constants behind it."""

    x: Array
    scale: Array
    zero: Array
    dtype: str


def _weight(view: View, _var: Expr, value: Expr) -> Weight | None:
    call = view.call(value.args[0], DEQUANTIZE)
    arrays = [] if call is None else [view.constant(arg) for arg in call.args]
    known = [array for array in arrays if array is not None]
    if len(known) < 3:
        return None
    x, scale, zero = (_behind(array, known[0].shape, value) for array in known)
    if x is None or scale is None or zero is None:
        return None
    return Weight(x, scale, zero, dtype_of(value))


def _behind(array: Array, shape: tuple[int, ...], call: Expr) -> Array | None:
    """A constant that broadcasts to `shape` as it is behind the view or transpose `call`."""
    if array.ndim == 0:
        return array
    if op_name(call) == "permute_dims":
        return np.transpose(array, permutation(call))
    after = shape_of(call)
    if array.shape == shape:
        return array.reshape(after)
    if [d for d in shape if d != 1] != [d for d in after if d != 1]:
        return _vector_behind(array, shape, after)
    kept = iter(mine for mine, full in zip(array.shape, shape, strict=True) if full != 1)
    return array.reshape([1 if full == 1 else next(kept) for full in after])


def _vector_behind(array: Array, shape: tuple[int, ...], after: tuple[int, ...]) -> Array | None:
    """As _behind(), for a reshape that keeps the one axis along which `array` varies."""
    axis = max(range(array.ndim), key=lambda i: array.shape[i])
    if array.shape[axis] != array.size:
        return None
    for place, extent in enumerate(after):
        if extent == shape[axis] and prod(after[:place]) == prod(shape[:axis]):
            return array.reshape([extent if i == place else 1 for i in range(len(after))])
    return None


def _move_weight(_view: View, found: Weight) -> Expr:
    x, scale, zero = (constant(array) for array in (found.x, found.scale, found.zero))
    return dequantize(x, scale, zero, dtype=found.dtype)


@dataclass(frozen=True)
class SinkDequantize:
    """movement(dequantize(x)) becomes dequantize(movement(x)) where all has one scale.

    So do a concatenation of tensors of one scale and relu, a maximum with the zero point. Views
    and transposes of constants are done at once, with scales of any shape that they can move.
    """

    name: str = "sink_dequantize"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule("constant", ("reshape", "permute_dims"), _weight, _move_weight),
            Rule("movement", MOVEMENTS, _moved, _move, _movable),
            Rule("part", ("item",), _part, _move_part),
            Rule("relu", ("nn.relu",), _rectified, _maximum),
        )
        return apply_rules(graph, self.name, rules)
