"""com.microsoft: rotary embeddings and grouped-query attention, as decoders use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.contrib_attention import heads_first, merged, scale_attribute
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, dtype_of, shape_of
from graphopt.ops import fused

op = relax.op


def rotate(node: NodeContext, x: Expr, cos: Expr, sin: Expr, interleaved: bool) -> Expr:
    """x (B,N,S,H) with its first 2R features rotated in pairs by cos and sin (B or 1,1,S,R).

    A pair is features i and i + R, or 2i and 2i + 1 where `interleaved`. Source: Su et al.,
    RoFormer, 2021.
    """
    *lead, size = shape_of(x)
    half = shape_of(cos)[-1]
    if 2 * half > size:
        raise Unsupported(f"{2 * half} rotated features of {size}")
    if interleaved:
        pairs = node.reshape(node.slice(x, [3], [0], [2 * half]), (*lead, half, 2))
        a, b = (node.reshape(node.slice(pairs, [4], [i], [i + 1]), (*lead, half)) for i in (0, 1))
    else:
        a, b = node.slice(x, [3], [0], [half]), node.slice(x, [3], [half], [2 * half])
    real = node.emit(op.subtract(node.emit(op.multiply(a, cos)), node.emit(op.multiply(b, sin))))
    imaginary = node.emit(op.add(node.emit(op.multiply(b, cos)), node.emit(op.multiply(a, sin))))
    if interleaved:
        parts = [node.reshape(part, (*lead, half, 1)) for part in (real, imaginary)]
        turned = node.reshape(node.emit(op.concat(parts, 4)), (*lead, 2 * half))
        pieces = [turned]
    else:
        pieces = [real, imaginary]
    if 2 * half < size:
        pieces.append(node.slice(x, [3], [2 * half], [size]))
    return pieces[0] if len(pieces) == 1 else node.emit(op.concat(pieces, 3))


def angles(node: NodeContext, cos: int, sin: int, positions: Expr) -> tuple[Expr, Expr]:
    """Rows `positions` (B or 1, S) of two caches (M,R) as (B or 1,1,S,R)."""
    batch, length = shape_of(positions)
    found = []
    for index in (cos, sin):
        rows = node.emit(op.take(node.input(index), positions, 0))
        found.append(node.reshape(rows, (batch, 1, length, shape_of(rows)[-1])))
    return found[0], found[1]


def rotary_embedding(node: NodeContext) -> Expr:
    """RotaryEmbedding of (B,S,N·H) or (B,N,S,H)."""
    if node.flag_attr("is_packed_batching"):
        raise Unsupported("packed batching is not supported")
    if node.float_attr("scale", 1.0) != 1.0:
        raise Unsupported("a scale is not supported")
    x = node.input(0)
    heads, dim = node.int_attr("num_heads"), node.int_attr("rotary_embedding_dim")
    flat = len(shape_of(x)) == 3
    if flat:
        hidden = shape_of(x)[2]
        if dim and not heads:
            raise Unsupported("rotary_embedding_dim without num_heads")
        size = hidden // heads if heads else 2 * shape_of(node.input(2))[1]
        if hidden % size:
            raise Unsupported(f"{hidden} features cannot form heads of {size}")
        x = heads_first(node, x, hidden // size)
    batch, _, length, _ = shape_of(x)
    positions = node.input(1)
    if len(shape_of(positions)) == 1:  # the first position; the others follow
        offsets = constant(np.arange(length)[None], dtype_of(positions))
        positions = node.emit(op.add(node.reshape(positions, (1, 1)), offsets))
    elif shape_of(positions) != (batch, length):
        raise Unsupported(f"positions of shape {shape_of(positions)}")
    cos, sin = angles(node, 2, 3, positions)
    result = rotate(node, x, cos, sin, node.flag_attr("interleaved"))
    return merged(node, result) if flat else result


def _refusals(node: NodeContext) -> None:
    for name, harmless in (("kv_cache_bit_width", 0), ("sliding_window_cache", 0)):
        if node.int_attr(name, harmless) != harmless:
            raise Unsupported(f"{name}={node.int_attr(name)} is not supported")
    for name in ("k_quant_type", "v_quant_type"):
        if node.string_attr(name, "NONE") != "NONE":
            raise Unsupported("a quantized cache is not supported")
    if node.int_attr("qk_output") or node.wants(3):
        raise Unsupported("the output of scores is not supported")
    if node.has(12) or node.has(13):
        raise Unsupported("a quantized cache is not supported")
    if node.has(9):
        raise Unsupported("position_ids are not supported")
    if node.has(14) != node.has(15):
        raise Unsupported("one of q_norm_weight and k_norm_weight without the other")


def _cached(
    node: NodeContext, new: Expr, past_index: int, past: Expr, total: int, output: int
) -> Expr:
    """The cache (B,N,T,H) with `new` (B,N,S,H) written behind the `past` (B) keys of each batch.

    T is the length of the old cache, or `total` where that is more; the rest is 0.
    """
    batch, heads, length, size = shape_of(new)
    if not node.has(past_index):
        if total <= length:
            return new
        widths = [0, 0, 0, 0, 0, total - length, 0, 0]
        return node.emit(op.nn.pad(new, widths), output)
    old = node.input(past_index)
    kept = shape_of(old)[2]
    capacity = max(kept, total)
    zero = constant(np.zeros((batch, heads, 1, size)), dtype_of(new))
    both = node.emit(op.concat([old, new, zero], 2))
    row = np.arange(capacity)
    positions = constant(row[None], "int64")
    start = node.reshape(past, (batch, 1))
    moved = node.emit(op.add(node.emit(op.subtract(positions, start)), constant(kept, "int64")))
    fresh = node.emit(op.greater_equal(positions, start))
    stop = node.emit(op.add(start, constant(length, "int64")))
    inside = node.emit(op.logical_and(fresh, node.emit(op.less(positions, stop))))
    blank = constant(kept + length, "int64")
    kept_rows = node.emit(op.where(node.emit(op.less(positions, start)), positions, blank))
    which = node.emit(op.where(inside, moved, kept_rows))
    # Rows of all batches and heads in one table.
    each = kept + length + 1
    base = np.arange(batch * heads).reshape(batch, heads, 1) * each
    which = node.reshape(which, (batch, 1, capacity))
    which = node.emit(op.add(which, constant(base, "int64")))
    rows = node.emit(
        op.take(
            node.reshape(both, (batch * heads * each, size)),
            node.reshape(which, (batch * heads * capacity,)),
            0,
        )
    )
    return node.reshape(rows, (batch, heads, capacity, size))


def _normalised(node: NodeContext, x: Expr, index: int) -> Expr:
    """Each head's features under an RMS norm, where its weight is given."""
    if not node.has(index):
        return x
    epsilon = node.float_attr("qk_norm_epsilon", 1e-6)
    return node.emit(op.nn.rms_norm(x, node.input(index), [-1], epsilon))


