"""How far an engine's outputs are from the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def relative_error(actual: Array, reference: Array) -> float:
    """Return max|actual − reference| / max|reference|, over finite values.

    Infinite if shapes differ or if the non-finite values are not the same ones in the same places.
    Where the reference is all zeros, the absolute error is returned.
    """
    if actual.shape != reference.shape:
        return math.inf
    if reference.size == 0:
        return 0.0
    y = actual.astype(np.float64)
    ref = reference.astype(np.float64)
    finite = np.isfinite(ref)
    if not np.array_equal(y[~finite], ref[~finite], equal_nan=True):
        return math.inf
    if not np.isfinite(y[finite]).all():
        return math.inf
    if not finite.any():
        return 0.0
    scale = float(np.abs(ref[finite]).max())
    return float(np.abs(y[finite] - ref[finite]).max()) / (scale or 1.0)


def output_errors(actual: Mapping[str, Array], reference: Mapping[str, Array]) -> dict[str, float]:
    """Return the relative error of each reference output; infinite where `actual` lacks it."""
    return {
        name: relative_error(actual[name], ref) if name in actual else math.inf
        for name, ref in reference.items()
    }
