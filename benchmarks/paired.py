"""Error rates of several models on the same samples, and intervals of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """In points (hundredths): the mean, and the 95 % interval."""

    mean: float
    low: float
    high: float


def error_rate(counts: Sequence[Sequence[tuple[int, int]]]) -> float:
    """Mistakes per decision in points, over seeds (outer) and samples (inner)."""
    wrong, of = _sums(counts)
    return float(100 * wrong.sum() / of.sum())


def difference(
    first: Sequence[Sequence[tuple[int, int]]], second: Sequence[Sequence[tuple[int, int]]]
) -> Difference:
    """Error rate of `first` less that of `second`, in points.

    Each is a list over seeds of (mistakes, decisions) per sample; one of them may have a single
    seed, for a model that does not depend on it. The interval is the percentile bootstrap's (B.
    Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979): samples are drawn with all
    that both models did on them under every seed, so that it is paired, and decisions within one
    sample may depend on each other.
    """
    (a, many), (b, _) = _sums(first), _sums(second)
    per_sample = (a / len(first) - b / len(second)).astype(np.float64)
    sizes = many / len(first)
    rng = np.random.default_rng(0)
    drawn = np.empty(_RESAMPLES)
    for place in range(_RESAMPLES):
        chosen = rng.integers(len(sizes), size=len(sizes))
        drawn[place] = per_sample[chosen].sum() / sizes[chosen].sum()
    low, high = np.percentile(100 * drawn, (2.5, 97.5))
    return Difference(float(100 * per_sample.sum() / sizes.sum()), float(low), float(high))


def _sums(counts: Sequence[Sequence[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Mistakes and decisions of each sample, over the seeds."""
    array = np.asarray(counts, np.int64)
    return array[:, :, 0].sum(axis=0), array[:, :, 1].sum(axis=0)
