"""Ranges of activations from their statistics: what is kept, and what is clipped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.histogram import BINS, Histogram
from graphopt.compression.quantization.scheme import Array, Format
from graphopt.compression.quantization.statistics import TensorStatistics

_STEPS = 128
"""Clipping points per side that "mse" and "entropy" try."""

Range = tuple[float, float]


def find_range(found: TensorStatistics, config: QuantizationConfig) -> Range:
    """The range of a tensor that config.method chooses; low ≤ 0 ≤ high."""
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if config.method == "moving-average":
        # Averages of both signs of a tensor that keeps one sign may not cross zero.
        low, high = min(found.moving_low, 0.0), max(found.moving_high, 0.0)
    elif config.method == "percentile":
        low, high = _percentile(found, config.percentile)
    elif config.method == "mse":
        low, high = _least_error(found, config.activation_form)
    elif config.method == "entropy":
        low, high = _least_divergence(found, config.activation_form)
    # Not only what was seen: a sum of bins' widths may miss zero by a rounding.
    low = min(max(low, min(found.low, 0.0)), 0.0)
    return low, max(min(high, max(found.high, 0.0)), 0.0)


def clipped_share(found: TensorStatistics, low: float, high: float) -> float:
    """Share of a tensor's values outside [low, high], as far as the histograms tell."""
    above = _above(found.positive, high) if high < found.high else 0.0
    below = _above(found.negative, -low) if low > found.low else 0.0
    return (above + below) / max(found.count, 1)


def _above(side: Histogram, limit: float) -> float:
    if side.limit == 0 or limit >= side.limit:
        return 0.0
    place = limit / side.width
    whole = min(int(place), BINS - 1)
    part = (whole + 1 - place) * float(side.counts[whole])
    return float(side.counts[whole + 1 :].sum()) + part


def _percentile(found: TensorStatistics, percent: float) -> Range:
    """The least range around 0 that leaves half of the rest outside at either end."""
    allowed = found.count * (1 - percent / 100) / 2
    return -_quantile(found.negative, allowed), _quantile(found.positive, allowed)


def _quantile(side: Histogram, allowed: float) -> float:
    """The magnitude that `allowed` values exceed, interpolated inside its bin."""
    if side.limit == 0 or side.total <= allowed:
        return 0.0
    above = np.cumsum(side.counts[::-1])[::-1]  # of each bin and those above it
    place = int(np.flatnonzero(above > allowed)[-1])
    rest = allowed - (float(above[place + 1]) if place + 1 < BINS else 0.0)
    return side.width * (place + 1 - rest / float(side.counts[place]))


@dataclass(frozen=True)
class _Tail:
    """Sums over the bins from each one up, for clipping at its lower edge."""

    edges: Array
    counts: Array
    sums: Array
    squares: Array

    @staticmethod
    def of(side: Histogram) -> _Tail:
        middles = (np.arange(BINS) + 0.5) * side.width
        counts = side.counts.astype(np.float64)

        def upward(values: Array) -> Array:
            return np.concatenate((np.cumsum(values[::-1])[::-1], [0.0]))

        edges = np.arange(BINS + 1) * side.width
        return _Tail(
            edges, upward(counts), upward(counts * middles), upward(counts * middles * middles)
        )

    def clipping_error(self) -> Array:
        """Σ (x − edge)² over the values above each edge."""
        error: Array = self.squares - 2 * self.edges * self.sums + self.edges**2 * self.counts
        return error


def _candidates(side: Histogram, extreme: float) -> Array:
    """Bins at whose lower edge to clip; the last one clips nothing."""
    if side.limit == 0:
        return np.zeros(1, np.int64)
    last = min(int(np.ceil(extreme / side.width)), BINS)
    return np.unique(np.linspace(last / 16, last, _STEPS).astype(np.int64))


