"""Pooling over any number of axes, two at a time: maxima and means over boxes are separable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from tvm import relax

from graphopt.frontend.converters.selection import max_pool_with_indices
from graphopt.frontend.converters.windows import Window, ceil_padding, read_window
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, dtype_of, shape_of
from graphopt.ops.average_pool import average_pool2d

op = relax.op


def _read(node: NodeContext) -> Window:
    kernel = node.int_list("kernel_shape")
    spatial = shape_of(node.input(0))[2:]
    if not kernel or len(kernel) != len(spatial):
        raise Unsupported(f"kernel_shape {kernel} does not fit the input")
    return read_window(node, tuple(kernel), spatial)


_Pool2d = Callable[[Expr, Window], Expr]
"""(x of rank 4, a window over two axes) → the pooled x."""


def _pooled(node: NodeContext, x: Expr, window: Window, pool: _Pool2d) -> Expr:
    """`x` pooled over all its spatial axes: the last two at once, the others one by one before."""
    rank = len(window.kernel)
    shape = list(shape_of(x))
    # The outer axes first: their passes run along the rows, and leave less for the last.
    steps: list[tuple[int, ...]] = [(axis,) for axis in range(rank - 2)]
    steps.append((rank - 2, rank - 1) if rank > 1 else (0,))
    for axes in steps:
        part = window.along(axes)
        first, last = 2 + axes[0], 2 + axes[-1]
        behind = prod(shape[last + 1 :])
        lead = shape[:2] if rank <= 2 else (1, prod(shape[:first]))
        if len(axes) == 2:
            view = (*lead, shape[first], shape[last])
        elif behind == 1:
            view, part = (*lead, 1, shape[first]), part.lifted(0)
        else:
            view, part = (*lead, shape[first], behind), part.lifted(1)
        y = pool(node.reshape(x, view), part)
        out = shape_of(y)[2:]
        for axis, extent in zip(
            axes, out if len(axes) == 2 else [prod(out) // behind], strict=True
        ):
            shape[2 + axis] = extent
        x = node.reshape(y, shape)
    return x


def max_pool(node: NodeContext) -> Expr | tuple[Expr | None, ...]:
    """MaxPool, with or without its second output."""
    if node.wants(1):
        return max_pool_with_indices(node)
    node.ignore("storage_order")  # of the indices
    x, window = node.input(0), _read(node)
    if node.flag_attr("ceil_mode"):
        window = replace(window, after=ceil_padding(window, shape_of(x)[2:]))
    window.outputs(shape_of(x)[2:])

    def pool(x: Expr, part: Window) -> Expr:
        return node.emit(
            op.nn.max_pool2d(x, part.kernel, part.strides, part.padding, part.dilations)
        )

    return _pooled(node, x, window, pool)


def _average(node: NodeContext, x: Expr, window: Window, hang: bool, count_padding: bool) -> Expr:
    """Means over windows; with `hang`, as many windows as rounding up their number gives."""
    dtype = dtype_of(x)
    if len(window.kernel) > 2 and dtype == "float16":
        x = node.cast(x, "float32")  # rounded once, not after each pass
    window.outputs(shape_of(x)[2:])

    def pool(x: Expr, part: Window) -> Expr:
        wide = part
        if hang:
            wide = replace(part, after=ceil_padding(part, shape_of(x)[2:]))
        if count_padding and wide.after != part.after:
            size = wide.outputs(shape_of(x)[2:])
            return node.emit(
                average_pool2d(
                    x,
                    kernel=(part.kernel[0], part.kernel[1]),
                    strides=(part.strides[0], part.strides[1]),
                    padding=(*part.before, *part.after),  # type: ignore[arg-type]
                    dilation=(part.dilations[0], part.dilations[1]),
                    size=(size[0], size[1]),
                )
            )
        return node.emit(
            op.nn.avg_pool2d(
                x,
                wide.kernel,
                wide.strides,
                wide.padding,
                wide.dilations,
                count_include_pad=count_padding,
            )
        )

    return node.cast(_pooled(node, x, window, pool), dtype)


def average_pool(node: NodeContext) -> Expr:
    """AveragePool, with or without the padding in the count."""
    hang, count_padding = node.flag_attr("ceil_mode"), node.flag_attr("count_include_pad")
    return _average(node, node.input(0), _read(node), hang, count_padding)


def _exponent(node: NodeContext) -> float:
    stated = node.attribute("p")  # a float in operator set 1
    p = 2.0 if stated is None else float(stated)
    if p <= 0:
        raise Unsupported(f"p={p:g} is not positive")
    return p


def _powers(node: NodeContext, x: Expr, p: float) -> Expr:
    """|x|^p."""
    if p == 2:
        return node.emit(op.multiply(x, x))
    magnitude = node.emit(op.abs(x))
    return magnitude if p == 1 else node.emit(op.power(magnitude, node.scalar(p, x)))


def _root(node: NodeContext, total: Expr, p: float) -> Expr:
    if p == 2:
        return node.emit(op.sqrt(total))
    return total if p == 1 else node.emit(op.power(total, node.scalar(1 / p, total)))


def _widened(node: NodeContext, x: Expr) -> Expr:
    """`x`, in float32 where its powers would overflow half precision."""
    return node.cast(x, "float32") if dtype_of(x) == "float16" else x


def lp_pool(node: NodeContext) -> Expr:
    """LpPool for any p, from the mean of |x|^p over whole windows."""
    x, p = node.input(0), _exponent(node)
    window = _read(node)
    if node.flag_attr("ceil_mode"):
        window = replace(window, after=ceil_padding(window, shape_of(x)[2:]))
    mean = _average(node, _powers(node, _widened(node, x), p), window, False, True)
    total = node.emit(op.multiply(mean, node.scalar(float(prod(window.kernel)), mean)))
    return node.cast(_root(node, total, p), dtype_of(x))


def _spatial(x: Expr) -> list[int]:
    return list(range(2, len(shape_of(x))))


def global_average_pool(node: NodeContext) -> Expr:
    """Mean over all spatial axes."""
    x = node.input(0)
    return node.emit(op.mean(x, _spatial(x), True))


def global_max_pool(node: NodeContext) -> Expr:
    """Maximum over all spatial axes."""
    x = node.input(0)
    return node.emit(op.max(x, _spatial(x), True))


def global_lp_pool(node: NodeContext) -> Expr:
    """Lp norm over all spatial axes."""
    x, p = node.input(0), _exponent(node)
    powers = _powers(node, _widened(node, x), p)
    total = node.emit(op.sum(powers, _spatial(x), True))
    return node.cast(_root(node, total, p), dtype_of(x))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "MaxPool"): max_pool,
    ("", "AveragePool"): average_pool,
    ("", "LpPool"): lp_pool,
    ("", "GlobalAveragePool"): global_average_pool,
    ("", "GlobalMaxPool"): global_max_pool,
    ("", "GlobalLpPool"): global_lp_pool,
}
