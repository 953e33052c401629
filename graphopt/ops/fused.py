"""Relax operators that the passes recover from several ONNX nodes and that Relax has no op for."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, call_op, register


def hard_sigmoid(x: Expr, alpha: float = 0.2, beta: float = 0.5) -> Expr:
    """max(0, min(1, alpha · x + beta)), elementwise; the defaults are ONNX's."""
    return call_op(HARD_SIGMOID, (x,), {"alpha": float(alpha), "beta": float(beta)})


def hard_swish(x: Expr) -> Expr:
    """x · max(0, min(1, x / 6 + 1/2)), elementwise."""
    return call_op(HARD_SWISH, (x,), {})


def attention(
    q: Expr,
    k: Expr,
    v: Expr,
    mask: Expr | None = None,
    *,
    scale: float,
    heads_inside: tuple[bool, bool, bool, bool] = (False,) * 4,
) -> Expr:
    """softmax(scale · q kᵀ + mask) v over the last axis of the scores.

    Shapes: q (B,H,S,D), k (B,H,T,D), v (B,H,T,E), mask of rank 4, broadcastable to (B,H,S,T) and
    added → (B,H,S,E). `heads_inside` says for q, k, v and the result whether its axes 1 and 2 are
    swapped, as in (B,S,H,D). Source: Vaswani et al., Attention Is All You Need, 2017, section
    3.2.1.
    """
    inputs = (q, k, v) if mask is None else (q, k, v, mask)
    attrs = {"scale": float(scale), "heads_inside": [bool(inside) for inside in heads_inside]}
    return call_op(ATTENTION, inputs, attrs)


def _infer_same(call: Expr, _: Any) -> Any:
    return call.args[0].ty


def _infer_attention(call: Expr, _: Any) -> Any:
    shapes = [tuple(int(dim) for dim in arg.ty.shape) for arg in call.args]
    if any(len(shape) != 4 for shape in shapes):
        raise ValueError(f"graphopt.attention: not all inputs are of rank 4: {shapes}")
    inside = [bool(flag) for flag in call.attrs["heads_inside"]]
    q, k, v = (_swapped(shape, flag) for shape, flag in zip(shapes[:3], inside[:3], strict=True))
    if q[:2] != k[:2] or k[:3] != v[:3] or q[3] != k[3]:
        raise ValueError(f"graphopt.attention: q, k and v do not fit together: {shapes}")
    scores = (*q[:3], k[2])
    for mask in shapes[3:]:
        if any(have not in (1, want) for have, want in zip(mask, scores, strict=True)):
            raise ValueError(f"graphopt.attention: mask {mask} does not broadcast to {scores}")
    result = _swapped((*q[:3], v[3]), inside[3])
    return relax.TensorType(list(result), call.args[0].ty.dtype)


def _swapped(shape: tuple[int, ...], inside: bool) -> tuple[int, ...]:
    """(B,H,S,D) of a tensor with its heads inside, and back."""
    return (shape[0], shape[2], shape[1], shape[3]) if inside else shape


HARD_SIGMOID = register("graphopt.hard_sigmoid", 1, _infer_same)
HARD_SWISH = register("graphopt.hard_swish", 1, _infer_same)
ATTENTION = register("graphopt.attention", -1, _infer_attention)
