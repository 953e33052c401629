"""Signal processing: Fourier transforms of axes and frames, windows, the mel filter bank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.converters.fourier import Rows, Transform, half_to_real
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    normal_axis,
    numpy_dtype,
    shape_of,
)
from graphopt.frontend.model import Array

op = relax.op

_MAX_SHIFTS = 16
"""Frames are assembled from this many shifted copies of the signal at most, else gathered."""


def dft(node: NodeContext) -> Expr:
    """DFT along one axis of a tensor whose last axis holds real (and imaginary) parts."""
    x = node.input(0)
    shape = shape_of(x)
    parts = shape[-1]
    if len(shape) < 2 or parts not in (1, 2):
        raise Unsupported(f"the last axis has {parts} elements, not 1 (real) or 2 (complex)")
    inverse, onesided = node.flag_attr("inverse"), node.flag_attr("onesided")
    if node.opset >= 20:
        axis = node.ints(2, "the axis")[0] if node.has(2) else -2
    else:
        axis = node.int_attr("axis", 1)
    axis = normal_axis(axis, len(shape))
    if axis == len(shape) - 1:
        raise Unsupported("the last axis holds real and imaginary parts, not a signal")
    if node.has(1):
        n = node.ints(1, "dft_length")[0]
    else:
        n = 2 * (shape[axis] - 1) if inverse and onesided else shape[axis]
    if n < 1:
        raise Unsupported(f"a transform of length {n}")
    if onesided and not inverse and parts == 2:
        raise Unsupported("onesided=1 needs a real signal")
    rank = len(shape)
    order = [a for a in range(rank) if a not in (axis, rank - 1)] + [axis]
    front = [shape[a] for a in order[:-1]]
    rows = _rows(node, x, [*order, rank - 1], (math.prod(front), shape[axis]))
    kept = n // 2 + 1 if onesided else n
    rows = _resized(node, rows, kept if inverse else n)
    if inverse and onesided:
        real = half_to_real(node, rows, n)
        result = node.reshape(real, (*front, n, 1))
    else:
        sign, scale = (1, 1.0 / n) if inverse else (-1, 1.0)
        spectrum = Transform(n, sign, kept, scale).apply(node, rows)
        result = node.reshape(_interleaved(node, spectrum), (*front, kept, 2))
    result = node.cast(result, dtype_of(x))
    back = [*order, rank - 1]
    return node.transpose(result, [back.index(a) for a in range(rank)])


def stft(node: NodeContext) -> Expr:
    """Transforms of windowed frames of a signal (B, N, 1 or 2) → (B, frames, bins, 2)."""
    x = node.input(0)
    shape = shape_of(x)
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 2):
        raise Unsupported(f"a signal of shape {shape_of(x)}")
    batch, length, parts = shape
    onesided = node.flag_attr("onesided", 1)
    step = node.ints(1, "frame_step")[0]
    size = length
    if node.has(3):
        size = node.ints(3, "frame_length")[0]
    elif node.has(2):
        size = shape_of(node.input(2))[0]
    if node.has(2) and shape_of(node.input(2)) != (size,):
        raise Unsupported(f"a window of {shape_of(node.input(2))} for frames of {size}")
    if not 0 < size <= length or step < 1:
        raise Unsupported(f"frames of {size} every {step} in a signal of {length}")
    if onesided and parts == 2:
        raise Unsupported("onesided=1 needs a real signal")
    frames = (length - size) // step + 1
    signal = _rows(node, node.reshape(x, shape), [0, 1, 2], (batch, length))
    framed = Rows(
        _frames(node, signal.re, frames, size, step),
        None if signal.im is None else _frames(node, signal.im, frames, size, step),
    )
    window = node.array(2)
    if node.has(2) and window is None:
        factor = node.cast(node.input(2), dtype_of(framed.re))
        re = node.emit(op.multiply(framed.re, factor))
        im = None if framed.im is None else node.emit(op.multiply(framed.im, factor))
        framed = Rows(re, im)
    kept = size // 2 + 1 if onesided else size
    weights = None if window is None else window.astype(np.float64)
    spectrum = Transform(size, -1, kept, window=weights).apply(node, framed)
    result = node.reshape(_interleaved(node, spectrum), (batch, frames, kept, 2))
    return node.cast(result, dtype_of(x))


def _rows(node: NodeContext, x: Expr, order: Sequence[int], shape: tuple[int, int]) -> Rows:
    """The real and imaginary parts of x, its axes in `order`, as matrices of `shape`."""
    if dtype_of(x) not in ("float32", "float64"):
        x = node.cast(x, "float32")
    x = node.transpose(x, order)
    last = len(order) - 1
    if shape_of(x)[last] == 1:
        return Rows(node.reshape(x, shape), None)
    re, im = (node.reshape(node.slice(x, [last], [i], [i + 1]), shape) for i in (0, 1))
    return Rows(re, im)


def _resized(node: NodeContext, x: Rows, length: int) -> Rows:
    """Rows of `length`: cut, or filled with zeros."""
    have = x.shape[1]

    def resized(value: Expr) -> Expr:
        if have >= length:
            return node.slice(value, [1], [0], [length])
        return node.emit(op.nn.pad(value, (0, 0, 0, length - have)))

    return Rows(resized(x.re), None if x.im is None else resized(x.im))


def _interleaved(node: NodeContext, x: Rows) -> Expr:
    """(R, n, 2) from real and imaginary parts."""
    assert x.im is not None
    shape = (*x.shape, 1)
    return node.emit(op.concat([node.reshape(x.re, shape), node.reshape(x.im, shape)], 2))


def _frames(node: NodeContext, x: Expr, frames: int, size: int, step: int) -> Expr:
    """(B · frames, size): the overlapping frames of the rows of x (B, N)."""
    batch = shape_of(x)[0]
    if frames == 1:
        return node.reshape(node.slice(x, [1], [0], [size]), (batch, size))
    unit = math.gcd(size, step)
    shifts, stride = size // unit, step // unit
    if shifts > _MAX_SHIFTS:
        index = np.arange(frames)[:, None] * step + np.arange(size)[None, :]
        taken = node.emit(op.take(x, constant(index, "int64"), 1, mode="fast"))
        return node.reshape(taken, (batch * frames, size))
    # A frame is `shifts` blocks of `unit` samples; block i of all frames is one strided slice.
    blocks = (frames - 1) * stride + shifts
    used = node.slice(x, [1], [0], [blocks * unit])
    grid = node.reshape(used, (batch, blocks, unit))
    reach = (frames - 1) * stride + 1
    parts = [node.slice(grid, [1], [i], [i + reach], [stride]) for i in range(shifts)]
    joined = parts[0] if shifts == 1 else node.emit(op.concat(parts, 2))
    return node.reshape(joined, (batch * frames, size))


def _window(*weights: float) -> Callable[[NodeContext], Expr]:
    """Converter of a window that is a sum of cosines: Σ weight[i] · cos(2π·i·n / N)."""

    def convert(node: NodeContext) -> Expr:
        size = node.ints(0, "the size")[0]
        if size < 0:
            raise Unsupported(f"a window of size {size}")
        dtype = numpy_dtype(node.int_attr("output_datatype", 1))
        period = size if node.flag_attr("periodic", 1) else size - 1
        angle = 2 * np.pi / max(period, 1) * np.arange(size)
        terms = [weight * np.cos(i * angle) for i, weight in enumerate(weights)]
        return constant(np.sum(terms, axis=0), dtype)

    return convert


def mel_weight_matrix(node: NodeContext) -> Expr:
    """Triangular filters (spectrogram bins, mel bands), equally wide on the mel scale."""
    bands, length, rate = (
        node.ints(i, what)[0] for i, what in enumerate(("num_mel_bins", "dft_length", "the rate"))
    )
    low, high = (float(node.known(i, "an edge of the mel scale").reshape(-1)[0]) for i in (3, 4))
    dtype = numpy_dtype(node.int_attr("output_datatype", 1))
    return constant(_mel_filters(bands, length, rate, low, high), dtype)


def _mel_filters(bands: int, length: int, rate: int, low: float, high: float) -> Array:
    bins = length // 2 + 1
    edges = [2595 * math.log10(1 + hertz / 700) for hertz in (low, high)]
    mels = edges[0] + (edges[1] - edges[0]) / (bands + 2) * np.arange(bands + 2)
    hertz = 700 * (10 ** (mels / 2595) - 1)
    places = np.floor((length + 1) * hertz / rate).astype(int)
    if bands < 1 or rate < 1 or places.min() < 0 or places.max() >= bins:
        raise Unsupported("the edges of the mel scale lie outside of the spectrum")
    result = np.zeros((bins, bands))
    for band, (left, centre, right) in enumerate(
        zip(places[:-2], places[1:-1], places[2:], strict=True)
    ):
        if left == centre:
            result[centre, band] = 1
        rising = np.arange(left, centre + 1)
        if len(rising) > 1:
            result[rising, band] = (rising - left) / (centre - left)
        falling = np.arange(centre, right)
        if len(falling):
            result[falling, band] = (right - falling) / (right - centre)
    return result


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "DFT"): dft,
    ("", "STFT"): stft,
    ("", "HannWindow"): _window(0.5, -0.5),
    ("", "HammingWindow"): _window(25 / 46, 25 / 46 - 1),
    ("", "BlackmanWindow"): _window(0.42, -0.5, 0.08),
    ("", "MelWeightMatrix"): mel_weight_matrix,
}
