"""GridSample and DeformConv: images read at positions that are computed at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from tvm import relax

from graphopt.frontend.converters.convolution import add_bias, kernel_shape
from graphopt.frontend.converters.windows import read_window
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, shape_of
from graphopt.ops.sampling import SAMPLE_METHODS, SAMPLE_PADDINGS, deform_columns, grid_sample

op = relax.op

_OLD_NAMES = {"bilinear": "linear", "bicubic": "cubic"}  # until operator set 20


def sample_grid(node: NodeContext) -> Expr:
    """GridSample over any number of spatial axes; cubic over two."""
    x, grid = node.input(0), node.input(1)
    method = node.string_attr("mode", "linear") or "linear"
    method = _OLD_NAMES.get(method, method)
    padding = node.string_attr("padding_mode", "zeros") or "zeros"
    if method not in SAMPLE_METHODS or padding not in SAMPLE_PADDINGS:
        raise Unsupported(f"mode '{method}' with padding_mode '{padding}' is unknown")
    (batch, channels, *spatial), places = shape_of(x), shape_of(grid)
    rank = len(spatial)
    if len(places) != rank + 2 or places[0] != batch or places[-1] != rank:
        raise Unsupported(f"the grid {list(places)} does not fit the input {list(shape_of(x))}")
    if method == "cubic" and rank != 2:
        raise Unsupported(f"cubic sampling over {rank} axes is not defined by ONNX")
    out = places[1:-1]
    y = grid_sample(
        node.reshape(x, (batch, channels, prod(spatial))),
        node.reshape(grid, (batch, prod(out), rank)),
        spatial=tuple(spatial),
        method=method,
        padding=padding,
        align_corners=node.flag_attr("align_corners"),
    )
    return node.reshape(node.emit(y), (batch, channels, *out))


def deform_conv(node: NodeContext) -> Expr:
    """DeformConv over two axes: sampled columns, then one matrix product per group."""
    x, w, offset = node.input(0), node.input(1), node.input(2)
    if len(shape_of(x)) != 4:
        raise Unsupported("only two spatial axes are supported")
    batch, channels, height, width = shape_of(x)
    filters, per_group = shape_of(w)[:2]
    groups, offsets = node.int_attr("group", 1), node.int_attr("offset_group", 1)
    kernel = kernel_shape(node, w)
    window = read_window(node, kernel, (height, width))
    out = window.outputs((height, width))
    taps, points = prod(kernel), prod(out)
    if channels != per_group * groups or filters % groups or channels % offsets:
        raise Unsupported(
            f"{channels} input channels, weight {list(shape_of(w))}, {groups} groups and "
            f"{offsets} offset groups do not fit"
        )
    if shape_of(offset) != (batch, offsets * taps * 2, *out):
        raise Unsupported(f"offset {list(shape_of(offset))} does not fit an output of {list(out)}")
    mask = None
    if node.has(4):
        mask = node.reshape(node.input(4), (batch, offsets, taps, points))
    columns = node.emit(
        deform_columns(
            node.reshape(x, (batch, channels, height * width)),
            node.reshape(offset, (batch, offsets, taps, 2, points)),
            mask,
            spatial=(height, width),
            out=(out[0], out[1]),
            kernel=(kernel[0], kernel[1]),
            strides=(window.strides[0], window.strides[1]),
            before=(window.before[0], window.before[1]),
            dilation=(window.dilations[0], window.dilations[1]),
        )
    )
    # A convolution by 1×1 over the columns has the kernels that a product lacks: packed weights,
    # groups, a bias behind it.
    spread = node.reshape(columns, (batch, channels * taps, *out))
    flat = node.reshape(w, (filters, per_group * taps, 1, 1))
    y = node.emit(op.nn.conv2d(spread, flat, groups=groups))
    return add_bias(node, y, 3)


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "GridSample"): sample_grid,
    ("", "DeformConv"): deform_conv,
}