def group_query_attention(node: NodeContext) -> tuple[Expr, ...]:
    """GroupQueryAttention with a cache of static length; its fill levels are run-time data."""
    _refusals(node)
    heads, groups = node.int_attr("num_heads"), node.int_attr("kv_num_heads")
    if heads < 1 or groups < 1 or heads % groups:
        raise Unsupported(f"{heads} heads cannot share {groups} of keys")
    query = node.input(0)
    batch, length, width = shape_of(query)
    if node.has(1):
        parts = [(query, heads), (node.input(1), groups), (node.input(2), groups)]
    else:
        size = width // (heads + 2 * groups)
        ends = np.cumsum([0, heads * size, groups * size, groups * size])
        sliced = [node.slice(query, [2], [int(a)], [int(b)]) for a, b in pairwise(ends)]
        parts = list(zip(sliced, (heads, groups, groups), strict=True))
    q, k, v = (heads_first(node, value, count) for value, count in parts)
    q, k = _normalised(node, q, 14), _normalised(node, k, 15)
    total = int(node.known(6, "the total sequence length").reshape(()))
    last = node.cast(node.reshape(node.input(5), (batch,)), "int64")
    if total == length:  # the first prompt: nothing is in the cache
        past = constant(np.zeros(batch, np.int64))
    else:
        past = node.emit(op.subtract(last, constant(length - 1, "int64")))
    rows = node.emit(
        op.add(node.reshape(past, (batch, 1)), constant(np.arange(length)[None], "int64"))
    )
    if node.flag_attr("do_rotary"):
        cos, sin = angles(node, 7, 8, rows)
        interleaved = node.flag_attr("rotary_interleaved")
        q, k = (rotate(node, value, cos, sin, interleaved) for value in (q, k))
    keys = _cached(node, k, 3, past, total, 1)
    values = _cached(node, v, 4, past, total, 2)
    mask = _visible(node, rows, shape_of(keys)[2], dtype_of(q))
    result = _grouped(node, q, keys, values, mask)
    return merged(node, result), keys, values


