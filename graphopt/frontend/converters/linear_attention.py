"""LinearAttention: one operator of ours over all time steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod, sqrt
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, dtype_of, shape_of
from graphopt.ops.linear_attention import linear_attention as attend

op = relax.op

_RULES = ("linear", "gated", "delta", "gated_delta")


def linear_attention(node: NodeContext) -> tuple[Expr, ...]:
    """The recurrence of `update_rule` in float32, whatever the types of inputs and state."""
    node.ignore("chunk_size")  # how to compute it, not what
    rule = node.string_attr("update_rule", "gated_delta")
    if rule not in _RULES:
        raise Unsupported(f"update_rule '{rule}' is unknown")
    for index, name, wanted in ((4, "decay", "gated" in rule), (5, "beta", "delta" in rule)):
        if node.has(index) != wanted:
            text = "needs" if wanted else "does not take"
            raise Unsupported(f"update_rule '{rule}' {text} the input {name}")
    heads, kv_heads = node.int_attr("q_num_heads"), node.int_attr("kv_num_heads")
    if heads <= 0 or kv_heads <= 0 or heads % kv_heads:
        raise Unsupported(f"{heads} query heads do not fit {kv_heads} key heads")
    given = [shape_of(node.input(i)) for i in range(3)]
    if any(len(shape) != 3 for shape in given):
        raise Unsupported("query, key and value must have three dimensions")
    (batch, steps, width), (_, _, v_width) = given[0], given[2]
    if width % heads or v_width % kv_heads or not prod(given[0]) or not prod(given[2]):
        raise Unsupported(f"shapes {given} do not fit {heads} and {kv_heads} heads")
    keys, values = width // heads, v_width // kv_heads
    q, k, v = (node.cast(node.input(i), "float32") for i in range(3))
    shape = (batch, kv_heads, keys, values)
    state = (
        node.cast(node.input(3), "float32")
        if node.has(3)
        else constant(np.zeros(shape, np.float32))
    )
    decay = node.emit(op.exp(node.cast(node.input(4), "float32"))) if node.has(4) else None
    beta = node.cast(node.input(5), "float32") if node.has(5) else None
    scale = node.float_attr("scale", 0.0) or 1 / sqrt(keys)
    both = node.emit(
        attend(q, k, v, state, heads=heads, kv_heads=kv_heads, scale=scale, decay=decay, beta=beta)
    )
    size = batch * steps * heads * values
    output = node.reshape(node.slice(both, [0], [0], [size]), (batch, steps, heads * values))
    last = node.reshape(node.slice(both, [0], [size], [size + prod(shape)]), shape)
    kept = dtype_of(node.input(3 if node.has(3) else 0))
    return node.cast(output, dtype_of(node.input(0))), node.cast(last, kept)


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "LinearAttention"): linear_attention,
}
