"""What a task of benchmarks/quantization_accuracy.py is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Predict = Callable[[Feeds], Mapping[str, Array]]
"""Runs a model: inputs by name to outputs by name."""

CALIBRATION = 64
"""Samples that every quantizer is calibrated with."""


@dataclass(frozen=True)
class Sample:
    """A held-out input and what is right for it.

    `truth` is of the kind that Task.decide() gives: text, a list or a number.
    """

    feeds: Feeds
    truth: Any


class Task(Protocol):
    """A pretrained model with data and a way to judge it."""

    @property
    def name(self) -> str:
        """As in the catalogue."""
        ...

    @property
    def unit(self) -> str:
        """What is counted, in the plural."""
        ...

    @property
    def constants(self) -> Mapping[str, Any]:
        """Inputs that are bound."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]] | None:
        """Shapes that are bound, where the model has branches that depend on them."""
        ...

    def model(self, folder: Path) -> Path | None:
        """The float model's file, made in `folder` if need be; None if a package is missing."""
        ...

    def calibration(self, seed: int) -> list[Feeds]:
        """Batches to calibrate with, other ones for each seed; none is among the samples."""
        ...

    def samples(self, count: int) -> Sequence[Sample]:
        """Held-out samples, the same for every seed; at least `count` decisions."""
        ...

    def decide(self, predict: Predict, sample: Sample) -> Any:
        """What a model says of a sample, as plain JSON."""
        ...


def mistakes(found: Any, right: Any) -> tuple[int, int]:
    """Wrong decisions, and how many there were to make.

    Of text, the edit distance (Levenshtein) and the number of characters; of lists, elements that
    differ; else one decision. A list as the truth of one decision holds every right answer.
    """
    if isinstance(right, str):
        return edit_distance(found, right), max(len(right), 1)
    if isinstance(right, list) and isinstance(found, list):
        return sum(a != b for a, b in zip(found, right, strict=True)), len(right)
    if isinstance(right, list):
        return int(found not in right), 1
    return int(found != right), 1


def edit_distance(first: str, second: str) -> int:
    """Characters to insert, delete or replace to make one text of the other."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]
