"""Resize along one axis as weighted sums of input positions: antialiasing, and cropped regions."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from graphopt.frontend.model import Array

FILTERS = ("linear", "cubic")


@dataclass(frozen=True)
class AxisResize:
    """One axis: `size` elements become `out`; `scale` is output/input as the model states it.

    coordinate is an ONNX coordinate_transformation_mode; start and end are its region for
    tf_crop_and_resize.
    """

    size: int
    out: int
    scale: float
    coordinate: str
    start: float = 0.0
    end: float = 1.0

    def sources(self) -> Array:
        """Where each output lies in the input: (out,) float64.

        Raises ValueError for an unknown mode.
        """
        x = np.arange(self.out, dtype=np.float64)
        last = self.size - 1
        mode = self.coordinate
        if mode == "tf_crop_and_resize":
            if self.out == 1:
                return np.full(1, 0.5 * (self.start + self.end) * last)
            return self.start * last + x * (self.end - self.start) * last / (self.out - 1)
        if mode == "align_corners":
            return x * last / (self.out - 1) if self.out > 1 else np.zeros(1)
        if mode == "asymmetric":
            return x / self.scale
        if mode == "tf_half_pixel_for_nn":
            return (x + 0.5) / self.scale
        if mode == "pytorch_half_pixel" and self.out == 1:
            return np.zeros(1)
        if mode == "half_pixel_symmetric":
            excess = 1 - self.out / (self.scale * self.size)
            return self.size / 2 * excess + (x + 0.5) / self.scale - 0.5
        if mode in ("half_pixel", "pytorch_half_pixel"):
            return (x + 0.5) / self.scale - 0.5
        raise ValueError(f"coordinate_transformation_mode='{mode}' is unknown")

    def inside(self) -> Array:
        """Outputs whose source lies in the input: (out,) bool."""
        sources = self.sources()
        return np.asarray((sources >= 0) & (sources <= self.size - 1))

    def nearest(self, rounding: str) -> Array:
        """The one position that each output takes: (out,) int64; `rounding` is a nearest_mode."""
        sources = self.sources()
        if rounding == "floor":
            rounded = np.floor(sources)
        elif rounding == "ceil":
            rounded = np.ceil(sources)
        elif rounding == "round_prefer_ceil":
            rounded = np.floor(sources + 0.5)
        else:
            rounded = np.ceil(sources - 0.5)
        return np.asarray(np.clip(rounded, 0, self.size - 1).astype(np.int64))

    def weighted(
        self, method: str, antialias: bool, cubic_a: float, exclude_outside: bool
    ) -> tuple[Array, Array]:
        """Positions int32 and weights float32 of all taps, both (taps, out).

        Antialiasing widens the filter by 1/scale where that shrinks. Taps past the border are
        left out, or read the border's element. Outputs with fewer taps repeat one, weighted 0.
        Source of the cubic filter: Keys, Cubic convolution interpolation, 1981.
        """
        shrink = min(self.scale, 1.0) if antialias else 1.0
        radius = (1 if method == "linear" else 2) / shrink
        rows = []
        for x in self.sources():
            at = np.arange(floor(x - radius) + 1, max(ceil(x + radius), floor(x - radius) + 2))
            weight = _filter(method, (at - x) * shrink, cubic_a)
            if exclude_outside:
                kept = (at >= 0) & (at < self.size)
                at, weight = (at[kept], weight[kept]) if kept.any() else (at, weight)
            total = weight.sum()
            rows.append((np.clip(at, 0, self.size - 1), weight / (total if total else 1.0)))
        taps = max(len(at) for at, _ in rows)
        positions = np.stack([np.pad(at, (0, taps - len(at)), mode="edge") for at, _ in rows], 1)
        weights = np.stack([np.pad(weight, (0, taps - len(weight))) for _, weight in rows], 1)
        return positions.astype(np.int32), weights.astype(np.float32)


def _filter(method: str, distance: Array, a: float) -> Array:
    d = np.abs(distance)
    if method == "linear":
        return np.asarray(np.clip(1 - d, 0, None))
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)))
