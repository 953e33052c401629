"""Folds constant padding into the convolution or pooling that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from tvm import relax

from graphopt.ir import Graph
from graphopt.ops.base import attributes, call_op
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import (
    Expr,
    dtype_of,
    ints,
    is_float,
    op_name,
    reshaped,
    shape_of,
)

INTEGER = "graphopt.conv_integer"


@dataclass(frozen=True)
class Padded:
    """window(pad(x)); widths are (before, after) per axis."""

    window: Expr
    link: Expr
    x: Expr
    mode: str
    value: float
    widths: tuple[tuple[int, int], ...]


def _padded(view: View, _var: Expr, value: Expr) -> Padded | None:
    link = value.args[0]
    moved = view.call(link, "reshape")
    pad = view.call(link if moved is None else moved.args[0], "nn.pad")
    if pad is None:
        return None
    flat = ints(pad.attrs.pad_width)
    widths = tuple(zip(flat[::2], flat[1::2], strict=True))
    if moved is not None:
        placed = _placed(widths, shape_of(pad), shape_of(moved))
        if placed is None:
            return None
        widths = placed
    mode, fill = str(pad.attrs.pad_mode), float(pad.attrs.pad_value)
    return Padded(value, link, pad.args[0], mode, fill, widths)


def _placed(
    widths: tuple[tuple[int, int], ...], before: tuple[int, ...], after: tuple[int, ...]
) -> tuple[tuple[int, int], ...] | None:
    """The widths after a view that only moves unit axes: a one-dimensional convolution's."""
    long_axes = [axis for axis, dim in enumerate(before) if dim != 1]
    places = [axis for axis, dim in enumerate(after) if dim != 1]
    if [before[axis] for axis in long_axes] != [after[axis] for axis in places]:
        return None
    if any(any(widths[axis]) for axis, dim in enumerate(before) if dim == 1):
        return None
    placed = [(0, 0)] * len(after)
    for place, axis in zip(places, long_axes, strict=True):
        placed[place] = widths[axis]
    return tuple(placed)


def _check(view: View, found: Padded) -> str | None:
    kind, attrs = op_name(found.window), found.window.attrs
    if kind == INTEGER:
        return _check_widths(found, float(attributes(found.window)["pad_value"]))
    layout = attrs.data_layout if kind.startswith("nn.conv") else attrs.layout
    if not layout.startswith("NC") or len(layout) != len(found.widths):
        return "the layout is not NCHW"
    reason = _check_widths(found, _least(found.window) if kind == "nn.max_pool2d" else 0.0)
    if reason is not None:
        return reason
    if kind == "nn.avg_pool2d":
        if attrs.ceil_mode:
            return "rounding up makes windows that reach beyond the padding"
        if any(ints(attrs.padding)) and not attrs.count_include_pad:
            return "the pooling's own padding is not counted in its mean"
    elif kind == "nn.max_pool2d" and attrs.ceil_mode:
        return "rounding up makes windows that reach beyond the padding"
    return None


def _least(window: Expr) -> float:
    """What maximum pooling pads with."""
    return -inf if is_float(window) else float(np.iinfo(dtype_of(window)).min)


def _check_widths(found: Padded, fill: float) -> str | None:
    """Why a window that pads with `fill` cannot do the padding."""
    if found.mode != "constant":
        return f"the padding's mode is {found.mode}"
    if found.value != fill:
        return f"the padding is {found.value:g}, the window pads with {fill:g}"
    if any(map(any, found.widths[:2])) or any(w < 0 for pair in found.widths for w in pair):
        return "it pads batch or channels, or crops"
    return None


def _fold(_view: View, found: Padded) -> Expr:
    window, attrs = found.window, found.window.attrs
    spatial = found.widths[2:]
    dims = shape_of(window.args[0])
    inner = tuple(dim - sum(pair) for dim, pair in zip(dims, found.widths, strict=True))
    x = found.x if shape_of(found.x) == inner else reshaped(found.x, inner)
    before, after = [w[0] for w in spatial], [w[1] for w in spatial]
    if op_name(window) == INTEGER:
        own = attributes(window)
        pads = [a + b for a, b in zip(own["padding"], before + after, strict=True)]
        return call_op(window.op, (x, window.args[1]), own | {"padding": pads})
    padding = [a + b for a, b in zip(ints(attrs.padding), before + after, strict=True)]
    kind = op_name(window)
    if kind == "nn.avg_pool2d":
        return relax.op.nn.avg_pool2d(
            x, ints(attrs.pool_size), ints(attrs.strides), padding, ints(attrs.dilation),
            False, True, attrs.layout, attrs.out_layout,
        )  # fmt: skip
    if kind == "nn.max_pool2d":
        return relax.op.nn.max_pool2d(
            x, ints(attrs.pool_size), ints(attrs.strides), padding, ints(attrs.dilation),
            False, False, attrs.layout, attrs.out_layout,
        )  # fmt: skip
    make = relax.op.nn.conv1d if kind == "nn.conv1d" else relax.op.nn.conv2d
    return make(
        x, window.args[1], ints(attrs.strides), padding, ints(attrs.dilation),
        int(attrs.groups), attrs.data_layout, attrs.kernel_layout, attrs.out_layout,
        attrs.out_dtype or None,
    )  # fmt: skip


@dataclass(frozen=True)
class FoldPadding:
    """Zeros around a convolution's or average pooling's input, −∞ around a maximum pooling's.

    Around an integer convolution's, what stands for zero there.

    An average over explicit zeros counts them: the pooling gets count_include_pad.
    """

    name: str = "fold_padding"

    def run(self, graph: Graph) -> Outcome:
        windows = (INTEGER, "nn.conv1d", "nn.conv2d", "nn.avg_pool2d", "nn.max_pool2d")
        rule = Rule("pad into window", windows, _padded, _fold, _check)
        return apply_rules(graph, self.name, (rule,))
