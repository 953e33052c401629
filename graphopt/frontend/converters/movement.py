"""Operators that move or view data: reshapes, slices, concatenation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    normal_axis,
    shape_of,
)

op = relax.op

# A kernel's loop nests are one per part: many parts are joined in groups.
_MAX_JOINED = 64


def reshape(node: NodeContext) -> Expr:
    """Reshape; 0 copies a dimension (unless allowzero), −1 takes what is left."""
    x = node.input(0)
    shape = shape_of(x)
    wanted = node.ints(1, "the target shape") if node.has(1) else (node.int_list("shape") or [])
    if not node.flag_attr("allowzero"):
        if any(dim == 0 and i >= len(shape) for i, dim in enumerate(wanted)):
            raise Unsupported(f"target shape {wanted} copies a dimension that {shape} has not")
        wanted = [shape[i] if dim == 0 else dim for i, dim in enumerate(wanted)]
    if wanted.count(-1) > 1:
        raise Unsupported(f"target shape {wanted} has more than one −1")
    if -1 in wanted:
        # An empty tensor's other dimensions follow as if those that are copied were not there.
        copied = [i for i, dim in enumerate(wanted) if dim == 0 and shape[i : i + 1] == (0,)]
        rest = prod(dim for i, dim in enumerate(wanted) if dim != -1 and i not in copied)
        held = prod(dim for i, dim in enumerate(shape) if i not in copied)
        wanted = [held // rest if dim == -1 and rest else dim for dim in wanted]
    if prod(wanted) != prod(shape) or min(wanted, default=0) < 0:
        raise Unsupported(f"{shape} cannot be reshaped to {wanted}")
    return node.reshape(x, wanted)


def flatten(node: NodeContext) -> Expr:
    """To two axes, split at `axis`."""
    x = node.input(0)
    shape = shape_of(x)
    axis = node.int_attr("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return node.reshape(x, (prod(shape[:axis]), prod(shape[axis:])))


def _axes(node: NodeContext) -> list[int] | None:
    return node.ints(1, "axes") if node.has(1) else node.int_list("axes")


def squeeze(node: NodeContext) -> Expr:
    """Drop axes of size 1."""
    x = node.input(0)
    shape = shape_of(x)
    stated = _axes(node)
    if stated is None:
        axes = {i for i, dim in enumerate(shape) if dim == 1}
    else:
        axes = {normal_axis(axis, len(shape)) for axis in stated}
    if any(shape[axis] != 1 for axis in axes):
        raise Unsupported(f"axes {sorted(axes)} of {shape} are not all 1")
    return node.reshape(x, [dim for i, dim in enumerate(shape) if i not in axes])


def unsqueeze(node: NodeContext) -> Expr:
    """Insert axes of size 1."""
    x = node.input(0)
    stated = _axes(node)
    if stated is None:
        raise Unsupported("axes is missing")
    if len(stated) > 64:
        raise Unsupported(f"{len(stated)} new axes are too many")
    rank = len(shape_of(x)) + len(stated)
    axes = {normal_axis(axis, rank) for axis in stated}
    if len(axes) != len(stated):
        raise Unsupported(f"axes {stated} are not distinct")
    dims = iter(shape_of(x))
    return node.reshape(x, [1 if i in axes else next(dims) for i in range(rank)])


def transpose(node: NodeContext) -> Expr:
    """Permute the axes; reversed by default."""
    x = node.input(0)
    axes = node.int_list("perm")
    return node.transpose(x, axes if axes else list(range(len(shape_of(x))))[::-1])


def concat(node: NodeContext) -> Expr:
    """Join along an axis."""
    values = node.inputs()
    axis = normal_axis(node.int_attr("axis", 1), len(shape_of(values[0])))
    filled = [value for value in values if prod(shape_of(value))] or values[:1]
    if len(filled) == 1:
        return filled[0]
    while len(filled) > _MAX_JOINED:
        parts = [filled[i : i + _MAX_JOINED] for i in range(0, len(filled), _MAX_JOINED)]
        filled = [p[0] if len(p) == 1 else node.emit(op.concat(p, axis)) for p in parts]
    return node.emit(op.concat(filled, axis))


def split(node: NodeContext) -> tuple[Expr, ...]:
    """One slice per output, so that every part is a value of its own."""
    x = node.input(0)
    axis = normal_axis(node.int_attr("axis"), len(shape_of(x)))
    length = shape_of(x)[axis]
    count = node.int_attr("num_outputs", node.outputs)
    sizes = node.ints(1, "split sizes") if node.has(1) else node.int_list("split")
    if not sizes:
        chunk = -(-length // count)
        sizes = [max(0, min(chunk, length - i * chunk)) for i in range(count)]
    if sum(sizes) != length or len(sizes) < node.outputs:
        raise Unsupported(f"split {sizes} does not cover an axis of {length}")
    parts, start = [], 0
    for i, extent in enumerate(sizes):
        wanted = node.wants(i)
        parts.append(_part(node, x, axis, start, start + extent, i) if wanted else None)
        start += extent
    return tuple(parts)


def _part(node: NodeContext, x: Expr, axis: int, begin: int, end: int, output: int) -> Expr:
    if begin == 0 and end == shape_of(x)[axis]:
        return x
    return node.emit(op.strided_slice(x, [axis], [begin], [end], [1]), output)


_ENDLESS = (2**31 - 1, 2**63 - 1)
"""What a Slice forwards gives as its end where it means the end of the axis, whatever that is."""


def slice_(node: NodeContext) -> Expr:
    """Slice with any steps; bounds are clamped as in Python."""
    x = node.input(0)
    shape = shape_of(x)
    if node.opset < 10:
        starts, ends = node.int_list("starts") or [], node.int_list("ends") or []
        axes, steps = node.int_list("axes"), None
    else:
        starts, ends = node.ints(1, "starts"), node.ints(2, "ends")
        axes = node.ints(3, "axes") if node.has(3) else None
        steps = node.ints(4, "steps") if node.has(4) else None
    axes = list(range(len(starts))) if axes is None else axes
    axes = [normal_axis(axis, len(shape)) for axis in axes]
    steps = [1] * len(axes) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise Unsupported("starts, ends, axes and steps do not fit together")
    begin, end = [], []
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0 and stop in _ENDLESS:
            raise Unsupported(
                f"a slice backwards to {stop} is empty by the standard and whole in ONNX Runtime"
            )
        covered = range(*slice(start, stop, step).indices(shape[axis]))
        if not len(covered):
            begin.append(0)
            end.append(0)
            continue
        first, last = covered[0], covered[-1]
        begin.append(first)
        # Relax counts a negative end from the back: −1 − size is "before the first element".
        beyond = last + (1 if step > 0 else -1)
        end.append(beyond if beyond >= 0 else -1 - shape[axis])
    return node.slice(x, axes, begin, end, steps)


def expand(node: NodeContext) -> Expr:
    """Broadcast to a shape, both ways: a 1 in the shape keeps the input's dimension."""
    x = node.input(0)
    wanted = tuple(node.ints(1, "the target shape"))
    try:
        shape = np.broadcast_shapes(shape_of(x), wanted)
    except ValueError:
        raise Unsupported(f"{shape_of(x)} cannot be expanded to {wanted}") from None
    return x if shape == shape_of(x) else node.emit(op.broadcast_to(x, shape))


