"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    normal_axis,
    shape_of,
)

op = relax.op


def batch_norm(node: NodeContext) -> Expr | tuple[Expr, ...]:
    """BatchNormalization; at inference a multiplication and an addition per channel."""
    momentum = node.float_attr("momentum", 0.9)
    training = node.flag_attr("training_mode")
    if node.opset < 14:
        # More outputs than one say that the model trains.
        training = any(node.wants(i) for i in range(1, node.outputs))
    x, epsilon = node.input(0), node.float_attr("epsilon", 1e-5)
    ones = [1] * (len(shape_of(x)) - 2)
    shape = (1, shape_of(x)[1], *ones)
    if node.int_attr("spatial", 1) != 1:  # before operator set 9: each pixel by itself
        if training:
            raise Unsupported("training with spatial=0 is not supported")
        shape = (1, *shape_of(x)[1:])
    if training:
        return _batch_norm_training(node, x, shape, epsilon, momentum)
    arrays = [node.array(i) for i in range(1, 5)]
    if all(array is not None for array in arrays):
        gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays)
        factor = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * factor
        dtype = dtype_of(x)
        scaled = node.emit(op.multiply(x, constant(factor.reshape(shape), dtype)))
        return node.emit(op.add(scaled, constant(shift.reshape(shape), dtype)))
    # Statistics may be of another type than x.
    given = [node.cast(node.input(i), dtype_of(x)) for i in range(1, 5)]
    return _normalised(node, x, shape, given, epsilon)


def _normalised(
    node: NodeContext, x: Expr, shape: tuple[int, ...], parameters: list[Expr], epsilon: float
) -> Expr:
    """(x − mean)·gamma/√(variance + epsilon) + beta; parameters in ONNX's order."""
    own = [node.cast(node.reshape(value, shape), dtype_of(x)) for value in parameters]
    gamma, beta, mean, variance = own
    spread = node.emit(op.sqrt(node.emit(op.add(variance, node.scalar(epsilon, x)))))
    centred = node.emit(op.subtract(x, mean))
    factor = node.emit(op.divide(gamma, spread))
    return node.emit(op.add(node.emit(op.multiply(centred, factor)), beta))


def _batch_norm_training(
    node: NodeContext, x: Expr, shape: tuple[int, ...], epsilon: float, momentum: float
) -> tuple[Expr, ...]:
    """By the statistics of the batch; then the running mean and variance, and the batch's own."""
    axes = [0, *range(2, len(shape))]
    wide = node.cast(x, "float32") if dtype_of(x) == "float16" else x
    mean = node.emit(op.mean(wide, axes, True))
    centred = node.emit(op.subtract(wide, mean))
    variance = node.emit(op.mean(node.emit(op.multiply(centred, centred)), axes, True))
    parameters = [node.cast(node.input(i), dtype_of(wide)) for i in (1, 2)]
    result = _normalised(node, wide, shape, [*parameters, mean, variance], epsilon)
    statistics = [node.reshape(value, (shape[1],)) for value in (mean, variance)]
    running = []
    for index, current in zip((3, 4), statistics, strict=True):
        before = node.input(index)
        old = node.cast(before, dtype_of(current))
        kept = node.emit(op.multiply(old, node.scalar(momentum, current)))
        fresh = node.emit(op.multiply(current, node.scalar(1 - momentum, current)))
        running.append(node.cast(node.emit(op.add(kept, fresh)), dtype_of(before)))
    return (node.cast(result, dtype_of(x)), *running, *statistics)


def _moments(
    node: NodeContext, x: Expr, axes: list[int], epsilon: float
) -> tuple[Expr, Expr, Expr]:
    """x − mean, mean, and 1/√(variance + epsilon), the last two with axes kept."""
    mean = node.emit(op.mean(x, axes, True))
    centred = node.emit(op.subtract(x, mean))
    variance = node.emit(op.mean(node.emit(op.multiply(centred, centred)), axes, True))
    spread = node.emit(op.sqrt(node.emit(op.add(variance, node.scalar(epsilon, x)))))
    return centred, mean, node.emit(op.divide(node.scalar(1, x), spread))


def _affine(node: NodeContext, x: Expr, shape: tuple[int, ...], gamma: int, beta: int) -> Expr:
    """x·gamma + beta, both inputs of the node reshaped to `shape`; either may be omitted."""
    for index, function in ((gamma, op.multiply), (beta, op.add)):
        if not node.has(index):
            continue
        array = node.array(index)
        operand = (
            constant(array.reshape(shape))
            if array is not None
            else node.reshape(node.input(index), shape)
        )
        x = node.emit(function(x, operand))
    return x


def layer_norm(node: NodeContext) -> tuple[Expr, ...]:
    """LayerNormalization over the trailing axes; mean and inverse deviation where asked for."""
    x = node.input(0)
    shape = shape_of(x)
    axis = normal_axis(node.int_attr("axis", -1), len(shape))
    epsilon, stash = node.float_attr("epsilon", 1e-5), node.int_attr("stash_type", 1)
    if stash != 1:
        raise Unsupported(f"stash_type={stash} is not supported")
    axes = list(range(axis, len(shape)))
    gamma = _spread(node, 1, shape[axis:], 1.0, dtype_of(x))
    beta = _spread(node, 2, shape[axis:], 0.0, dtype_of(x))
    result = node.emit(op.nn.layer_norm(x, gamma, beta, axes, epsilon))
    if not (node.wants(1) or node.wants(2)):
        return (result,)
    _, mean, inverse = _moments(node, node.cast(x, "float32"), axes, epsilon)
    return (result, mean, inverse)


