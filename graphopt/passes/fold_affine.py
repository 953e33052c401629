"""Folds per-channel scales and shifts, batch normalisation among them, into weights and biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.base import Outcome
from graphopt.passes.rewrite import Rule, View, apply_rules
from graphopt.passes.values import Array, Expr, constant, dtype_of, ints, op_name, shape_of

CONVOLUTIONS = ("nn.conv1d", "nn.conv2d", "nn.conv3d")
TRANSPOSED = ("nn.conv1d_transpose", "nn.conv2d_transpose")
ANCHORS = (*CONVOLUTIONS, *TRANSPOSED, "matmul")


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation with constant statistics, as x · scale + shift."""

    call: Expr
    params: tuple[Array, ...]  # gamma, beta, mean, variance


def _batch_norm(view: View, _var: Expr, value: Expr) -> BatchNorm | None:
    call = view.call(value.tuple_value, "nn.batch_norm")
    if call is None or value.index != 0:
        return None
    params = [view.constant(arg) for arg in call.args[1:]]
    known = tuple(p for p in params if p is not None)
    return BatchNorm(call, known)


def _inference(_view: View, found: BatchNorm) -> str | None:
    if len(found.params) != 4:
        return "its parameters are not constant"
    return "it is in training mode" if found.call.attrs.training else None


def _decompose(_view: View, found: BatchNorm) -> Expr:
    attrs, x = found.call.attrs, found.call.args[0]
    gamma, beta, mean, variance = (p.astype(np.float64) for p in found.params)
    scale = 1 / np.sqrt(variance + float(attrs.epsilon))
    if attrs.scale:
        scale = scale * gamma
    shift = -mean * scale
    if attrs.center:
        shift = shift + beta
    dims = [1] * len(shape_of(x))
    dims[int(attrs.axis)] = -1
    dtype = dtype_of(x)
    scaled = relax.op.multiply(x, constant(scale.reshape(dims), dtype))
    return relax.op.add(scaled, constant(shift.reshape(dims), dtype))


@dataclass(frozen=True)
class Scaled:
    """(anchor(x, weight) [+ bias]) · factor, or anchor(x · factor, weight)."""

    anchor: Expr
    weight: Expr
    bias: Array | None
    factor: Array
    links: tuple[Expr, ...]  # what must have no other user
    rank: int


def _anchor(view: View, expr: Expr) -> Expr | None:
    call = view.call(expr, *ANCHORS)
    return call if call is not None and view.is_constant(call.args[1]) else None


def _scale_after(view: View, _var: Expr, value: Expr) -> Scaled | None:
    factor = view.constant(value.args[1])
    if factor is None or shape_of(value) != shape_of(value.args[0]):
        return None
    links, bias = [value.args[0]], None
    anchor = _anchor(view, links[0])
    if anchor is None:
        add = view.call(links[0], "add")
        bias = None if add is None else view.constant(add.args[1])
        if add is None or bias is None:
            return None
        links.append(add.args[0])
        anchor = _anchor(view, links[1])
    if anchor is None:
        return None
    return Scaled(anchor, anchor.args[1], bias, factor, tuple(links), len(shape_of(value)))


def channel_axis(anchor: Expr) -> int:
    """The channels' axis, from the end, of an anchor's input and output."""
    return -1 if op_name(anchor) == "matmul" else 1 - len(shape_of(anchor))


def per_channel(values: Array, axis: int, channels: int) -> Array | None:
    """The vector along the negative `axis` that `values` (broadcast) stands for, or None."""
    if values.size == 1:
        return np.full(channels, values.reshape(()), values.dtype)
    if values.size != channels or values.ndim < -axis or values.shape[axis] != channels:
        return None
    return values.reshape(channels)


def _layout(anchor: Expr) -> str | None:
    if op_name(anchor) == "matmul":
        if len(shape_of(anchor.args[1])) != 2:
            return "the weight is not a matrix"
        return None
    attrs, spatial = anchor.attrs, "DHW"[5 - len(shape_of(anchor)) :]
    kernel = "IO" if op_name(anchor) in TRANSPOSED else "OI"
    plain = attrs.data_layout == "NC" + spatial and attrs.kernel_layout == kernel + spatial
    return None if plain else "the convolution has another layout than NCHW"


def _check_after(view: View, found: Scaled) -> str | None:
    if not all(view.used_once(link) for link in found.links):
        return "the unscaled result is used elsewhere"
    reason = _layout(found.anchor)
    if reason is not None:
        return reason
    if not np.isfinite(found.factor).all():
        return "the factor is not finite"
    axis = channel_axis(found.anchor)
    if per_channel(found.factor, axis, shape_of(found.anchor)[axis]) is None:
        return "the factor varies along other axes than the channels"
    return None


def _scaled_outputs(anchor: Expr, weight: Array, factor: Array) -> Array:
    """The weight with each output channel scaled, in float64."""
    wide = weight.astype(np.float64)
    if op_name(anchor) == "matmul":
        return wide * factor
    if op_name(anchor) in CONVOLUTIONS:
        return np.asarray(wide * factor.reshape(-1, *[1] * (wide.ndim - 1)))
    groups = int(anchor.attrs.groups)
    split = wide.reshape(groups, -1, *wide.shape[1:])
    scaled = split * factor.reshape(groups, 1, wide.shape[1], *[1] * (wide.ndim - 2))
    return np.asarray(scaled.reshape(wide.shape))


