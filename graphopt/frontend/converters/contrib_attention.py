"""com.microsoft Attention, MultiHeadAttention and QAttention over graphopt's attention kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.linear_algebra import matrix_product
from graphopt.frontend.converters.quantized_products import scale_of, scaled_product
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, dtype_of, shape_of
from graphopt.ops import fused

op = relax.op


def heads_first(node: NodeContext, x: Expr, heads: int) -> Expr:
    """(B,S,N·H) as (B,N,S,H)."""
    batch, length, hidden = shape_of(x)
    if hidden % heads:
        raise Unsupported(f"{hidden} features cannot form {heads} heads")
    split = node.reshape(x, (batch, length, heads, hidden // heads))
    return node.transpose(split, (0, 2, 1, 3))


def merged(node: NodeContext, x: Expr) -> Expr:
    """(B,N,S,H) as (B,S,N·H)."""
    batch, heads, length, size = shape_of(x)
    return node.reshape(node.transpose(x, (0, 2, 1, 3)), (batch, length, heads * size))


def scale_attribute(node: NodeContext, size: int) -> float:
    """The factor of the scores: 1/√size unless stated; 0 counts as not stated."""
    return node.float_attr("scale") or 1.0 / math.sqrt(size)


def causal(rows: int, columns: int, past: int) -> np.ndarray[Any, Any]:
    """Which of `columns` keys each of `rows` queries may see: (1,1,rows,columns)."""
    seen = np.arange(columns)[None, :] <= np.arange(rows)[:, None] + past
    return seen[None, None]


def _filled(node: NodeContext, keep: Expr, value: float, dtype: str) -> Expr:
    """0 where `keep`, else `value`."""
    zero, fill = constant(0.0, dtype), constant(value, dtype)
    return node.emit(op.where(keep, zero, fill))


def _mask(node: NodeContext, index: int, shape: tuple[int, int, int], value: float) -> Expr | None:
    """The mask input as it is added to scores (B,N,S,T); `shape` is (B,S,T).

    Forms: lengths (B) of keys padded behind, ends then starts (2B) of keys padded on both sides,
    and 0/1 masks (B,T) and (B,S,T).
    """
    if not node.has(index):
        return None
    batch, rows, columns = shape
    mask = node.input(index)
    dims = shape_of(mask)
    dtype = dtype_of(node.input(0))
    dtype = dtype if "float" in dtype else "float32"
    if len(dims) == 1:
        positions = constant(np.arange(columns)[None], dtype_of(mask))
        if dims[0] not in (batch, 2 * batch):
            raise Unsupported(f"a mask index of {dims[0]} entries for a batch of {batch}")
        ends = node.slice(mask, [0], [0], [batch])
        keep = node.emit(op.less(positions, node.reshape(ends, (batch, 1))))
        if dims[0] == 2 * batch:
            starts = node.reshape(node.slice(mask, [0], [batch], [2 * batch]), (batch, 1))
            behind = node.emit(op.greater_equal(positions, starts))
            keep = node.emit(op.logical_and(keep, behind))
        return node.reshape(_filled(node, keep, value, dtype), (batch, 1, 1, columns))
    if len(dims) == 2 and dims[1] == 1 and columns != 1 and dims[0] in (1, batch):
        return None  # a stand-in that exporters write for "no mask"
    if dims == (batch, columns):
        wanted = (batch, 1, 1, columns)
    elif dims == (batch, rows, columns):
        wanted = (batch, 1, rows, columns)
    else:
        raise Unsupported(f"a mask of shape {dims} is not supported")
    keep = node.emit(op.greater(mask, node.scalar(0, mask)))
    return node.reshape(_filled(node, keep, value, dtype), wanted)


def _added(node: NodeContext, a: Expr | None, b: Expr | None) -> Expr | None:
    if a is None or b is None:
        return b if a is None else a
    return node.emit(op.add(a, b))


def attend(
    node: NodeContext, q: Expr, k: Expr, v: Expr, mask: int, bias: int | None, past: int
) -> Expr:
    """Attention of q (B,N,S,H), k (B,N,T,H), v (B,N,T,E) → (B,S,N·E), by the node's attributes.

    `mask` and `bias` are inputs: the mask of keys, and what is added to the scores. A query sees
    the first `past` keys in any case.
    """
    batch, _, rows, size = shape_of(q)
    columns = shape_of(k)[2]
    value = node.float_attr("mask_filter_value", -10000.0)
    total = _mask(node, mask, (batch, rows, columns), value)
    if node.flag_attr("unidirectional") and rows > 1:
        if columns != rows + past:
            # ONNX Runtime lets the last query see all keys then, the others not: not a definition.
            raise Unsupported(f"unidirectional=1 with {rows} queries and {columns} keys")
        dtype = dtype_of(q)
        lowest = constant(float(np.finfo(dtype).min), dtype)
        seen = causal(rows, columns, past)
        # What is hidden is set, not added: the lowest number would overflow.
        given = constant(0.0, dtype) if total is None else total
        total = node.emit(op.where(constant(seen), given, lowest))
    if bias is not None and node.has(bias):
        total = _added(node, total, node.input(bias))
    scale = scale_attribute(node, size)
    return merged(node, node.emit(fused.attention(q, k, v, total, scale=scale)))


def _refuse(node: NodeContext, **attributes: int) -> None:
    for name, harmless in attributes.items():
        if node.int_attr(name, harmless) != harmless:
            raise Unsupported(f"{name}={node.int_attr(name)} is not supported")


def _with_past(node: NodeContext, k: Expr, v: Expr, index: int) -> tuple[Expr, Expr, int]:
    """Keys and values behind those of the past (2,B,N,P,H), if given, and P."""
    if not node.has(index):
        return k, v, 0
    past = node.input(index)
    shape = shape_of(past)
    parts = []
    for i, new in enumerate((k, v)):
        old = node.reshape(node.slice(past, [0], [i], [i + 1]), shape[1:])
        parts.append(node.emit(op.concat([old, new], 2)))
    return parts[0], parts[1], shape[3]


def _stacked(node: NodeContext, k: Expr, v: Expr) -> Expr:
    """Keys and values as one (2,B,N,T,H)."""
    parts = [node.reshape(value, (1, *shape_of(value))) for value in (k, v)]
    return node.emit(op.concat(parts, 0), 1)


def _self_attention(
    node: NodeContext, projected: Expr, mask: int, past: int, bias: int | None
) -> tuple[Expr, ...]:
    """Attention on merged queries, keys and values (B,S,D+D+E)."""
    heads = node.int_attr("num_heads")
    width = shape_of(projected)[2]
    sizes = node.int_list("qkv_hidden_sizes") or [width // 3] * 3
    if heads < 1 or len(sizes) != 3 or sum(sizes) != width or sizes[0] != sizes[1]:
        raise Unsupported(f"qkv_hidden_sizes {sizes} do not fit {width} features, {heads} heads")
    ends = np.cumsum([0, *sizes])
    q, k, v = (
        heads_first(node, node.slice(projected, [2], [int(a)], [int(b)]), heads)
        for a, b in pairwise(ends)
    )
    k, v, before = _with_past(node, k, v, past)
    result = attend(node, q, k, v, mask, bias, before)
    return (result, _stacked(node, k, v)) if node.wants(1) else (result,)


def attention(node: NodeContext) -> tuple[Expr, ...]:
    """Attention: projection by merged weights, then self-attention."""
    _refuse(node, do_rotary=0, past_present_share_buffer=0, rotary_embedding_dim=0)
    if node.has(6):
        raise Unsupported("a shared buffer for past and present is not supported")
    projected = matrix_product(node, node.input(0), node.input(1))
    if node.has(2):
        projected = node.emit(op.add(projected, node.input(2)))
    return _self_attention(node, projected, 3, 4, 5)


def quantized_attention(node: NodeContext) -> tuple[Expr, ...]:
    """QAttention: Attention whose projection is a product of integers."""
    _refuse(node, do_rotary=0, past_present_share_buffer=0)
    a, b = node.input(0), node.input(1)
    scales = (scale_of(node, 3, -1, (1,)), scale_of(node, 4, -1, shape_of(b)))
    projected = scaled_product(node, a, b, scales, (6, 7), 2)
    return _self_attention(node, projected, 5, 8, None)


def _biases(node: NodeContext, index: int, sizes: list[int]) -> list[Expr | None]:
    """The parts of one bias vector for queries, keys and values."""
    if not node.has(index):
        return [None] * len(sizes)
    ends = np.cumsum([0, *sizes])
    if shape_of(node.input(index)) != (int(ends[-1]),):
        raise Unsupported(f"a bias of shape {shape_of(node.input(index))} for {sizes} features")
    array = node.array(index)
    parts: list[Expr | None] = []
    for begin, end in pairwise(ends):
        if array is not None:
            parts.append(constant(array[begin:end]))
        else:
            parts.append(node.slice(node.input(index), [0], [int(begin)], [int(end)]))
    return parts


def _packed(node: NodeContext, x: Expr, count: int) -> list[Expr]:
    """(B,S,N,count,H) as `count` tensors (B,N,S,H)."""
    batch, length, heads, parts, size = shape_of(x)
    if parts != count:
        raise Unsupported(f"packed projections of shape {shape_of(x)} are not supported")
    found = []
    for i in range(count):
        part = node.slice(x, [3], [i], [i + 1])
        part = node.reshape(part, (batch, length, heads, size))
        found.append(node.transpose(part, (0, 2, 1, 3)))
    return found


def _projections(node: NodeContext, heads: int, bias: int) -> tuple[Expr, Expr, Expr]:
    """Queries, keys and values (B,N,S,H) from the forms that inputs 0 to 2 may have."""
    query = node.input(0)
    rank = len(shape_of(query))
    if rank == 5:
        if node.has(1) or node.has(2) or node.has(bias):
            raise Unsupported("packed QKV beside keys, values or a bias")
        q, k, v = _packed(node, query, 3)
        return q, k, v
    key = node.input(1)
    packed = len(shape_of(key)) == 5
    values = None if packed else node.input(2)
    hidden = shape_of(query)[2]
    if packed:
        _, _, n, _, size = shape_of(key)
        sizes = [hidden, n * size, n * size]
    elif len(shape_of(key)) == 4:
        sizes = [hidden, hidden, shape_of(values)[1] * shape_of(values)[3]]
    else:
        sizes = [hidden, shape_of(key)[2], shape_of(values)[2]]
    biases = _biases(node, bias, sizes)
    if biases[0] is not None:
        query = node.emit(op.add(query, biases[0]))
    q = heads_first(node, query, heads)
    if packed:
        if node.has(bias):
            raise Unsupported("packed KV beside a bias")
        k, v = _packed(node, key, 2)
        return q, k, v
    if len(shape_of(key)) == 4:  # projected before, as in cross attention: no bias belongs to them
        return q, key, values
    parts = []
    for value, shift in ((key, biases[1]), (values, biases[2])):
        shifted = value if shift is None else node.emit(op.add(value, shift))
        parts.append(heads_first(node, shifted, heads))
    return q, parts[0], parts[1]


def multi_head_attention(node: NodeContext) -> tuple[Expr, ...]:
    """MultiHeadAttention: projected queries, keys and values in any of their forms."""
    if node.has(8) or node.has(9) or node.wants(3):
        raise Unsupported("shared buffers, beams and the output of scores are not supported")
    heads = node.int_attr("num_heads")
    if heads < 1:
        raise Unsupported(f"num_heads={heads}")
    q, k, v = _projections(node, heads, 3)
    before = 0
    if node.has(6) != node.has(7):
        raise Unsupported("past keys and past values go together")
    if node.has(6):
        before = shape_of(node.input(6))[2]
        k = node.emit(op.concat([node.input(6), k], 2), 1)
        v = node.emit(op.concat([node.input(7), v], 2), 2)
    return attend(node, q, k, v, 4, 5, before), k, v


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("com.microsoft", "Attention"): attention,
    ("com.microsoft", "MultiHeadAttention"): multi_head_attention,
    ("com.microsoft", "QAttention"): quantized_attention,
}