def _spread(
    node: NodeContext, index: int, shape: tuple[int, ...], default: float, dtype: str
) -> Expr:
    """Scale or bias with exactly the shape of the normalised axes."""
    if not node.has(index):
        return constant(np.full(shape, default), dtype)
    array = node.array(index)
    if array is not None:
        return constant(np.broadcast_to(array, shape))
    value = node.input(index)
    if shape_of(value) == shape:
        return value
    return node.emit(op.broadcast_to(value, shape))


def rms_norm(node: NodeContext) -> Expr:
    """RMSNormalization over the trailing axes."""
    x = node.input(0)
    shape = shape_of(x)
    axis = normal_axis(node.int_attr("axis", -1), len(shape))
    epsilon, stash = node.float_attr("epsilon", 1e-5), node.int_attr("stash_type", 1)
    if stash != 1:
        raise Unsupported(f"stash_type={stash} is not supported")
    if any(node.wants(i) for i in range(1, node.outputs)):
        raise Unsupported("only the first output is supported")
    gamma = _spread(node, 1, shape[axis:], 1.0, dtype_of(x))
    # Relax cannot lower a norm over all axes: there must be one in front.
    front = node.reshape(x, (1, *shape)) if axis == 0 else x
    axes = list(range(axis - len(shape), 0))
    return node.reshape(node.emit(op.nn.rms_norm(front, gamma, axes, epsilon)), shape)


def instance_norm(node: NodeContext) -> Expr:
    """Normalise each channel of each image over its spatial axes."""
    x = node.input(0)
    shape = shape_of(x)
    axes = list(range(2, len(shape)))
    centred, _, inverse = _moments(node, x, axes, node.float_attr("epsilon", 1e-5))
    normal = node.emit(op.multiply(centred, inverse))
    return _affine(node, normal, (1, shape[1], *[1] * len(axes)), 1, 2)


def group_norm(node: NodeContext) -> Expr:
    """Normalise groups of channels; scale and bias per group before operator set 21, then per
    channel."""
    x = node.input(0)
    shape = shape_of(x)
    groups, epsilon = node.int_attr("num_groups"), node.float_attr("epsilon", 1e-5)
    if node.int_attr("stash_type", 1) != 1:
        raise Unsupported("only stash_type=1 is supported")
    if groups < 1 or shape[1] % groups:
        raise Unsupported(f"{shape[1]} channels cannot form {groups} groups")
    grouped = node.reshape(x, (shape[0], groups, shape[1] // groups, *shape[2:]))
    axes = list(range(2, len(shape) + 1))
    centred, _, inverse = _moments(node, grouped, axes, epsilon)
    normal = node.emit(op.multiply(centred, inverse))
    if node.opset < 21:
        normal = _affine(node, normal, (1, groups, *[1] * len(axes)), 1, 2)
        return node.reshape(normal, shape)
    channels = (1, shape[1], *[1] * (len(shape) - 2))
    return _affine(node, node.reshape(normal, shape), channels, 1, 2)


def lp_normalization(node: NodeContext) -> Expr:
    """x divided by its L1 or L2 norm along an axis; 0 where the norm is 0."""
    x, p = node.input(0), node.int_attr("p", 2)
    axis = normal_axis(node.int_attr("axis", -1), len(shape_of(x)))
    if p not in (1, 2):
        raise Unsupported(f"p={p} is not supported")
    powers = node.emit(op.abs(x) if p == 1 else op.multiply(x, x))
    norm = node.emit(op.sum(powers, [axis], True))
    if p == 2:
        norm = node.emit(op.sqrt(norm))
    zero = node.emit(op.equal(norm, node.scalar(0, x)))
    return node.emit(op.divide(x, node.emit(op.where(zero, node.scalar(1, x), norm))))


def mean_variance(node: NodeContext) -> Expr:
    """(x − mean) / deviation over the given axes."""
    x = node.input(0)
    axes = node.int_list("axes")
    axes = [normal_axis(a, len(shape_of(x))) for a in ([0, 2, 3] if axes is None else axes)]
    mean = node.emit(op.mean(x, axes, True))
    centred = node.emit(op.subtract(x, mean))
    variance = node.emit(op.mean(node.emit(op.multiply(centred, centred)), axes, True))
    deviation = node.emit(op.add(node.emit(op.sqrt(variance)), node.scalar(1e-9, x)))
    return node.emit(op.divide(centred, deviation))


def local_response(node: NodeContext) -> Expr:
    """LRN: x / (bias + alpha·mean of squares in a window of channels)^beta."""
    x = node.input(0)
    shape = shape_of(x)
    size = node.int_attr("size")
    if size < 1:
        raise Unsupported("size must be positive")
    alpha, beta = node.float_attr("alpha", 1e-4), node.float_attr("beta", 0.75)
    plane = (shape[0], 1, shape[1], int(np.prod(shape[2:], dtype=np.int64)))
    squares = node.reshape(node.emit(op.multiply(x, x)), plane)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    average = node.emit(
        op.nn.avg_pool2d(
            squares, (size, 1), (1, 1), (before, 0, after, 0), (1, 1), count_include_pad=True
        )
    )
    average = node.reshape(average, shape)
    base = node.emit(op.multiply(average, node.scalar(alpha, x)))
    base = node.emit(op.add(base, node.scalar(node.float_attr("bias", 1.0), x)))
    return node.emit(op.divide(x, node.emit(op.power(base, node.scalar(beta, x)))))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "BatchNormalization"): batch_norm,
    ("", "LayerNormalization"): layer_norm,
    ("", "RMSNormalization"): rms_norm,
    ("", "InstanceNormalization"): instance_norm,
    ("", "GroupNormalization"): group_norm,
    ("", "LpNormalization"): lp_normalization,
    ("", "MeanVarianceNormalization"): mean_variance,
    ("", "LRN"): local_response,
}