def _least_error(found: TensorStatistics, form: Format) -> Range:
    """The range with the least Σ (x − rounded x)²: what is clipped, plus step²/12 for the rest.

    Values that are exactly 0 cost nothing: 0 is represented exactly.
    """
    lower, upper = _Tail.of(found.negative), _Tail.of(found.positive)
    below = _candidates(found.negative, -found.low)
    above = _candidates(found.positive, found.high)
    lows, highs = lower.edges[below][:, None], upper.edges[above][None, :]
    if form.symmetric:
        span = 2 * np.maximum(lows, highs)
        lows = highs = span / 2
        clip = _interpolated(lower, span / 2) + _interpolated(upper, span / 2)
        inside = found.count - found.zeros
        error = clip + inside * (span / (form.high - form.low)) ** 2 / 12
        row, column = np.unravel_index(int(np.argmin(error)), error.shape)
        bound = float(span[row, column] / 2)
        return -bound, bound
    step = (lows + highs) / (form.high - form.low)
    clip = lower.clipping_error()[below][:, None] + upper.clipping_error()[above][None, :]
    kept = found.count - found.zeros - lower.counts[below][:, None] - upper.counts[above][None, :]
    error = clip + kept * step**2 / 12
    row, column = np.unravel_index(int(np.argmin(error)), error.shape)
    return -float(lows[row, 0]), float(highs[0, column])


def _interpolated(tail: _Tail, limits: Array) -> Array:
    return np.interp(limits, tail.edges, tail.clipping_error())


def _least_divergence(found: TensorStatistics, form: Format) -> Range:
    """The range whose rounded distribution diverges least from the clipped one (Kullback-Leibler).

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017. The method is for symmetric ranges; here
    the longer end is cut first, then the other one. Zeros, which stay exact, are left out.
    """
    low, high = max(-found.low, 0.0), max(found.high, 0.0)
    if low + high == 0:
        return 0.0, 0.0
    if form.symmetric:
        low = high = max(low, high)
    levels = form.high - form.low + 1
    whole = _joined(found, low, high)
    origin = round(whole.size * low / (low + high))
    ends = [0, whole.size]
    for side in (0, 1) if low > high else (1, 0):
        if form.symmetric:
            cuts = np.linspace(0, (whole.size - levels) // 2, _STEPS).astype(np.int64)
            tried = [(int(cut), int(whole.size - cut)) for cut in cuts]
        else:
            # At least as many bins stay as there are levels, and zero stays inside.
            room = min(abs(ends[side] - origin), ends[1] - ends[0] - levels)
            cuts = np.linspace(0, max(room, 0), _STEPS).astype(np.int64)
            tried = [(ends[0] + int(c), ends[1]) if side == 0 else (ends[0], ends[1] - int(c))
                     for c in cuts]  # fmt: skip
        costs = [_divergence(whole, first, last - first, levels) for first, last in tried]
        ends = list(tried[int(np.argmin(costs))])
        if form.symmetric:
            break
    width = (low + high) / whole.size
    return -low + ends[0] * width, -low + ends[1] * width


def _joined(found: TensorStatistics, low: float, high: float) -> Array:
    """Both histograms as one over [−low, high], in 2048 bins."""
    bins = 2048
    width = (low + high) / bins
    joined = np.zeros(bins)
    for side, sign in ((found.negative, -1.0), (found.positive, 1.0)):
        if side.limit == 0:
            continue
        middles = sign * (np.arange(BINS) + 0.5) * side.width
        places = np.clip(((middles + low) / width).astype(np.int64), 0, bins - 1)
        joined += np.bincount(places, side.counts.astype(np.float64), bins)
    return joined


def _divergence(whole: Array, first: int, kept: int, levels: int) -> float:
    inside = whole[first : first + kept]
    target = inside.copy()
    target[0] += whole[:first].sum()
    target[-1] += whole[first + kept :].sum()
    total = target.sum()
    if total == 0 or inside.sum() == 0:
        return float(np.inf)
    # Each level is the mean of the bins that are not empty in it.
    level = np.arange(kept) * levels // kept
    filled = inside > 0
    sums = np.bincount(level, inside, levels)
    sizes = np.bincount(level, filled.astype(np.float64), levels)
    rounded = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0.0)
    p, q = target / total, rounded / rounded.sum()
    both = (p > 0) & (q > 0)
    # Bins that only the clipped distribution has: their mass counts against a small number.
    missing = float(p[(p > 0) & (q == 0)].sum())
    found = float(np.sum(p[both] * np.log(p[both] / q[both])))
    return found + missing * 20.0