def _scaled_inputs(anchor: Expr, weight: Array, factor: Array) -> Array:
    """The weight with each input channel scaled, in float64."""
    wide = weight.astype(np.float64)
    if op_name(anchor) == "matmul":
        return wide * factor[:, None]
    if op_name(anchor) in TRANSPOSED:
        return np.asarray(wide * factor.reshape(-1, *[1] * (wide.ndim - 1)))
    groups = int(anchor.attrs.groups)
    split = wide.reshape(groups, -1, *wide.shape[1:])
    scaled = split * factor.reshape(groups, 1, wide.shape[1], *[1] * (wide.ndim - 2))
    return np.asarray(scaled.reshape(wide.shape))


def _with_weight(anchor: Expr, x: Expr, weight: Array) -> Expr:
    new = constant(weight, dtype_of(anchor.args[1]))
    return tvm.ir.Call(anchor.op, [x, new], anchor.attrs, list(anchor.ty_args))


def _fold_after(view: View, found: Scaled) -> Expr:
    axis = channel_axis(found.anchor)
    factor = per_channel(found.factor, axis, shape_of(found.anchor)[axis])
    weight = view.constant(found.weight)
    assert factor is not None  # checked
    assert weight is not None  # matched
    factor = factor.astype(np.float64)
    scaled = _scaled_outputs(found.anchor, weight, factor)
    result = _with_weight(found.anchor, found.anchor.args[0], scaled)
    if found.bias is None:
        return result
    bias = found.bias.astype(np.float64) * found.factor.astype(np.float64)
    return relax.op.add(result, constant(bias, found.bias.dtype.name))


def _before(view: View, value: Expr, op: str) -> Scaled | None:
    call = view.call(value.args[0], op)
    if call is None or not view.is_constant(value.args[1]):
        return None
    factor = view.constant(call.args[1])
    if factor is None or shape_of(call.args[0]) != shape_of(call):
        return None
    return Scaled(value, value.args[1], None, factor, (value.args[0],), len(shape_of(call)))


def _scale_before(view: View, _var: Expr, value: Expr) -> Scaled | None:
    return _before(view, value, "multiply")


def _shift_before(view: View, _var: Expr, value: Expr) -> Scaled | None:
    return _before(view, value, "add")


def _check_before(view: View, found: Scaled) -> str | None:
    if not view.used_once(found.links[0]):
        return "the scaled or shifted input is used elsewhere"
    reason = _layout(found.anchor)
    if reason is not None:
        return reason
    if not np.isfinite(found.factor).all():
        return "the constant is not finite"
    axis = channel_axis(found.anchor)
    if per_channel(found.factor, axis, shape_of(found.anchor.args[0])[axis]) is None:
        return "the constant varies along other axes than the channels"
    return None


def _check_shift(view: View, found: Scaled) -> str | None:
    if op_name(found.anchor) in CONVOLUTIONS and any(ints(found.anchor.attrs.padding)):
        return "the padding's zeros would not be shifted"
    return _check_before(view, found)


def _operands(view: View, found: Scaled) -> tuple[Expr, Array, Array]:
    """(the anchor's input without the constant, the weight, the constant per input channel)."""
    axis = channel_axis(found.anchor)
    factor = per_channel(found.factor, axis, shape_of(found.anchor.args[0])[axis])
    weight = view.constant(found.weight)
    source = view.producer(found.links[0])
    assert factor is not None  # checked
    assert weight is not None  # matched
    assert source is not None  # matched
    return source.args[0], weight, factor.astype(np.float64)


def _fold_scale_before(view: View, found: Scaled) -> Expr:
    x, weight, factor = _operands(view, found)
    return _with_weight(found.anchor, x, _scaled_inputs(found.anchor, weight, factor))


def _fold_shift_before(view: View, found: Scaled) -> Expr:
    x, weight, shift = _operands(view, found)
    result = _with_weight(found.anchor, x, weight.astype(np.float64))
    shifted = _scaled_inputs(found.anchor, weight, shift)
    dtype = dtype_of(found.anchor)
    if op_name(found.anchor) == "matmul":
        return relax.op.add(result, constant(shifted.sum(axis=0), dtype))
    bias = shifted.sum(axis=tuple(range(1, shifted.ndim)))
    return relax.op.add(result, constant(bias.reshape(-1, *[1] * (shifted.ndim - 2)), dtype))


@dataclass(frozen=True)
class FoldAffine:
    """Batch normalisation, and scales and shifts around convolutions and products.

    (conv(x, w) + b) · s = conv(x, w · s) + b · s;  conv(x · s, w) = conv(x, w · s);
    conv(x + t, w) = conv(x, w) + Σ w · t, the last only without padding. Weights are scaled in
    float64 and rounded once. What stays is anchor and one add.
    """

    name: str = "fold_affine"

    def run(self, graph: Graph) -> Outcome:
        shiftable = (*CONVOLUTIONS, "matmul")
        rules: tuple[Rule[Any], ...] = (
            Rule("batch norm", ("item",), _batch_norm, _decompose, _inference),
            Rule("scale after", ("multiply",), _scale_after, _fold_after, _check_after),
            Rule("scale before", ANCHORS, _scale_before, _fold_scale_before, _check_before),
            Rule("shift before", shiftable, _shift_before, _fold_shift_before, _check_shift),
        )
        return apply_rules(graph, self.name, rules)
