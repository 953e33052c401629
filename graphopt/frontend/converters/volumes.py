"""Convolutions over three axes as convolutions over two, which have fast kernels.

The taps along the first axis become channels: the slices of the input that an output slice needs
lie one behind the other, and one convolution over the other two axes sums them all.
"""

from __future__ import annotations

from math import prod

from tvm import relax

from graphopt.frontend.converters.windows import Window
from graphopt.frontend.emit import Expr, NodeContext, shape_of
from graphopt.ops.overlap import overlap_add

op = relax.op


def convolve_volume(
    node: NodeContext, x: Expr, w: Expr, window: Window, groups: int, dtype: str
) -> Expr:
    """Convolution of x (N,C,D,H,W) with w (O,C/groups,KD,KH,KW)."""
    batch, _, _, height, width = shape_of(x)
    depth, flat = window.along((0,)), window.along((1, 2))
    out = window.outputs(shape_of(x)[2:])
    filters = shape_of(w)[0]
    if flat.identity:
        # Only the first axis has taps: the others are one.
        line = depth.lifted(1)
        planes = node.reshape(x, (*shape_of(x)[:3], height * width))
        kernel = node.reshape(w, (*shape_of(w)[:3], 1))
        return node.reshape(
            _conv2d(node, planes, kernel, line, groups, dtype), (batch, filters, *out)
        )
    slices = _slices_first(node, x, depth)
    if groups == shape_of(x)[1] > 1 and window.kernel[0] > 1:
        y = _depthwise(node, slices, w, depth, flat, out[0], dtype)
    else:
        y = _stacked(node, slices, w, depth, flat, out[0], groups, dtype)
    return node.transpose(node.reshape(y, (batch, out[0], filters, *out[1:])), (0, 2, 1, 3, 4))


def _conv2d(node: NodeContext, x: Expr, w: Expr, window: Window, groups: int, dtype: str) -> Expr:
    return node.emit(
        op.nn.conv2d(
            x, w, window.strides, window.padding, window.dilations, groups, out_dtype=dtype
        )
    )


def _slices_first(node: NodeContext, x: Expr, depth: Window) -> Expr:
    """x (N,C,D,H,W) as (N,D,C,H,W), with the padding along D written out."""
    x = node.transpose(x, (0, 2, 1, 3, 4))
    if depth.before[0] or depth.after[0]:
        widths = [0, 0, depth.before[0], depth.after[0], 0, 0, 0, 0, 0, 0]
        x = node.emit(op.nn.pad(x, widths, "constant", 0.0))
    return x


def _tap(node: NodeContext, slices: Expr, depth: Window, k: int, out: int) -> Expr:
    """The slices that tap `k` multiplies: one per output slice."""
    begin, stride = k * depth.dilations[0], depth.strides[0]
    return node.slice(slices, [1], [begin], [begin + (out - 1) * stride + 1], [stride])


def _stacked(
    node: NodeContext,
    slices: Expr,
    w: Expr,
    depth: Window,
    flat: Window,
    out: int,
    groups: int,
    dtype: str,
) -> Expr:
    batch, _, channels, height, width = shape_of(slices)
    taps = depth.kernel[0]
    per_group = channels // groups
    parts = [
        node.reshape(
            _tap(node, slices, depth, k, out), (batch * out, groups, per_group, height, width)
        )
        for k in range(taps)
    ]
    stacked = parts[0] if taps == 1 else node.emit(op.concat(parts, 2))
    moved = node.transpose(w, (0, 2, 1, 3, 4))
    kernel = node.reshape(moved, (shape_of(w)[0], taps * per_group, *flat.kernel))
    x = node.reshape(stacked, (batch * out, channels * taps, height, width))
    return _conv2d(node, x, kernel, flat, groups, dtype)


def _depthwise(
    node: NodeContext, slices: Expr, w: Expr, depth: Window, flat: Window, out: int, dtype: str
) -> Expr:
    """One depthwise convolution per tap, summed: stacked, each channel would be a group of few."""
    batch, _, channels, height, width = shape_of(slices)
    total: Expr = None
    for k in range(depth.kernel[0]):
        x = node.reshape(_tap(node, slices, depth, k, out), (batch * out, channels, height, width))
        kernel = node.reshape(node.slice(w, [2], [k], [k + 1]), (*shape_of(w)[:2], *flat.kernel))
        y = _conv2d(node, x, kernel, flat, channels, dtype)
        total = y if total is None else node.emit(op.add(total, y))
    return total


def transposed_volume(node: NodeContext, x: Expr, w: Expr, window: Window, groups: int) -> Expr:
    """Transposed convolution of x (N,C,D,H,W) with w (C,O/groups,KD,KH,KW)."""
    batch, channels, depth, height, width = shape_of(x)
    per_group, taps = shape_of(w)[1:3]
    flat, first = window.along((1, 2)), window.along((0,))
    planes = node.reshape(
        node.transpose(x, (0, 2, 1, 3, 4)), (batch * depth, channels, height, width)
    )
    kernel = node.reshape(
        node.transpose(w, (0, 2, 1, 3, 4)), (channels, taps * per_group, *flat.kernel)
    )
    y = node.emit(
        op.nn.conv2d_transpose(
            planes, kernel, flat.strides, flat.padding, (0, 0), flat.dilations, groups
        )
    )
    out = shape_of(y)[2:]
    size = (depth - 1) * first.strides[0] + first.extent[0] - first.before[0] - first.after[0]
    y = node.emit(
        overlap_add(
            node.reshape(y, (batch, depth, groups, taps, per_group * prod(out))),
            window_first=False,
            size=size,
            stride=first.strides[0],
            before=first.before[0],
            dilation=first.dilations[0],
        )
    )
    y = node.reshape(y, (batch, size, groups * per_group, *out))
    return node.transpose(y, (0, 2, 1, 3, 4))
