"""Float products and lookups with dequantized constants read them packed, in 2, 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.packed_weights import WIDTHS, matmul_codes, packed_rows
from graphopt.ops.quantize import dequantize
from graphopt.passes.base import Outcome
from graphopt.passes.quantized import BYTES, DEQUANTIZE
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Array, Expr, constant, dtype_of, op_name, permutation, shape_of

_FEWEST = 1 << 12
"""Weights that are worth a kernel of their own."""
_STEP = 8
"""Kernels read so many terms of a column at once, or a divisor of that many."""
_ROUNDED = 16
"""One block for all terms is filled up to a multiple of this."""


@dataclass(frozen=True)
class Packed:
    """Weights as codes: uint8 less the zero points, times the scales.

    codes and parameters have one shape, or broadcast to it.
    """

    codes: Array
    scales: Array
    zeros: Array  # float32
    bits: int


@dataclass(frozen=True)
class Found:
    """A call that reads a dequantized constant: the dequantization, what lies between, outermost
    last, and its operands."""

    call: Expr
    source: Expr
    views: tuple[Expr, ...]
    x: Array
    scale: Array
    zero: Array


def _found(view: View, call: Expr, operand: Expr, kinds: tuple[str, ...]) -> Found | None:
    views: list[Expr] = []
    source = view.call(operand, *kinds, DEQUANTIZE)
    while source is not None and op_name(source) != DEQUANTIZE:
        views.append(source)
        source = view.call(source.args[0], *kinds, DEQUANTIZE)
    if source is None:
        return None
    arrays = [view.constant(arg) for arg in source.args]
    known = [array for array in arrays if array is not None]
    return Found(call, source, tuple(reversed(views)), *known) if len(known) == 3 else None


def _plain(found: Found) -> str | None:
    """Why the constant cannot stay packed, wherever it is read."""
    if found.x.dtype.name not in BYTES:
        return f"the weights are of {found.x.dtype}"
    if found.x.size < _FEWEST:
        return "the weights are few"
    if dtype_of(found.source) not in ("float32", "float16"):
        return f"the weights are dequantized to {dtype_of(found.source)}"
    return None


def _coded(found: Found) -> Packed:
    """The weights in front of the views, in the fewest bits that hold zero points, too."""
    x = found.x.astype(np.int16)
    low, high = min(x.min(), found.zero.min()), max(x.max(), found.zero.max())
    signed = found.x.dtype == np.int8

    def fits(bits: int) -> bool:
        least = -(1 << (bits - 1)) if signed else 0
        return bool(least <= low and high < least + (1 << bits))

    bits = next(width for width in WIDTHS if fits(width))
    offset = 1 << (bits - 1) if signed else 0
    zeros = found.zero.astype(np.float32) + np.float32(offset)
    return Packed((x + offset).astype(np.uint8), found.scale.astype(np.float32), zeros, bits)


def _product(view: View, _var: Expr, value: Expr) -> Found | None:
    return _found(view, value, value.args[1], ("reshape", "permute_dims"))


def _check_product(_view: View, found: Found) -> str | None:
    reason = _plain(found)
    if reason is not None:
        return reason
    *leading, depth, _ = shape_of(found.call.args[1])
    if prod(leading) != 1 or len(shape_of(found.call.args[0])) < 2:
        return "the weights are no matrix"
    block = _block(found, depth)
    return None if block == depth or block % _STEP == 0 else f"its scales are of {block} terms each"


def _matrix(found: Found, values: Array) -> Array:
    """A parameter, or the data, as the (K, N) matrix behind the views."""
    array = np.broadcast_to(values, found.x.shape)
    for call in found.views:
        if op_name(call) == "permute_dims":
            array = np.transpose(array, permutation(call))
        else:
            array = array.reshape(shape_of(call))
    return array.reshape(array.shape[-2:])


def _block(found: Found, depth: int) -> int:
    """Terms in a row that share their scales and zero points."""
    changes: set[int] = set()
    for parameter in (found.scale, found.zero):
        if parameter.size > 1:
            rows = _matrix(found, parameter)
            changes |= set((np.flatnonzero((rows[1:] != rows[:-1]).any(axis=1)) + 1).tolist())
    return gcd(*changes) if changes else depth


def _pack_product(_view: View, found: Found) -> Expr:
    packed = _coded(found)
    codes = _matrix(found, packed.codes)
    depth, columns = codes.shape
    block = _block(found, depth)
    # The last block may be shorter: it is filled up, with codes that no element of a meets.
    size = -(-depth // _ROUNDED) * _ROUNDED if block == depth else block
    rows = -(-depth // size) * size
    padded = np.zeros((rows, columns), np.uint8)
    padded[:depth] = codes
    scales, zeros = (
        np.ascontiguousarray(_matrix(found, values)[::block])
        for values in (packed.scales, packed.zeros)
    )
    return matmul_codes(found.call.args[0], padded, scales, zeros, bits=packed.bits)


def _lookup(view: View, _var: Expr, value: Expr) -> Found | None:
    return _found(view, value, value.args[0], ("reshape",))


def _check_lookup(_view: View, found: Found) -> str | None:
    if found.call.attrs.axis is None or int(found.call.attrs.axis) != 0:
        return "the table is not read by rows"
    count = found.x.shape[0]
    if any(shape_of(view)[:1] != (count,) for view in found.views):
        return "a view divides or joins the table's rows"
    return _plain(found)


def _pack_lookup(_view: View, found: Found) -> Expr:
    """The rows of codes and parameters, dequantized behind the lookup."""
    indices = found.call.args[1]
    rank, (count, *rest) = len(shape_of(indices)), found.x.shape
    packed = _coded(found)
    bits = packed.bits if rest and rest[-1] * packed.bits % 8 == 0 else 8
    each = 8 // bits

    def divided(shape: Sequence[int]) -> tuple[int, ...]:
        """With an axis for the codes of a byte."""
        if each == 1:
            return tuple(shape)
        return (*shape[:-1], *((shape[-1] // each, each) if shape[-1] > 1 else (1, 1)))

    def parameter(array: Array) -> Expr:
        if array.size == 1:
            return constant(array.reshape(()))
        rows = array.reshape(array.shape[0], *divided(array.shape[1:]))
        if array.shape[0] == count and count > 1:
            return relax.op.take(constant(rows), indices, 0)
        return constant(rows.reshape((*[1] * rank, *rows.shape[1:])))

    picked = shape_of(indices)
    table = packed_rows(packed.codes.reshape(count, -1).T, bits).T
    codes = relax.op.take(constant(table), indices, 0)
    if bits < 8:
        codes = relax.op.reshape(codes, (*picked, *rest[:-1], rest[-1] // each, 1))
        codes = relax.op.right_shift(codes, constant(np.arange(0, 8, bits, dtype=np.uint8)))
        codes = relax.op.bitwise_and(codes, constant(np.asarray((1 << bits) - 1, np.uint8)))
    else:
        codes = relax.op.reshape(codes, (*picked, *rest))
    scales, zeros = parameter(packed.scales), parameter(packed.zeros.astype(np.uint8))
    wide = dequantize(codes, scales, zeros, dtype=dtype_of(found.source))
    return relax.op.reshape(wide, shape_of(found.call))


@dataclass(frozen=True)
class PackWeights:
    """x @ dequantize(w) becomes a product with packed weights, and so do lookups in tables.

    Few rows then read an eighth or a quarter of the bytes, and the artifact keeps them so. Views
    and transposes between are done at once. Not for convolutions, whose kernels read floats.
    """

    name: str = "pack_weights"

    def run(self, graph: Graph) -> Outcome:
        rules: tuple[Rule[Any], ...] = (
            Rule("product of packed weights", ("matmul",), _product, _pack_product, _check_product),
            Rule("lookup in a packed table", ("take",), _lookup, _pack_lookup, _check_lookup),
        )
        return apply_rules(graph, self.name, rules)
