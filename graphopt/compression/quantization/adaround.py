"""AdaRound: each weight is rounded up or down by what that does to the layer's output.

M. Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020. Their
soft rounding and its regulariser, with the expected error of the layer's output in closed form
(see gram.py) in place of samples of it.
"""

from __future__ import annotations

import numpy as np

from graphopt.compression.quantization.scheme import Array, Format

_STEPS = 400
_RATE = 0.02
_LOW, _HIGH = -0.1, 1.1
"""The sigmoid is stretched to these, and cut to [0, 1]."""
_WARM = 0.2
"""Share of the steps without regulariser, which then pushes towards 0 or 1."""
_POWERS = (20.0, 2.0)


def adaround(weight: Array, gram: Array, scale: Array, zero: Array, form: Format) -> Array:
    """Integers for one matrix of weights; arguments as for gptq().

    Rounding to nearest is kept in rows where the search ends no better.
    """
    weight = weight.astype(np.float32)
    scale = np.broadcast_to(scale, weight.shape).astype(np.float32)
    zero = np.broadcast_to(zero, weight.shape).astype(np.float32)
    exact = weight / scale + zero
    floor = np.floor(exact)
    gram = gram.astype(np.float32)
    size = float(np.mean(np.diag(gram))) or 1.0
    curvature = gram / size
    rest = np.clip((exact - floor - _LOW) / (_HIGH - _LOW), 1e-4, 1 - 1e-4)
    soft = np.log(rest / (1 - rest))
    mean, square = np.zeros_like(soft), np.zeros_like(soft)
    for step in range(1, _STEPS + 1):
        sigmoid = 1 / (1 + np.exp(-soft))
        stretched = sigmoid * (_HIGH - _LOW) + _LOW
        up = np.clip(stretched, 0, 1)
        steps = np.clip(floor + up, form.low, form.high)
        slope = 2 * ((steps - exact) * scale @ curvature) * scale / float(np.mean(scale)) ** 2
        slope += _regulariser(up, step)
        inside = (stretched > 0) & (stretched < 1)
        grad = slope * inside * sigmoid * (1 - sigmoid) * (_HIGH - _LOW)
        mean += 0.1 * (grad - mean)
        square += 0.01 * (grad**2 - square)
        soft -= _RATE * 10 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    nearest = np.clip(np.rint(exact), form.low, form.high)
    found = np.clip(floor + (soft > 0), form.low, form.high)
    better = _error(found, exact, scale, gram) < _error(nearest, exact, scale, gram)
    return np.asarray(np.where(better[:, None], found, nearest), form.dtype)


def _regulariser(up: Array, step: int) -> Array:
    """The slope of λ·Σ (1 − |2h − 1|^β), with β falling."""
    begun = (step / _STEPS - _WARM) / (1 - _WARM)
    if begun <= 0:
        return np.zeros_like(up)
    power = _POWERS[1] + (_POWERS[0] - _POWERS[1]) * 0.5 * (1 + np.cos(np.pi * begun))
    centred = 2 * up - 1
    slope: Array = -2 * power * np.sign(centred) * np.abs(centred) ** (power - 1)
    return np.asarray(slope * (0.1 * begun), np.float32)


def _error(steps: Array, exact: Array, scale: Array, gram: Array) -> Array:
    """Of each row's output, expected."""
    wrong = (steps - exact) * scale
    found: Array = np.sum((wrong @ gram) * wrong, axis=1)
    return found