def tile(node: NodeContext) -> Expr:
    """Repeat along each axis."""
    x = node.input(0)
    repeats = node.ints(1, "repeats")
    if len(repeats) != len(shape_of(x)) or min(repeats, default=1) < 0:
        raise Unsupported(f"repeats {repeats} are not supported for {shape_of(x)}")
    return x if all(r == 1 for r in repeats) else node.emit(op.tile(x, repeats))


def depth_to_space(node: NodeContext) -> Expr:
    """Channels to blocks of pixels, in DCR or CRD order."""
    x = node.input(0)
    n, c, h, w = shape_of(x)
    block, mode = node.int_attr("blocksize"), node.string_attr("mode", "DCR") or "DCR"
    if block < 1 or c % (block * block) or mode not in ("DCR", "CRD"):
        raise Unsupported(f"blocksize {block} in mode '{mode}' does not fit {shape_of(x)}")
    depth = c // (block * block)
    if mode == "DCR":
        split_shape, axes = (n, block, block, depth, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split_shape, axes = (n, depth, block, block, h, w), (0, 1, 4, 2, 5, 3)
    moved = node.transpose(node.reshape(x, split_shape), axes)
    return node.reshape(moved, (n, depth, h * block, w * block))


def space_to_depth(node: NodeContext) -> Expr:
    """Blocks of pixels to channels, in DCR or CRD order."""
    x = node.input(0)
    n, c, h, w = shape_of(x)
    block, mode = node.int_attr("blocksize"), node.string_attr("mode", "DCR") or "DCR"
    if block < 1 or h % block or w % block or mode not in ("DCR", "CRD"):
        raise Unsupported(f"blocksize {block} in mode '{mode}' does not fit {shape_of(x)}")
    axes = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    moved = node.transpose(node.reshape(x, (n, c, h // block, block, w // block, block)), axes)
    return node.reshape(moved, (n, c * block * block, h // block, w // block))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Reshape"): reshape,
    ("", "Flatten"): flatten,
    ("", "Squeeze"): squeeze,
    ("", "Unsqueeze"): unsqueeze,
    ("", "Transpose"): transpose,
    ("", "Concat"): concat,
    ("", "Split"): split,
    ("", "Slice"): slice_,
    ("", "Expand"): expand,
    ("", "Tile"): tile,
    ("", "DepthToSpace"): depth_to_space,
    ("", "SpaceToDepth"): space_to_depth,
}
