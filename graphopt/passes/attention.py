"""Recovers scaled dot-product attention from matmul, scaling, mask, softmax and matmul."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from graphopt.ir import Graph
from graphopt.ops import fused
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Expr, dtype_of, reshaped, shape_of


@dataclass(frozen=True)
class Attention:
    """softmax(scale · q @ kt + mask) @ v as found; kt is the transposed key (…, D, T)."""

    q: Expr
    kt: Expr
    v: Expr
    mask: Expr | None
    scale: float
    axis: int  # of the softmax
    shape: tuple[int, ...]
    weights: Expr  # softmax's result
    inner: tuple[Expr, ...]  # scores and masked scores


def _scaled(view: View, expr: Expr) -> tuple[Expr, float]:
    """(x, c) where `expr` is x · c with a scalar constant c, looking through views of x · c."""
    scale = 1.0
    call = view.call(expr, "multiply")
    while call is not None:
        factor = view.scalar(call.args[1])
        if factor is None or shape_of(call.args[0]) != shape_of(call):
            break
        expr, scale = call.args[0], scale * factor
        call = view.call(expr, "multiply")
    return expr, scale


def _attention(view: View, _var: Expr, value: Expr) -> Attention | None:
    weights, v = value.args
    softmax = view.call(weights, "nn.softmax")
    if softmax is None:
        return None
    scores, mask = softmax.args[0], None
    inner = [scores]
    scores, scale = _scaled(view, scores)
    masked = view.call(scores, "add") if scale == 1.0 else None
    if masked is not None:
        for product, summand in (masked.args, reversed(masked.args)):
            found, factor = _scaled(view, product)
            if view.call(found, "matmul") is not None:
                scores, scale, mask = found, factor, summand
                inner.append(product)
                break
    call = view.call(scores, "matmul")
    if call is None:
        return None
    inner.append(scores)
    q, left = _scaled(view, call.args[0])
    kt, right = _scaled(view, call.args[1])
    links = tuple(e for i, e in enumerate(inner) if not any(e.same_as(o) for o in inner[:i]))
    axis = int(softmax.attrs.axis) % len(shape_of(softmax))
    return Attention(q, kt, v, mask, scale * left * right, axis, shape_of(value), weights, links)


def _fits(view: View, found: Attention) -> str | None:
    q, kt, v = shape_of(found.q), shape_of(found.kt), shape_of(found.v)
    rank = len(q)
    if not view.used_once(found.weights):
        return "the attention weights are used elsewhere"
    if not all(view.used_once(link) for link in found.inner):
        return "the scores are used elsewhere"
    if found.axis != rank - 1:
        return "softmax does not run over the keys"
    if rank not in (3, 4) or len(kt) != rank or len(v) != rank:
        return f"the operands are not all of rank 3 or 4: {q}, {kt}, {v}"
    if not q[:-2] == kt[:-2] == v[:-2]:
        return "queries, keys and values differ in batch or heads"
    if any(view.is_constant(e) for e in (found.q, found.kt, found.v)):
        return "queries, keys or values are constant"
    if found.mask is not None:
        scores = (*q[:-1], kt[-1])
        dims = shape_of(found.mask)
        if len(dims) > rank or dtype_of(found.mask) != dtype_of(found.q):
            return "the mask has another rank or dtype than the scores"
        if any(d not in (1, s) for d, s in zip(dims[::-1], scores[::-1], strict=False)):
            return "the mask makes the scores larger"
    return None


def _make(_view: View, found: Attention) -> Expr:
    rank = len(found.shape)
    q, k, v, mask = found.q, _swapped(found.kt), found.v, found.mask
    if mask is not None and len(shape_of(mask)) < 4:
        dims = shape_of(mask)
        # Leading axes are broadcast; of rank 3, axis 0 is the heads' axis here.
        mask = reshaped(mask, (1,) * (4 - len(dims)) + dims)
    if rank == 4:
        return fused.attention(q, k, v, mask, scale=found.scale)
    b, d, t = shape_of(found.kt)
    s, e = found.shape[1], found.shape[2]
    q, v = reshaped(q, (1, b, s, d)), reshaped(v, (1, b, t, e))
    k = reshaped(k, (1, b, t, d))
    return reshaped(fused.attention(q, k, v, mask, scale=found.scale), found.shape)


def _swapped(kt: Expr) -> Expr:
    """The keys (…, T, D); the transposes that make kt are left to cancel with this one."""
    rank = len(shape_of(kt))
    axes = [*range(rank - 2), rank - 1, rank - 2]
    return relax.op.permute_dims(kt, axes)


@dataclass(frozen=True)
class RecoverAttention:
    """softmax(scale · q kᵀ + mask) v becomes graphopt.attention.

    Scalar factors of queries, keys and scores are collected into the scale; a mask is what is
    added to the scaled scores. Source: Vaswani et al., 2017.
    """

    name: str = "recover_attention"

    def run(self, graph: Graph) -> Outcome:
        rule = Rule("attention", ("matmul",), _attention, _make, _fits)
        return apply_rules(graph, self.name, (rule,))
