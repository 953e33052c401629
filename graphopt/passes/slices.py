"""Slices: one op for split and scalar take; moved towards the producer until they meet a concat."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.product_chains import Chain, product_chain, rebuilt, varies_elsewhere
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import (
    Expr,
    constant,
    ints,
    op_name,
    permutation,
    reshaped,
    shape_of,
    slice_ranges,
    sliced,
)


@dataclass(frozen=True)
class Piece:
    """x[begin:end] on one axis, then seen as `shape`, then permuted by `axes` if given."""

    x: Expr
    axis: int
    begin: int
    end: int
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()


def one_axis(value: Expr) -> Piece | None:
    """A strided_slice that cuts a contiguous piece out of exactly one axis."""
    ranges = slice_ranges(value)
    source = shape_of(value.args[0])
    if ranges is None:
        return None
    cut = [axis for axis, dim in enumerate(source) if ranges[axis] != (0, dim, 1)]
    if len(cut) != 1 or ranges[cut[0]][2] != 1:
        return None
    begin, end, _ = ranges[cut[0]]
    return Piece(value.args[0], cut[0], begin, end, shape_of(value))


def _cut(_view: View, piece: Piece) -> Expr:
    result = sliced(piece.x, piece.axis, piece.begin, piece.end)
    if piece.axes:
        return relax.op.permute_dims(result, list(piece.axes))
    dims = list(shape_of(piece.x))
    dims[piece.axis] = piece.end - piece.begin
    return result if tuple(dims) == piece.shape else reshaped(result, piece.shape)


def _scalar_take(view: View, _var: Expr, value: Expr) -> Piece | None:
    x, indices = value.args
    array = view.constant(indices)
    if array is None or view.is_constant(x):
        return None
    source = shape_of(x)
    axis = int(value.attrs.axis or 0) % len(source)
    flat = array.reshape(-1).astype(np.int64)
    flat = np.where(flat < 0, flat + source[axis], flat)
    if not flat.size or flat[0] < 0 or flat[-1] >= source[axis] or (np.diff(flat) != 1).any():
        return None
    return Piece(x, axis, int(flat[0]), int(flat[-1]) + 1, shape_of(value))


def _split_item(view: View, _var: Expr, value: Expr) -> Piece | None:
    split = view.call(value.tuple_value, "split")
    if split is None:
        return None
    x = split.args[0]
    source = shape_of(x)
    axis = int(split.attrs.axis) % len(source)
    sections = split.attrs.indices_or_sections
    if hasattr(sections, "__len__"):
        bounds = [0, *ints(sections), source[axis]]
    else:
        size = -(-source[axis] // int(sections))
        bounds = [min(i * size, source[axis]) for i in range(int(sections) + 1)]
    index = int(value.index)
    return Piece(x, axis, bounds[index], bounds[index + 1], shape_of(value))


def _before_permutation(view: View, _var: Expr, value: Expr) -> Piece | None:
    piece = one_axis(value)
    inner = None if piece is None else view.call(piece.x, "permute_dims")
    if piece is None or inner is None:
        return None
    if any(op_name(view.value(user)) != "strided_slice" for user in view.users(piece.x) if user):
        return None
    axes = permutation(inner)
    return Piece(inner.args[0], axes[piece.axis], piece.begin, piece.end, piece.shape, axes)


def _before_view(view: View, _var: Expr, value: Expr) -> Piece | None:
    """The slice of a view is the view of a slice if it cuts one axis of the source, too."""
    piece = one_axis(value)
    inner = None if piece is None else view.call(piece.x, "reshape")
    if piece is None or inner is None:
        return None
    old, new = shape_of(inner.args[0]), shape_of(inner)
    for axis in range(len(old)):
        unit, step = prod(new[piece.axis + 1 :]), prod(old[axis + 1 :])
        if prod(old[:axis]) == prod(new[: piece.axis]) and step and unit % step == 0:
            factor = unit // step
            begin, end = piece.begin * factor, piece.end * factor
            return Piece(inner.args[0], axis, begin, end, piece.shape)
    return None


@dataclass(frozen=True)
class Window:
    """x[ranges], with (begin, end, stride) per axis."""

    x: Expr
    ranges: tuple[tuple[int, int, int], ...]


def _nested(view: View, _var: Expr, value: Expr) -> Window | None:
    call = view.call(value.args[0], "strided_slice")
    inner = None if call is None else slice_ranges(call)
    outer = slice_ranges(value)
    if call is None or inner is None or outer is None:
        return None
    # On two axes it could not move past a view or a transpose any more: those come first.
    moves = view.call(call.args[0], "reshape", "permute_dims") is not None
    one, two = one_axis(call), one_axis(value)
    if moves and (one is None or two is None or one.axis != two.axis):
        return None
    ranges = tuple(
        (
            first + begin * step,
            first + (end - 1) * step + 1 if end > begin else first,
            stride * step,
        )
        for (first, _, step), (begin, end, stride) in zip(inner, outer, strict=True)
    )
    return Window(call.args[0], ranges)


def _window(_view: View, found: Window) -> Expr:
    dims = shape_of(found.x)
    cut = [axis for axis, dim in enumerate(dims) if found.ranges[axis] != (0, dim, 1)]
    begin, end, strides = ([found.ranges[axis][i] for axis in cut] for i in range(3))
    return relax.op.strided_slice(found.x, cut, begin, end, strides)


def _within_concat(view: View, _var: Expr, value: Expr) -> Expr | None:
    """A slice that is exactly one part of a concatenation."""
    piece = one_axis(value)
    concat = None if piece is None else view.call(piece.x, "concat")
    if piece is None or concat is None or not isinstance(concat.args[0], relax.Tuple):
        return None
    rank = len(shape_of(value))
    if int(concat.attrs.axis or 0) % rank != piece.axis:
        return None
    begin = 0
    for part in concat.args[0].fields:
        end = begin + shape_of(part)[piece.axis]
        if (begin, end) == (piece.begin, piece.end):
            return part
        begin = end
    return None


def _rejoined(view: View, _var: Expr, value: Expr) -> Expr | None:
    """A concatenation of all pieces of one tensor, in order."""
    if not isinstance(value.args[0], relax.Tuple):
        return None
    axis = int(value.attrs.axis or 0) % len(shape_of(value))
    source, position = None, 0
    for part in value.args[0].fields:
        call = view.call(part, "strided_slice")
        piece = None if call is None else one_axis(call)
        if piece is None or piece.axis != axis or piece.begin != position:
            return None
        if source is not None and not piece.x.same_as(source):
            return None
        source, position = piece.x, piece.end
    return source if source is not None and shape_of(source) == shape_of(value) else None


@dataclass(frozen=True)
class SimplifySlices:
    """split and takes of neighbouring constant indices become strided_slice.

    Slices move in front of views and permutations, where they move fewer elements; slices of
    slices, and concatenations with slices that undo them, are resolved.
    """

    name: str = "simplify_slices"

    def run(self, graph: Graph) -> Outcome:
        cut = ("strided_slice",)
        rules: tuple[Rule[Any], ...] = (
            Rule("take to slice", ("take",), _scalar_take, _cut),
            Rule("split to slices", ("item",), _split_item, _cut),
            Rule("slice of slice", cut, _nested, _window),
            Rule("slice of concat", cut, _within_concat, lambda _view, part: part),
            Rule("slice before permutation", cut, _before_permutation, _cut),
            Rule("slice before view", cut, _before_view, _cut),
            Rule("concat of slices", ("concat",), _rejoined, lambda _view, source: source),
        )
        return apply_rules(graph, self.name, rules)


@dataclass(frozen=True)
class Columns:
    """f(x @ weight)[..., begin:end] for a chain f of steps with constants."""

    chain: Chain
    piece: Piece


def _columns(view: View, _var: Expr, value: Expr) -> Columns | None:
    piece = one_axis(value)
    if piece is None or piece.axis != len(piece.shape) - 1:
        return None
    chain = product_chain(view, piece.x)
    if chain is None or not view.is_constant(chain.product.args[1]):
        return None
    return Columns(chain, piece)


def _divisible(view: View, found: Columns) -> str | None:
    if varies_elsewhere(found.chain):
        return "what follows the product varies along other axes than the last"
    if not all(view.used_once(link) for link in found.chain.links[1:]):
        return "the product is used without what follows it, too"
    taken = []
    for user in view.users(found.piece.x):
        value = view.value(user) if user else None
        piece = one_axis(value) if op_name(value) == "strided_slice" else None
        if piece is None or piece.axis != found.piece.axis:
            return "the product is used as a whole, too"
        taken.append((piece.begin, piece.end))
    taken.sort()
    if any(left[1] > right[0] for left, right in pairwise(taken)):
        return "the slices overlap"
    return None


def _divide(view: View, found: Columns) -> Expr:
    part = slice(found.piece.begin, found.piece.end)
    x, weight = found.chain.product.args
    array = view.constant(weight)
    assert array is not None  # matched
    rank = len(found.piece.shape)
    return rebuilt(view, found.chain, x, constant(array[:, part]), rank, lambda v: v[part])


@dataclass(frozen=True)
class SplitProjections:
    """One product whose columns are only read in slices (a fused QKV) becomes one per slice.

    The work is the same; the copies that cut the result apart are gone, and each part can be
    fused with what follows it.
    """

    name: str = "split_projections"

    def run(self, graph: Graph) -> Outcome:
        rule = Rule("split columns", ("strided_slice",), _columns, _divide, _divisible)
        return apply_rules(graph, self.name, (rule,))
