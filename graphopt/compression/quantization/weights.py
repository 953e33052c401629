"""Scales of constant weights: per tensor, per output channel or per group of summed weights."""

from __future__ import annotations

import numpy as np

from graphopt.compression.quantization.scheme import (
    Array,
    Format,
    along,
    blocks,
    parameters,
    rounded,
)

_SHRINKS = np.linspace(0.5, 1.0, 26)
"""Shares of the full range that are tried for weights of few bits."""
_WIDE = 7
"""From this many bits on, clipping weights gains nothing that can be measured."""


def weight_parameters(
    weight: Array, form: Format, axis: int | None, depth: int | None = None, group: int = 0
) -> tuple[Array, Array]:
    """Scales and zero points of weights.

    For fewer than 7 bits the range of least squared error is looked for between half the full
    range and all of it.

    Args:
        axis: the output channels, one scale each; None for one scale in all.
        depth: with `group`, the axis whose elements are divided into groups of this size, one
            scale each; the scales then have the weights' shape, but for this axis.

    Returns:
        Arrays of shape (), (channels,), or of the groups.
    """
    if group:
        assert depth is not None
        data, inner = blocks(weight, depth, group), (depth % weight.ndim) + 1
        rest: tuple[int, ...] = (inner,)
    elif axis is None:
        data, rest = weight, tuple(range(weight.ndim))
    else:
        data, rest = weight, tuple(k for k in range(weight.ndim) if k != axis)
    low, high = data.min(axis=rest, keepdims=True), data.max(axis=rest, keepdims=True)
    best_scale, best_zero = parameters(low, high, form)
    if form.bits < _WIDE:
        least = np.full(best_scale.shape, np.inf)
        for share in _SHRINKS:
            scale, zero = parameters(low * share, high * share, form)
            error = (rounded(data, scale, zero, form).astype(np.float64) - data) ** 2
            cost = error.sum(axis=rest, keepdims=True)
            better = cost < least
            least = np.where(better, cost, least)
            best_scale = np.where(better, scale, best_scale)
            best_zero = np.where(better, zero, best_zero)
    return best_scale.squeeze(axis=rest), best_zero.squeeze(axis=rest)


def broadcast_parameters(
    values: Array,
    shape: tuple[int, ...],
    axis: int | None,
    depth: int | None = None,
    group: int = 0,
) -> Array:
    """Scales or zero points in a shape that broadcasts to the weights."""
    if group:
        assert depth is not None
        return values.take(np.arange(shape[depth]) // group, depth)
    return values if axis is None else along(values, axis, len(shape))
