"""Linear attention: all time steps in one operator."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, ranked_shape, register


def linear_attention(
    q: Expr,
    k: Expr,
    v: Expr,
    state: Expr,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    decay: Expr | None = None,
    beta: Expr | None = None,
) -> Expr:
    """Recurrent attention over a state S (K,V) per key head; all float32.

    At each step S becomes decay · S + k ⊗ u, where u is v, or β · (v − (decay · S)ᵀ k) where `beta`
    is given (the delta rule); the output is scale · Sᵀ q.

    Shapes: q (B,T,heads·K), k (B,T,kv_heads·K), v (B,T,kv_heads·V), state (B,kv_heads,K,V), decay
    (B,T,kv_heads) or (B,T,kv_heads·K): the factors themselves, beta (B,T,kv_heads) or (B,T,1) →
    (B·T·heads·V + B·kv_heads·K·V): the outputs (B,T,heads·V) in a row, then the last state.
    """
    optional = [extra for extra in (decay, beta) if extra is not None]
    attrs = {
        "heads": heads,
        "kv_heads": kv_heads,
        "scale": float(scale),
        "decay": decay is not None,
        "beta": beta is not None,
    }
    return call_op(LINEAR_ATTENTION, (q, k, v, state, *optional), attrs)


def _infer(call: Expr, _: Any) -> Any:
    attrs = attributes(call)
    heads, kv_heads = int(attrs["heads"]), int(attrs["kv_heads"])
    batch, steps, _ = (int(n) for n in ranked_shape(call.args[0], "q", 3))
    keys, values = (int(n) for n in ranked_shape(call.args[3], "state", 4)[2:])
    wanted: list[tuple[tuple[int, ...], ...]] = [
        ((batch, steps, heads * keys),),
        ((batch, steps, kv_heads * keys),),
        ((batch, steps, kv_heads * values),),
        ((batch, kv_heads, keys, values),),
    ]
    if attrs["decay"]:
        wanted.append(((batch, steps, kv_heads), (batch, steps, kv_heads * keys)))
    if attrs["beta"]:
        wanted.append(((batch, steps, kv_heads), (batch, steps, 1)))
    for i, (arg, shapes) in enumerate(zip(call.args, wanted, strict=True)):
        given = tuple(int(n) for n in arg.ty.shape)
        if given not in shapes:
            raise ValueError(f"argument {i} has shape {given}, not {shapes[0]}")
    size = batch * steps * heads * values + batch * kv_heads * keys * values
    return relax.TensorType([size], "float32")


LINEAR_ATTENTION = register("graphopt.linear_attention", -1, _infer)
