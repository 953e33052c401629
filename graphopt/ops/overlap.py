"""Adding up windows where they overlap: what is left of transposed convolutions and Col2Im."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, ranked_shape, register


def overlap_add(
    x: Expr, *, window_first: bool, size: int, stride: int, before: int, dilation: int
) -> Expr:
    """out[p,q,m,r] = Σ over taps k and windows l with l·stride + k·dilation = m + before.

    Shapes: x (P,K,Q,L,R) if window_first, where K counts a window's taps and L the windows →
    (P,Q,size,R); else x (P,L,Q,K,R) → (P,size,Q,R).
    """
    attrs = {
        "window_first": window_first,
        "size": size,
        "stride": stride,
        "before": before,
        "dilation": dilation,
    }
    return call_op(OVERLAP_ADD, (x,), attrs)


def _infer(call: Expr, _: Any) -> Any:
    p, _, q, _, r = ranked_shape(call.args[0], "x", 5)
    attrs = attributes(call)
    middle = [q, attrs["size"]] if attrs["window_first"] else [attrs["size"], q]
    return relax.TensorType([p, *middle, r], call.args[0].ty.dtype)


OVERLAP_ADD = register("graphopt.overlap_add", 1, _infer)