def _visible(node: NodeContext, rows: Expr, columns: int, dtype: str) -> Expr:
    """0 for keys that a query at position `rows` (B,S) may see, else the lowest: (B,1,S,T)."""
    batch, length = shape_of(rows)
    window = node.int_attr("local_window_size", -1)
    at = node.reshape(rows, (batch, 1, length, 1))
    keys = constant(np.arange(columns)[None, None, None], "int64")
    if node.flag_attr("causal", 1):
        keep = node.emit(op.less_equal(keys, at))
        if window > 0:
            first = node.emit(op.subtract(at, constant(window, "int64")))
            keep = node.emit(op.logical_and(keep, node.emit(op.greater(keys, first))))
    else:
        end = node.slice(rows, [1], [length - 1], [length])
        keep = node.emit(op.less_equal(keys, node.reshape(end, (batch, 1, 1, 1))))
    lowest = constant(float(np.finfo(dtype).min), dtype)
    return node.emit(op.where(keep, constant(0.0, dtype), lowest))


def _grouped(node: NodeContext, q: Expr, k: Expr, v: Expr, mask: Expr) -> Expr:
    """Attention of q (B,N,S,H) on k and v (B,G,T,H): the N/G queries of a group are its rows."""
    batch, heads, length, size = shape_of(q)
    groups, columns = shape_of(k)[1:3]
    share = heads // groups
    q = node.reshape(q, (batch, groups, share * length, size))
    if node.has(10):
        bias = node.input(10)
        dims = shape_of(bias)
        if dims[3] < columns:  # the cache may be longer than what is in it
            bias = node.emit(op.nn.pad(bias, [0] * 7 + [columns - dims[3]]))
        if dims[1] == 1 and share > 1:
            bias = node.emit(op.broadcast_to(bias, (dims[0], share, length, columns)))
            bias = node.reshape(bias, (dims[0], 1, share * length, columns))
            mask = _repeated(node, mask, share)
        elif dims[1] == heads and share > 1:
            bias = node.reshape(bias, (dims[0], groups, share * length, columns))
            mask = _repeated(node, mask, share)
        mask = node.emit(op.add(mask, bias))
    else:
        mask = _repeated(node, mask, share)
    result = _attention(node, q, k, v, mask, scale_attribute(node, size), heads)
    return node.reshape(result, (batch, heads, length, size))


def _repeated(node: NodeContext, mask: Expr, share: int) -> Expr:
    """(B,1,S,T) for `share` queries one after the other: (B,1,share·S,T), or (B,1,1,T)."""
    if shape_of(mask)[2] == 1 or share == 1:
        return mask
    return node.emit(op.concat([mask] * share, 2))


def _attention(
    node: NodeContext, q: Expr, k: Expr, v: Expr, mask: Expr, scale: float, heads: int
) -> Expr:
    cap = node.float_attr("softcap")
    smooth = node.int_attr("smooth_softmax", -1) > 0
    if not cap and not smooth and not node.has(11):
        return node.emit(fused.attention(q, k, v, mask, scale=scale))
    scores = node.emit(op.matmul(q, node.transpose(k, (0, 1, 3, 2))))
    scores = node.emit(op.multiply(scores, node.scalar(scale, scores)))
    if cap:
        inner = node.emit(op.divide(scores, node.scalar(cap, scores)))
        bounded = node.emit(op.tanh(inner))
        scores = node.emit(op.multiply(bounded, node.scalar(cap, scores)))
    scores = node.emit(op.add(scores, mask))
    batch, groups, rows, columns = shape_of(scores)
    if smooth or node.has(11):
        share = heads // groups
        sink = (
            node.reshape(node.input(11), (1, groups, share, 1, 1))
            if node.has(11)
            else constant(np.zeros((1, groups, share, 1, 1)), dtype_of(scores))
        )
        wide = (batch, groups, share, rows // share, 1)
        sink = node.reshape(node.emit(op.broadcast_to(sink, wide)), (batch, groups, rows, 1))
        scores = node.emit(op.concat([scores, sink], 3))
    weights = node.emit(op.nn.softmax(scores, 3))
    weights = node.slice(weights, [3], [0], [columns])
    return node.emit(op.matmul(weights, v))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("com.microsoft", "RotaryEmbedding"): rotary_embedding,
    ("com.microsoft", "GroupQueryAttention"): group_query_attention,
}
