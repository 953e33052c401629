"""Convolutions. 1-D ones become 2-D with height 1, so that one kernel family serves both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import relax

from graphopt.frontend.converters.windows import read_window
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


def _kernel_shape(node: NodeContext, weight: Expr) -> tuple[int, ...]:
    kernel = shape_of(weight)[2:]
    stated = node.int_list("kernel_shape")
    if stated is not None and tuple(stated) != kernel:
        raise Unsupported(f"kernel_shape is {stated}, the weight's is {list(kernel)}")
    return kernel


def convolve(node: NodeContext, x: Expr, w: Expr, out_dtype: str | None = None) -> Expr:
    """Convolution of x (N,C,…) with w (O,C/groups,…) by the node's attributes, without bias."""
    spatial = shape_of(x)[2:]
    window = read_window(node, _kernel_shape(node, w), spatial)
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
    if len(spatial) not in (2, 3):
        raise Unsupported(f"convolution over {len(spatial)} axes is not supported")
    emit = op.nn.conv2d if len(spatial) == 2 else op.nn.conv3d
    return node.emit(
        emit(x, w, window.strides, window.padding, window.dilations, groups, out_dtype=dtype)
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
    """ConvTranspose over one or two axes."""
    x, w = node.input(0), node.input(1)
    spatial = shape_of(x)[2:]
    rank = len(spatial)
    if rank not in (1, 2):
        raise Unsupported(f"transposed convolution over {rank} axes is not supported")
    kernel = _kernel_shape(node, w)
    strides = tuple(node.int_list("strides") or [1] * rank)
    dilations = tuple(node.int_list("dilations") or [1] * rank)
    extra = list(node.int_list("output_padding") or [0] * rank)
    groups = node.int_attr("group", 1)
    before, after, extra = _transpose_padding(node, spatial, kernel, strides, dilations, extra)
    if rank == 1:
        x, w = _lifted(node, x), _lifted(node, w)
        strides, dilations = (1, *strides), (1, *dilations)
        before, after, extra = [0, *before], [0, *after], [0, *extra]
    if any(e >= s for e, s in zip(extra, strides, strict=True)):
        raise Unsupported("output_padding is not smaller than the stride")
    result = node.emit(
        op.nn.conv2d_transpose(x, w, strides, (*before, *after), tuple(extra), dilations, groups)
    )
    if rank == 1:
        shape = shape_of(result)
        result = node.reshape(result, (shape[0], shape[1], shape[3]))
    return add_bias(node, result, 2)


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
        wanted = [size * s for size, s in zip(spatial, strides, strict=True)]
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
