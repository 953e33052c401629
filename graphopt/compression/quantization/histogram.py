"""Histograms of one sign whose range doubles when a larger value comes: bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.compression.quantization.scheme import Array

BINS = 4096
"""Even, so that neighbours merge in pairs. Half of them are in use at least."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of the magnitudes in (0, limit), in bins of equal width.

    The limit is the least power of two above all values: so the result does not depend on the
    order in which values came.
    """

    limit: float
    counts: Array

    @property
    def width(self) -> float:
        """Of one bin."""
        return self.limit / BINS

    @property
    def total(self) -> int:
        """How many values it holds."""
        return int(self.counts.sum())

    def to_list(self) -> list[int]:
        """The counts up to the last bin that is not empty."""
        used = np.flatnonzero(self.counts)
        return [int(count) for count in self.counts[: used[-1] + 1 if used.size else 0]]

    @staticmethod
    def from_list(limit: float, counts: Sequence[int]) -> Histogram:
        """The inverse of to_list()."""
        full = np.zeros(BINS, np.int64)
        full[: len(counts)] = counts
        return Histogram(limit, full)


class Accumulator:
    """Fills a Histogram, batch by batch."""

    def __init__(self) -> None:
        self._exponent: int | None = None
        self._counts = np.zeros(BINS, np.int64)

    def add(self, magnitudes: Array) -> None:
        """Count values above 0, float32 or float64 of any shape."""
        if magnitudes.size == 0:
            return
        exponent = math.frexp(float(magnitudes.max()))[1]
        if self._exponent is None:
            self._exponent = exponent
        while self._exponent < exponent:
            pairs = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[: BINS // 2] = pairs
            self._counts[BINS // 2 :] = 0
            self._exponent += 1
        # Powers of two: the product is exact, and bins that merge hold what they would have held.
        scaled = np.ldexp(magnitudes.reshape(-1), int(math.log2(BINS)) - self._exponent)
        places = np.minimum(scaled.astype(np.int32), BINS - 1)
        self._counts += np.bincount(places, minlength=BINS)

    def result(self) -> Histogram:
        """What was counted so far."""
        limit = 0.0 if self._exponent is None else math.ldexp(1.0, self._exponent)
        return Histogram(limit, self._counts.copy())
