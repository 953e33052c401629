"""Composes and cancels transposes, also across views and elementwise operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.reductions import REDUCTIONS
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import (
    ELEMENTWISE,
    Expr,
    constant,
    op_name,
    permutation,
    reduced_axes,
    reshaped,
    shape_of,
)


@dataclass(frozen=True)
class Permuted:
    """x with its axes permuted, then seen as `shape`."""

    x: Expr
    axes: tuple[int, ...]
    shape: tuple[int, ...]


def _permuted(x: Expr, axes: tuple[int, ...]) -> Expr:
    return x if axes == tuple(range(len(axes))) else relax.op.permute_dims(x, list(axes))


def _build(_view: View, found: Permuted) -> Expr:
    result = _permuted(found.x, found.axes)
    dims = tuple(shape_of(found.x)[axis] for axis in found.axes)
    return result if dims == found.shape else reshaped(result, found.shape)


def _nothing_moves(_view: View, _var: Expr, value: Expr) -> Permuted | None:
    axes = permutation(value)
    same = axes == tuple(range(len(axes)))
    return Permuted(value.args[0], axes, shape_of(value)) if same else None


def _composed(view: View, _var: Expr, value: Expr) -> Permuted | None:
    inner = view.call(value.args[0], "permute_dims")
    if inner is None:
        return None
    first = permutation(inner)
    axes = tuple(first[axis] for axis in permutation(value))
    return Permuted(inner.args[0], axes, shape_of(value))


def _unit_axes_in_place(_view: View, _var: Expr, value: Expr) -> Permuted | None:
    """The same movement with every axis of length 1 left where it is."""
    source, axes = shape_of(value.args[0]), permutation(value)
    moved = iter(axis for axis in axes if source[axis] != 1)
    kept = tuple(axis if dim == 1 else next(moved) for axis, dim in enumerate(source))
    if kept == axes or kept == tuple(range(len(source))):
        return None
    return Permuted(value.args[0], kept, shape_of(value))


def _across_view(view: View, _var: Expr, value: Expr) -> Permuted | None:
    """permute(reshape(permute(x))) where the reshape only inserts or removes unit axes."""
    reshape = view.call(value.args[0], "reshape")
    inner = None if reshape is None else view.call(reshape.args[0], "permute_dims")
    if reshape is None or inner is None:
        return None
    before, after = shape_of(reshape.args[0]), shape_of(reshape)
    old = [axis for axis, dim in enumerate(before) if dim != 1]
    new = [axis for axis, dim in enumerate(after) if dim != 1]
    if [before[axis] for axis in old] != [after[axis] for axis in new]:
        return None
    where = dict(zip(new, old, strict=True))
    moved = iter(where[axis] for axis in permutation(value) if axis in where)
    axes = [axis if dim == 1 else next(moved) for axis, dim in enumerate(before)]
    first = permutation(inner)
    return Permuted(inner.args[0], tuple(first[axis] for axis in axes), shape_of(value))


@dataclass(frozen=True)
class Unpadded:
    """permute(reshape(x, source)), where x is what a permutation in another rank read."""

    x: Expr
    source: tuple[int, ...]
    axes: tuple[int, ...]


def _view_after(view: View, var: Expr, value: Expr) -> Unpadded | None:
    """reshape(permute(x)) where the reshape only inserts or removes unit axes, and is the last."""
    call = view.call(value.args[0], "permute_dims")
    if call is None or not view.used_once(value.args[0]):
        return None
    users = view.users(var)
    if users and all(user and op_name(view.value(user)) == "reshape" for user in users):
        return None
    before, after = shape_of(call), shape_of(value)
    if [d for d in before if d != 1] != [d for d in after if d != 1]:
        return None
    dims = shape_of(call.args[0])
    long_axes = [axis for axis, dim in enumerate(dims) if dim != 1]
    moved = [axis for axis in permutation(call) if dims[axis] != 1]
    places = [axis for axis, dim in enumerate(after) if dim != 1]
    source, axes = list(after), list(range(len(after)))
    for place, old in zip(places, long_axes, strict=True):
        source[place] = dims[old]
    for place, old in zip(places, moved, strict=True):
        axes[place] = places[long_axes.index(old)]
    return Unpadded(call.args[0], tuple(source), tuple(axes))


def _view_first(_view: View, found: Unpadded) -> Expr:
    x = found.x
    if shape_of(x) != found.source:
        x = reshaped(x, found.source)
    return _permuted(x, found.axes)


@dataclass(frozen=True)
class Pushed:
    """permute(op(operands)): each operand with what it becomes in front of the permutation."""

    call: Expr
    result: Expr
    axes: tuple[int, ...]
    operands: tuple[Expr, ...]
    saved: int
    added: int


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(axes))


def _elementwise(view: View, _var: Expr, value: Expr) -> Pushed | None:
    result = value.args[0]
    call = view.call(result, *ELEMENTWISE)
    if call is None:
        return None
    axes = permutation(value)
    saved, added = 1, 0
    operands: list[Expr] = []
    for operand in call.args:
        if not hasattr(operand.ty, "shape"):
            operands.append(operand)  # clip's bounds
            continue
        dims = shape_of(operand)
        source = view.call(operand, "permute_dims")
        array = view.constant(operand)
        if array is not None:
            full = array.reshape((1,) * (len(axes) - len(dims)) + dims)
            permuted = full.transpose(axes)
            operands.append(operand if array.size == 1 and not dims else constant(permuted))
        elif len(dims) != len(axes):
            return None
        elif source is not None:
            first = permutation(source)
            operands.append(_permuted(source.args[0], tuple(first[axis] for axis in axes)))
            saved += int(view.used_once(operand))
            added += int(first != _inverse(axes))
        else:
            operands.append(_permuted(operand, axes))
            added += 1
    return Pushed(call, result, axes, tuple(operands), saved, added)


def _worth(view: View, found: Pushed) -> str | None:
    if not view.used_once(found.result):
        return "the operator's result is also used as it is"
    if found.added >= found.saved:
        return "no transpose would be saved"
    return None


def _push(_view: View, found: Pushed) -> Expr:
    return tvm.ir.Call(found.call.op, list(found.operands), found.call.attrs)


@dataclass(frozen=True)
class Sunk:
    """permute(call(operands)) for a call whose operands were permuted alike."""

    call: Expr
    operands: tuple[Expr, ...]
    axes: tuple[int, ...]
    links: tuple[Expr, ...]


def _operands_permuted(view: View, _var: Expr, value: Expr) -> Sunk | None:
    """An elementwise call on tensors permuted alike, and constants."""
    dims, axes = shape_of(value), None
    operands: list[Expr] = []
    links: list[Expr] = []
    for operand in value.args:
        source = view.call(operand, "permute_dims")
        array = view.constant(operand)
        if source is not None and shape_of(operand) == dims:
            if axes is not None and permutation(source) != axes:
                return None
            axes = permutation(source)
            operands.append(source.args[0])
            links.append(operand)
        elif array is not None:
            operands.append(operand)
        elif isinstance(operand, relax.Var):
            return None
        else:
            operands.append(operand)  # clip's bounds
    if axes is None:
        return None
    for index, operand in enumerate(operands):
        array = view.constant(operand)
        if array is not None and array.ndim:
            full = array.reshape((1,) * (len(axes) - array.ndim) + array.shape)
            operands[index] = constant(full.transpose(_inverse(axes)))
    return Sunk(value, tuple(operands), axes, tuple(links))


def _operand_permuted(view: View, _var: Expr, value: Expr) -> Sunk | None:
    """A reduction of a permuted tensor."""
    source = view.call(value.args[0], "permute_dims")
    if source is None or not value.attrs.keepdims:
        return None
    return Sunk(value, (source.args[0],), permutation(source), (value.args[0],))


def _only_use(view: View, found: Sunk) -> str | None:
    if all(map(view.has_one_user, found.links)):
        return None
    return "a transposed operand is used elsewhere"


def _sink(_view: View, found: Sunk) -> Expr:
    inner = tvm.ir.Call(found.call.op, list(found.operands), found.call.attrs)
    return relax.op.permute_dims(inner, list(found.axes))


def _sink_reduction(_view: View, found: Sunk) -> Expr:
    axes = [found.axes[axis] for axis in reduced_axes(found.call)]
    inner = REDUCTIONS[op_name(found.call)](found.operands[0], sorted(axes), keepdims=True)
    return relax.op.permute_dims(inner, list(found.axes))


@dataclass(frozen=True)
class SimplifyTransposes:
    """Chains become one permute_dims, pairs cancel; unit axes stay in place.

    A view that inserts or removes unit axes moves in front of the permutation, which then gives
    its consumer's shape directly: (B,S,H,D) to (B,H,S,D) in front of attention.
    Transposes in front of elementwise operators and reductions move behind them, towards the one
    that undoes them, and in front of them if fewer are left in all.
    """

    name: str = "simplify_transposes"

    def run(self, graph: Graph) -> Outcome:
        root = ("permute_dims",)
        rules: tuple[Rule[Any], ...] = (
            Rule("identity", root, _nothing_moves, _build),
            Rule("compose", root, _composed, _build),
            Rule("compose across a view", root, _across_view, _build),
            Rule("leave unit axes", root, _unit_axes_in_place, _build),
            Rule("view before permutation", ("reshape",), _view_after, _view_first),
            Rule("behind elementwise", ELEMENTWISE, _operands_permuted, _sink, _only_use),
            Rule(
                "behind reduction",
                tuple(REDUCTIONS),
                _operand_permuted,
                _sink_reduction,
                _only_use,
            ),
            Rule("push through elementwise", root, _elementwise, _push, _worth),
        )
        return apply_rules(graph, self.name, rules)
