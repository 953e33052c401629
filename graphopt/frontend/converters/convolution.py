"""Convolutions; those over one or three axes become two-dimensional, which has the kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import relax

from graphopt.frontend.converters.volumes import convolve_volume, transposed_volume
from graphopt.frontend.converters.windows import Window, read_window
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    constant_array,
    dtype_of,
    shape_of,
)

op = relax.op


def add_bias(node: NodeContext, value: Expr, index: int) -> Expr:
    """Add input `index`, if given, along axis 1 of `value`."""
    if not node.has(index):
        return value
    rank = len(shape_of(value))
    bias = node.array(index)
    if bias is not None:
        return node.emit(op.add(value, constant(bias.reshape(1, -1, *[1] * (rank - 2)))))
    bias_var = node.input(index)
    shape = (1, *shape_of(bias_var), *[1] * (rank - 2))
    return node.emit(op.add(value, node.reshape(bias_var, shape)))


def kernel_shape(node: NodeContext, weight: Expr) -> tuple[int, ...]:
    """Spatial extents of a weight, which the attribute of that name must repeat."""
    kernel = shape_of(weight)[2:]
    stated = node.int_list("kernel_shape")
    if stated is not None and tuple(stated) != kernel:
        raise Unsupported(f"kernel_shape is {stated}, the weight's is {list(kernel)}")
    return kernel


def convolve(node: NodeContext, x: Expr, w: Expr, out_dtype: str | None = None) -> Expr:
    """Convolution of x (N,C,…) with w (O,C/groups,…) by the node's attributes, without bias."""
    spatial = shape_of(x)[2:]
    window = read_window(node, kernel_shape(node, w), spatial)
    groups = node.int_attr("group", 1)
    channels, filters, per_group = shape_of(x)[1], shape_of(w)[0], shape_of(w)[1]
    if groups < 1 or channels != per_group * groups or filters % groups:
        raise Unsupported(
            f"{channels} input channels, weight {list(shape_of(w))} and {groups} groups do not fit"
        )
    dtype = out_dtype or dtype_of(x)
    if len(spatial) == 1:
        result = node.emit(
            op.nn.conv2d(
                _lifted(node, x),
                _lifted(node, w),
                (1, *window.strides),
                (0, window.before[0], 0, window.after[0]),
                (1, *window.dilations),
                groups,
                out_dtype=dtype,
            )
        )
        shape = shape_of(result)
        return node.reshape(result, (shape[0], shape[1], shape[3]))
    window.outputs(spatial)
    if len(spatial) == 3:
        return convolve_volume(node, x, w, window, groups, dtype)
    if len(spatial) != 2:
        raise Unsupported(f"convolution over {len(spatial)} axes is not supported")
    return node.emit(
        op.nn.conv2d(
            x, w, window.strides, window.padding, window.dilations, groups, out_dtype=dtype
        )
    )


def _lifted(node: NodeContext, w: Expr) -> Expr:
    """(A, B, W) as (A, B, 1, W); a constant stays one."""
    a, b, width = shape_of(w)
    values = constant_array(w)
    if values is not None:
        return constant(values.reshape(a, b, 1, width))
    return node.reshape(w, (a, b, 1, width))


def conv(node: NodeContext) -> Expr:
    """Conv, with the bias as a separate addition."""
    return add_bias(node, convolve(node, node.input(0), node.input(1)), 2)


def conv_transpose(node: NodeContext) -> Expr:
    """ConvTranspose over one, two or three axes."""
    x, w = node.input(0), node.input(1)
    spatial = shape_of(x)[2:]
    rank = len(spatial)
    if rank not in (1, 2, 3):
        raise Unsupported(f"transposed convolution over {rank} axes is not supported")
    kernel = kernel_shape(node, w)
    strides = tuple(node.int_list("strides") or [1] * rank)
    dilations = tuple(node.int_list("dilations") or [1] * rank)
    groups = node.int_attr("group", 1)
    if groups < 1 or shape_of(x)[1] != shape_of(w)[0] or shape_of(w)[0] % groups:
        raise Unsupported(f"{shape_of(x)}, {shape_of(w)} and {groups} groups do not fit")
    extra = list(node.int_list("output_padding") or [0] * rank)
    before, after, extra = _transpose_padding(node, spatial, kernel, strides, dilations, extra)
    # What lies behind the last window is less cropping, and zeros where that is not enough.
    less = [min(a, e) for a, e in zip(after, extra, strict=True)]
    after = [a - d for a, d in zip(after, less, strict=True)]
    zeros = [e - d for e, d in zip(extra, less, strict=True)]
    window = Window(kernel, strides, dilations, tuple(before), tuple(after))
    if any(
        (size - 1) * s + e - b - a < 1
        for size, s, e, b, a in zip(spatial, strides, window.extent, before, after, strict=True)
    ):
        raise Unsupported("the padding leaves no output")
    result = _transposed(node, x, w, window, groups)
    if any(zeros):
        widths = [0] * 4 + [width for zero in zeros for width in (0, zero)]
        result = node.emit(op.nn.pad(result, widths, "constant", 0.0))
    return add_bias(node, result, 2)


def _transposed(node: NodeContext, x: Expr, w: Expr, window: Window, groups: int) -> Expr:
    if len(window.kernel) == 3:
        return transposed_volume(node, x, w, window, groups)
    if len(window.kernel) == 1:
        y = _transposed(node, _lifted(node, x), _lifted(node, w), window.lifted(0), groups)
        return node.reshape(y, (*shape_of(y)[:2], shape_of(y)[3]))
    return node.emit(
        op.nn.conv2d_transpose(
            x, w, window.strides, window.padding, (0, 0), window.dilations, groups
        )
    )


def _transpose_padding(
    node: NodeContext,
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    extra: list[int],
) -> tuple[list[int], list[int], list[int]]:
    """Padding before and after, and output padding, from pads, auto_pad or output_shape."""
    rank = len(spatial)
    full = [
        (size - 1) * s + d * (k - 1) + 1
        for size, s, k, d in zip(spatial, strides, kernel, dilations, strict=True)
    ]
    mode = node.string_attr("auto_pad", "NOTSET") or "NOTSET"
    pads, wanted = node.int_list("pads"), node.int_list("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        # A kernel smaller than its stride does not reach as far: nothing is added for it.
        wanted = [
            min(size * s, f + e)
            for size, s, f, e in zip(spatial, strides, full, extra, strict=True)
        ]
    if wanted is not None:
        wanted = wanted[-rank:]
        total = [f + e - w for f, e, w in zip(full, extra, wanted, strict=True)]
        # Larger outputs than the full one come from more output padding.
        extra = [e + max(0, -t) for e, t in zip(extra, total, strict=True)]
        total = [max(0, t) for t in total]
        half = [t // 2 for t in total]
        rest = [t - h for t, h in zip(total, half, strict=True)]
        # ONNX: the odd element goes behind for SAME_UPPER, else in front.
        before, after = (half, rest) if mode == "SAME_UPPER" else (rest, half)
        return before, after, extra
    if mode not in ("NOTSET", "VALID"):
        raise Unsupported(f"auto_pad='{mode}' is unknown")
    pads = [0] * (2 * rank) if pads is None or mode == "VALID" else pads
    if min(pads) < 0:
        raise Unsupported("negative padding is not supported")
    return pads[:rank], pads[rank:], extra


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
}
