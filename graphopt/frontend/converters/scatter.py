"""Reading and writing element by element: gathers by coordinates, scatters, reversed sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, normal_axis, shape_of
from graphopt.ops import indexing


def _check_indices(node: NodeContext, index: int, sizes: tuple[int, ...]) -> None:
    """Refuse constant indices out of range; `sizes` are those of the last axis, or one for all."""
    known = node.array(index)
    if known is None or not known.size or not sizes:
        return
    limits = np.array(sizes, np.int64)
    wide = known.astype(np.int64)
    if ((wide < -limits) | (wide >= limits)).any():
        raise Unsupported("an index is out of range")


def _axis_and_check(node: NodeContext) -> int:
    shape, indices = shape_of(node.input(0)), shape_of(node.input(1))
    axis = normal_axis(node.int_attr("axis"), len(shape))
    others = [a for a in range(len(shape)) if a != axis]
    if len(indices) != len(shape) or any(indices[a] > shape[a] for a in others):
        raise Unsupported(f"indices {list(indices)} do not fit data {list(shape)}")
    _check_indices(node, 1, (shape[axis],))
    return axis


def gather_elements(node: NodeContext) -> Expr:
    """One element of an axis per output element."""
    axis = _axis_and_check(node)
    return node.emit(indexing.gather_elements(node.input(0), node.input(1), axis))


def gather_nd(node: NodeContext) -> Expr:
    """Slices of the data by index tuples."""
    x, batch = node.input(0), node.int_attr("batch_dims")
    shape, indices = shape_of(x), shape_of(node.input(1))
    depth = indices[-1] if indices else 0
    fits = 0 < depth <= len(shape) - batch and indices[:batch] == shape[:batch]
    if not fits or batch >= len(indices):
        raise Unsupported(f"indices {list(indices)} do not fit data {list(shape)}")
    _check_indices(node, 1, shape[batch : batch + depth])
    return node.emit(indexing.gather_nd(x, node.input(1), batch))


def _reduction(node: NodeContext) -> str:
    name = node.string_attr("reduction", "none") or "none"
    if name not in indexing.REDUCTIONS:
        raise Unsupported(f"reduction '{name}' is unknown")
    return name


def scatter_elements(node: NodeContext) -> Expr:
    """Write or combine single elements along an axis."""
    axis = _axis_and_check(node)
    x, indices, updates = node.inputs()
    if shape_of(indices) != shape_of(updates):
        raise Unsupported(
            f"updates {list(shape_of(updates))} do not fit indices {list(shape_of(indices))}"
        )
    return node.emit(indexing.scatter_elements(x, indices, updates, axis, _reduction(node)))


def scatter_nd(node: NodeContext) -> Expr:
    """Write or combine slices by index tuples."""
    x, indices, updates = node.inputs()
    shape, places = shape_of(x), shape_of(indices)
    depth = places[-1] if places else 0
    if not places or depth > len(shape):
        raise Unsupported(f"indices {list(places)} do not fit data {list(shape)}")
    if shape_of(updates) != (*places[:-1], *shape[depth:]):
        raise Unsupported(f"updates {list(shape_of(updates))} do not fit indices {list(places)}")
    _check_indices(node, 1, shape[:depth])
    return node.emit(indexing.scatter_nd(x, indices, updates, _reduction(node)))


def tensor_scatter(node: NodeContext) -> Expr:
    """A cache with new entries written from each batch entry's own position on."""
    past, update = node.input(0), node.input(1)
    shape, new = shape_of(past), shape_of(update)
    axis = normal_axis(node.int_attr("axis", -2), len(shape))
    mode = node.string_attr("mode", "linear") or "linear"
    if mode not in ("linear", "circular"):
        raise Unsupported(f"mode '{mode}' is unknown")
    others = [a for a in range(len(shape)) if a != axis]
    if axis == 0 or len(new) != len(shape) or any(new[a] != shape[a] for a in others):
        raise Unsupported(f"update {list(new)} does not fit cache {list(shape)}")
    if new[axis] > shape[axis]:
        raise Unsupported(f"update {list(new)} is longer than cache {list(shape)}")
    if not new[axis]:
        return past
    starts = node.input(2) if node.has(2) else constant(np.zeros(shape[0], np.int64))
    return node.emit(indexing.tensor_scatter(past, update, starts, axis, mode == "circular"))


def reverse_sequence(node: NodeContext) -> Expr:
    """Reverse the first lengths[b] steps of each batch entry."""
    x, lengths = node.input(0), node.input(1)
    rank = len(shape_of(x))
    batch = normal_axis(node.int_attr("batch_axis", 1), rank)
    time = normal_axis(node.int_attr("time_axis", 0), rank)
    if batch == time or shape_of(lengths) != (shape_of(x)[batch],):
        raise Unsupported(f"lengths {list(shape_of(lengths))} do not fit {list(shape_of(x))}")
    return node.emit(indexing.reverse_sequence(x, lengths, batch, time))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "GatherElements"): gather_elements,
    ("", "GatherND"): gather_nd,
    ("", "ScatterElements"): scatter_elements,
    ("", "Scatter"): scatter_elements,
    ("", "ScatterND"): scatter_nd,
    ("", "TensorScatter"): tensor_scatter,
    ("", "ReverseSequence"): reverse_sequence,
}
