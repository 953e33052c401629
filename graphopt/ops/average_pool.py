"""Average pooling whose last windows hang over the padding, which nn.avg_pool2d cannot state."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, ranked_shape, register


def average_pool2d(
    x: Expr,
    *,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
) -> Expr:
    """Means of x (N,C,H,W) over windows → (N,C,*size).

    A window counts its taps on pixels and on the padding (top, left, bottom, right), not those
    beyond.
    """
    attrs = {
        "kernel": list(kernel),
        "strides": list(strides),
        "padding": list(padding),
        "dilation": list(dilation),
        "size": list(size),
        "count_include_pad": True,
    }
    return call_op(AVERAGE_POOL2D, (x,), attrs)


def _infer(call: Expr, _: Any) -> Any:
    batch, channels = ranked_shape(call.args[0], "x", 4)[:2]
    return relax.TensorType([batch, channels, *attributes(call)["size"]], call.args[0].ty.dtype)


AVERAGE_POOL2D = register("graphopt.avg_pool2d", 1, _infer)
