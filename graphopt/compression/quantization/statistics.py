"""Statistics of tensors over calibration data: gathered in one pass, in memory that is bounded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.compression.quantization.graph import STAGE
from graphopt.compression.quantization.histogram import Accumulator, Histogram
from graphopt.compression.quantization.scheme import Array
from graphopt.errors import InputError

_MOMENTUM = 0.9
"""Of the moving average of the batches' extremes."""


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What calibration saw of one tensor.

    Attributes:
        count, zeros: values, and those that were exactly 0.
        low, high: the extremes.
        moving_low, moving_high: exponential moving averages of the batches' extremes.
        negative, positive: histograms of magnitudes.
        mean, peak: per channel, the mean and the largest magnitude; None if not asked for.
    """

    count: int
    zeros: int
    low: float
    high: float
    moving_low: float
    moving_high: float
    negative: Histogram
    positive: Histogram
    mean: Array | None = None
    peak: Array | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "count": self.count,
            "zeros": self.zeros,
            "low": self.low,
            "high": self.high,
            "moving_low": self.moving_low,
            "moving_high": self.moving_high,
            "negative": [self.negative.limit, self.negative.to_list()],
            "positive": [self.positive.limit, self.positive.to_list()],
            "mean": None if self.mean is None else self.mean.tolist(),
            "peak": None if self.peak is None else self.peak.tolist(),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TensorStatistics:
        """The inverse of to_dict()."""
        sides = {name: Histogram.from_list(*values[name]) for name in ("negative", "positive")}
        vectors = {
            name: None if values[name] is None else np.asarray(values[name], np.float64)
            for name in ("mean", "peak")
        }
        return TensorStatistics(**{**values, **sides, **vectors})


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration saw: `samples` batches, and each tensor by name."""

    batches: int
    tensors: Mapping[str, TensorStatistics]

    def to_json(self) -> str:
        """A JSON object; numbers keep all their digits."""
        tensors = {name: found.to_dict() for name, found in self.tensors.items()}
        return json.dumps({"batches": self.batches, "tensors": tensors})

    @staticmethod
    def from_json(text: str) -> Statistics:
        """The inverse of to_json()."""
        values = json.loads(text)
        tensors = {n: TensorStatistics.from_dict(v) for n, v in values["tensors"].items()}
        return Statistics(values["batches"], tensors)

    def of(self, tensor: str) -> TensorStatistics:
        """A tensor's statistics.

        Raises:
            InputError: calibration never saw it.
        """
        found = self.tensors.get(tensor)
        if found is None or found.count == 0:
            raise InputError(
                STAGE,
                f"calibration never saw a value of tensor '{tensor}'.",
                hint="calibrate with data that reaches it, or exclude the nodes that read it.",
            )
        return found


class Observer:
    """Gathers the statistics of one tensor."""

    def __init__(self, name: str, channels: int | None) -> None:
        """Args:
        channels: the axis of the channels, if statistics per channel are wanted.
        """
        self._name, self._axis = name, channels
        self._count = self._zeros = 0
        self._low, self._high = np.inf, -np.inf
        self._moving: tuple[float, float] | None = None
        self._negative, self._positive = Accumulator(), Accumulator()
        self._sum: Array | None = None
        self._peak: Array | None = None
        self._per_channel = 0

    def add(self, values: Array) -> None:
        """Take in one batch's tensor.

        Raises:
            InputError: it has a NaN or an infinity.
        """
        if values.size == 0:
            return
        values = np.asarray(values, np.float32)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            what = "a NaN" if np.isnan(low) or np.isnan(high) else "an infinity"
            raise InputError(
                STAGE,
                f"tensor '{self._name}' has {what} for some calibration data.",
                hint="check the calibration data and its preprocessing.",
            )
        self._count += values.size
        self._low, self._high = min(self._low, low), max(self._high, high)
        before = self._moving or (low, high)
        self._moving = (
            _MOMENTUM * before[0] + (1 - _MOMENTUM) * low,
            _MOMENTUM * before[1] + (1 - _MOMENTUM) * high,
        )
        positive = values[values > 0] if low <= 0 else values
        negative = -values[values < 0] if low < 0 else values[:0]
        self._zeros += values.size - positive.size - negative.size
        self._positive.add(positive)
        self._negative.add(negative)
        if self._axis is not None:
            self._add_channels(values, self._axis)

    def _add_channels(self, values: Array, axis: int) -> None:
        rest = tuple(k for k in range(values.ndim) if k != axis % values.ndim)
        sums = values.sum(axis=rest, dtype=np.float64)
        peak = np.abs(values).max(axis=rest).astype(np.float64)
        if self._sum is None or self._peak is None:
            self._sum, self._peak = sums, peak
        elif self._sum.shape != sums.shape:
            # A channel axis whose length varies has no channels.
            self._axis, self._sum, self._peak = None, None, None
            return
        else:
            self._sum, self._peak = self._sum + sums, np.maximum(self._peak, peak)
        self._per_channel += values.size // sums.size

    def result(self) -> TensorStatistics:
        """What was seen so far."""
        moving = self._moving or (0.0, 0.0)
        return TensorStatistics(
            self._count,
            self._zeros,
            self._low if self._count else 0.0,
            self._high if self._count else 0.0,
            *moving,
            self._negative.result(),
            self._positive.result(),
            None if self._sum is None else self._sum / max(self._per_channel, 1),
            self._peak,
        )


def gather(
    batches: Iterable[Mapping[str, Array]], tensors: Sequence[str], channels: Mapping[str, int]
) -> Statistics:
    """Statistics of `tensors`; each batch has their values by name.

    Args:
        channels: tensors for which statistics per channel are wanted → axis of the channels.

    Raises:
        InputError: there is no batch, or a value is not finite.
    """
    observers = {name: Observer(name, channels.get(name)) for name in tensors}
    count = 0
    for values in batches:
        count += 1
        for name, observer in observers.items():
            observer.add(values[name])
    if count == 0:
        raise InputError(STAGE, "there is no calibration data.", hint="give one batch at least.")
    return Statistics(count, {name: each.result() for name, each in observers.items()})
