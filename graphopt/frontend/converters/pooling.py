"""Pooling. 1-D pools become 2-D with height 1; ceil mode becomes padding behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from tvm import relax

from graphopt.frontend.converters.windows import Window, ceil_padding, read_window
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, shape_of

op = relax.op


def _read(node: NodeContext) -> Window:
    kernel = node.int_list("kernel_shape")
    spatial = shape_of(node.input(0))[2:]
    if not kernel or len(kernel) != len(spatial):
        raise Unsupported(f"kernel_shape {kernel} does not fit the input")
    return read_window(node, tuple(kernel), spatial)


def _pool(node: NodeContext, x: Expr, window: Window, kind: str, count_padding: bool) -> Expr:
    rank = len(window.kernel)
    shape = shape_of(x)
    if rank == 1:
        x = node.reshape(x, (shape[0], shape[1], 1, shape[2]))
        window = Window(
            (1, *window.kernel),
            (1, *window.strides),
            (1, *window.dilations),
            (0, *window.before),
            (0, *window.after),
        )
    elif rank > 3:
        raise Unsupported(f"pooling over {rank} axes is not supported")
    suffix = "3d" if rank == 3 else "2d"
    result = node.emit(
        getattr(op.nn, f"{kind}_pool{suffix}")(
            x,
            window.kernel,
            window.strides,
            window.padding,
            window.dilations,
            count_include_pad=count_padding,
        )
    )
    if rank == 1:
        pooled = shape_of(result)
        result = node.reshape(result, (pooled[0], pooled[1], pooled[3]))
    return result


def max_pool(node: NodeContext) -> Expr:
    """MaxPool; the indices output is not supported."""
    node.ignore("storage_order")  # of the indices
    if node.wants(1):
        raise Unsupported("the indices output of MaxPool is not supported")
    x, window = node.input(0), _read(node)
    if node.int_attr("ceil_mode"):
        window = replace(window, after=ceil_padding(window, shape_of(x)[2:]))
    return _pool(node, x, window, "max", False)


def _averaging_window(node: NodeContext, count_padding: bool) -> Window:
    window = _read(node)
    if node.int_attr("ceil_mode"):
        after = ceil_padding(window, shape_of(node.input(0))[2:])
        if count_padding and after != window.after:
            raise Unsupported("ceil_mode together with count_include_pad is not supported")
        window = replace(window, after=after)
    return window


def average_pool(node: NodeContext) -> Expr:
    """AveragePool, with or without the padding in the count."""
    count_padding = bool(node.int_attr("count_include_pad"))
    window = _averaging_window(node, count_padding)
    return _pool(node, node.input(0), window, "avg", count_padding)


def lp_pool(node: NodeContext) -> Expr:
    """LpPool for p = 1 and 2, from the average of |x|^p."""
    p = node.int_attr("p", 2)
    if p not in (1, 2):
        raise Unsupported(f"LpPool with p={p} is not supported")
    window = _averaging_window(node, True)
    x = node.input(0)
    powers = node.emit(op.abs(x) if p == 1 else op.multiply(x, x))
    total = _pool(node, powers, window, "avg", True)
    total = node.emit(op.multiply(total, node.scalar(float(prod(window.kernel)), total)))
    return total if p == 1 else node.emit(op.sqrt(total))


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
    """Lp norm over all spatial axes, p = 1 or 2."""
    x, p = node.input(0), node.int_attr("p", 2)
    if p not in (1, 2):
        raise Unsupported(f"GlobalLpPool with p={p} is not supported")
    powers = node.emit(op.abs(x) if p == 1 else op.multiply(x, x))
    total = node.emit(op.sum(powers, _spatial(x), True))
    return total if p == 1 else node.emit(op.sqrt(total))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "MaxPool"): max_pool,
    ("", "AveragePool"): average_pool,
    ("", "LpPool"): lp_pool,
    ("", "GlobalAveragePool"): global_average_pool,
    ("", "GlobalMaxPool"): global_max_pool,
    ("", "GlobalLpPool"): global_lp_pool,
}
