"""The formulas of linear quantization: scales, zero points, rounding, and what they cost.

Number formats and rounding as in B. Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, with ONNX's details: x / scale in
float32, ties to even, then the zero point, then saturation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MIN_SCALE = 2.0**-60
"""Smaller scales are raised to this: the product of two is still a normal float32."""

_BIAS_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Format:
    """Integers that stand for numbers: (q − zero)·scale.

    Attributes:
        bits: 2 to 8; fewer than 8 use a part of the 8-bit range, unless the model packs them.
        signed: int8 or uint8.
        symmetric: the zero point is fixed (0, or the middle of uint8), and the most negative
            value is not used, so that a range [−a, a] costs as much as it gives.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True

    @property
    def low(self) -> int:
        """The least integer."""
        least = -(2 ** (self.bits - 1)) if self.signed else 0
        return least + 1 if self.symmetric else least

    @property
    def high(self) -> int:
        """The largest integer."""
        return int(2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point of symmetric numbers."""
        return 0 if self.signed else 2 ** (self.bits - 1)

    @property
    def dtype(self) -> str:
        """What holds the integers, one per byte."""
        return "int8" if self.signed else "uint8"


def parameters(low: Any, high: Any, form: Format) -> tuple[Array, Array]:
    """Scale (float32) and zero point (in the format's type) for ranges [low, high].

    The ranges, arrays of one shape, are widened to hold 0, which is represented exactly. Scales
    are finite and at least MIN_SCALE. An empty range, [0, 0], counts as [0, 1].
    """
    low = np.minimum(np.asarray(low, np.float64), 0.0)
    high = np.maximum(np.asarray(high, np.float64), 0.0)
    high = np.where(low == high, 1.0, high)
    if form.symmetric:
        bound = np.maximum(-low, high)
        scale = bound / (form.high - form.middle)
    else:
        scale = (high - low) / (form.high - form.low)
    scale = np.maximum(scale, MIN_SCALE).astype(np.float32)
    if form.symmetric:
        zero = np.full(scale.shape, form.middle)
    else:
        zero = np.clip(np.rint(form.low - low / scale.astype(np.float64)), form.low, form.high)
    return scale, zero.astype(form.dtype)


def quantize(x: Array, scale: Any, zero: Any, form: Format) -> Array:
    """The integers that stand for x, saturated; `scale` and `zero` broadcast to x."""
    with np.errstate(over="ignore", divide="ignore"):
        steps = np.rint(np.asarray(x, np.float32) / np.asarray(scale, np.float32))
    shifted = steps + np.asarray(zero, np.float32)
    integers: Array = np.clip(shifted, form.low, form.high).astype(form.dtype)
    return integers


def dequantize(q: Array, scale: Any, zero: Any) -> Array:
    """The numbers that integers stand for, in float32."""
    difference = q.astype(np.int32) - np.asarray(zero).astype(np.int32)
    product: Array = difference.astype(np.float32) * np.asarray(scale, np.float32)
    return product


def rounded(x: Array, scale: Any, zero: Any, form: Format) -> Array:
    """x as the quantized model sees it, in float32."""
    return dequantize(quantize(x, scale, zero, form), scale, zero)


def representable(scale: Any, zero: Any, form: Format) -> tuple[Array, Array]:
    """The least and the largest number of a format."""
    zero = np.asarray(zero).astype(np.int32)
    scale = np.asarray(scale, np.float64)
    return (form.low - zero) * scale, (form.high - zero) * scale


def quantize_bias(bias: Array, scale: Array) -> Array:
    """A bias as int32 in steps of `scale`, which is that of the products it is added to."""
    steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    return np.clip(steps, -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int32)


def widened_for_bias(weight_scale: Array, input_scale: float, bias: Array, dead: Array) -> Array:
    """Weight scales under which every bias fits in int32.

    A channel whose weights are all zero (`dead`) may have any scale: it gets one that gives its
    bias 24 bits.
    """
    size = np.abs(bias.astype(np.float64)) / float(input_scale)
    wanted = np.maximum(weight_scale.astype(np.float64), size / (_BIAS_LIMIT - 1))
    quiet = np.where(size > 0, np.maximum(size / 2.0**24, MIN_SCALE), 1.0)
    return np.where(dead, quiet, wanted).astype(np.float32)


def blocks(x: Array, axis: int, size: int) -> Array:
    """x (…, D, …) as (…, D/size, size, …): the last block is filled with zeros."""
    axis %= x.ndim
    missing = -x.shape[axis] % size
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, missing)
    padded = np.pad(x, padding) if missing else x
    shape = (*x.shape[:axis], padded.shape[axis] // size, size, *x.shape[axis + 1 :])
    return padded.reshape(shape)


def spread(values: Array, axis: int, size: int, extent: int) -> Array:
    """What belongs to each block of `axis`, repeated for each of its `extent` elements."""
    return values.take(np.arange(extent) // size, axis)


def along(values: Array, axis: int, rank: int) -> Array:
    """One value per element of `axis` in a shape that broadcasts to `rank` axes."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def signal_to_noise(reference: Array, other: Array) -> float:
    """10·log10(Σ reference² / Σ (reference − other)²) in dB; infinite where they are equal."""
    wide = reference.astype(np.float64)
    return decibels(float(np.sum(wide**2)), float(np.sum((wide - other.astype(np.float64)) ** 2)))


def decibels(signal: float, noise: float) -> float:
    """A ratio of powers in dB."""
    if noise == 0:
        return float("inf")
    if signal == 0:
        return float("-inf")
    return float(10 * np.log10(signal / noise))
