"""com.microsoft: normalisation layers fused with what stands in front of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.delegate import apply, optional
from graphopt.frontend.converters.normalization import group_norm, layer_norm, rms_norm
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, shape_of

op = relax.op


def simplified_layer_norm(node: NodeContext) -> Expr:
    """SimplifiedLayerNormalization: RMSNormalization under its old name."""
    return rms_norm(node)


def _summed(node: NodeContext, bias: int) -> Expr:
    if node.wants(1) or node.wants(2):
        raise Unsupported("the mean and deviation outputs are not supported")
    x, skip = node.input(0), node.input(1)
    total = node.emit(op.add(x, skip))
    if shape_of(total) != shape_of(x):
        raise Unsupported(f"skip of shape {shape_of(skip)} makes the result larger")
    return node.emit(op.add(total, node.input(bias)), 3) if node.has(bias) else total


def skip_layer_norm(node: NodeContext) -> tuple[Expr | None, ...]:
    """SkipLayerNormalization: layer norm of input + skip (+ bias); the sum is output 3."""
    total = _summed(node, 4)
    epsilon = {"epsilon": node.float_attr("epsilon", 1e-12)}
    normal = apply(node, layer_norm, [total, optional(node, 2), optional(node, 3)], epsilon)
    return (normal, None, None, total)


def skip_rms_norm(node: NodeContext) -> tuple[Expr | None, ...]:
    """SkipSimplifiedLayerNormalization: RMS norm of input + skip (+ bias); the sum is output 3."""
    total = _summed(node, 3)
    epsilon = {"epsilon": node.float_attr("epsilon", 1e-12)}
    normal = apply(node, rms_norm, [total, optional(node, 2)], epsilon)
    return (normal, None, None, total)


def _grouped(node: NodeContext, x: Expr, last: bool) -> Expr:
    """Group normalisation of x, channels last or in axis 1, with an optional SiLU."""
    rank = len(shape_of(x))
    if last:
        x = node.transpose(x, (0, rank - 1, *range(1, rank - 1)))
    attributes = {
        "num_groups": node.int_attr("groups"),
        "epsilon": node.float_attr("epsilon", 1e-5),
    }
    result = apply(node, group_norm, [x, optional(node, 1), optional(node, 2)], attributes)
    kind = node.int_attr("activation")
    if kind not in (0, 1):
        raise Unsupported(f"activation={kind} is unknown")
    if kind == 1:
        result = node.emit(op.nn.silu(result))
    return node.transpose(result, (0, *range(2, rank), 1)) if last else result


def contrib_group_norm(node: NodeContext) -> Expr:
    """GroupNorm, by default with channels last."""
    return _grouped(node, node.input(0), node.flag_attr("channels_last", 1))


def skip_group_norm(node: NodeContext) -> tuple[Expr, ...]:
    """SkipGroupNorm: group norm of X + skip (+ bias); the sum is output 1."""
    x, last = node.input(0), node.flag_attr("channels_last", 1)
    shape = shape_of(x)

    def per_channel(index: int) -> Expr:
        value = node.input(index)
        dims = shape_of(value)
        if len(dims) == len(shape):
            return value
        lead = (dims[0] if len(dims) == 2 else 1,)
        middle = (1,) * (len(shape) - 2)
        dims = (*lead, *middle, dims[-1]) if last else (*lead, dims[-1], *middle)
        return node.reshape(value, dims)

    total = node.emit(op.add(x, per_channel(3)), 1)
    if node.has(4):
        total = node.emit(op.add(total, per_channel(4)), 1)
    return _grouped(node, total, last), total


def embed_layer_norm(node: NodeContext) -> tuple[Expr | None, ...]:
    """EmbedLayerNormalization: word, position and segment embeddings, summed and normalised."""
    node.ignore("mask_index_type")  # for shape inference
    ids = node.input(0)
    batch, length = shape_of(ids)
    total = node.emit(op.take(node.input(2), ids, 0))
    if node.has(8):
        positions = node.emit(op.take(node.input(3), node.input(8), 0))
    else:
        positions = node.emit(op.take(node.input(3), constant(np.arange(length)), 0))
    total = node.emit(op.add(total, positions))
    if node.has(1):
        segments = node.emit(op.take(node.input(4), node.input(1), 0))
        total = node.emit(op.add(total, segments), 2)
    epsilon = {"epsilon": node.float_attr("epsilon", 1e-12)}
    normal = apply(node, layer_norm, [total, optional(node, 5), optional(node, 6)], epsilon)
    counted: Expr | None = None
    if node.wants(1):
        if node.has(7):
            ones = node.emit(op.equal(node.input(7), node.scalar(1, node.input(7))))
            counted = node.emit(op.sum(node.cast(ones, "int32"), [1], False), 1)
        else:
            counted = constant(np.zeros(batch, np.int32))
    return normal, counted, total


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "SimplifiedLayerNormalization"): simplified_layer_norm,
    ("com.microsoft", "SimplifiedLayerNormalization"): simplified_layer_norm,
    ("com.microsoft", "LayerNormalization"): layer_norm,
    ("com.microsoft", "EmbedLayerNormalization"): embed_layer_norm,
    ("com.microsoft", "GroupNorm"): contrib_group_norm,
    ("com.microsoft", "SkipGroupNorm"): skip_group_norm,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_rms_norm,
}
