"""The cost model: gradient-boosted trees that foretell how fast a kernel is beside its rivals.

The target is log2(time of the workload's best kernel / time of this kernel): 0 for the best one,
−1 for one that takes twice as long. So what is learnt about one workload carries over to others.

A model carries what it was taught by, so that it can be taught more: trees that are only grown on
top of others foretell worse than trees that are grown from everything at once.

Source: Chen et al., "Learning to Optimize Tensor Programs", NeurIPS 2018.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from graphopt.artifact.atomic import replacing
from graphopt.tuning.nearness import distance
from graphopt.tuning.records import Record

SLOWEST = -5.0
"""Targets below this say no more than "slow"."""
FAILED = -6.0
"""The target of a kernel that does not work."""
_MAGIC = b"graphopt cost model 2\n"
_DIGEST_BYTES, _LENGTH_BYTES = 16, 8

FILE = "cost_model.bin"
"""The cost model of a target's records, beside them."""
LEAST_ROWS = 12
"""With fewer rows there is nothing to learn."""
RECENT = 3.0
"""Weight of a record of the network that is being tuned: with it, a model that others have taught
foretold better than one that starts cold, whether after 16 or after 128 kernels of a network."""
MOST_LESSONS = 8192
"""Rows that a model carries at most."""

Array = np.ndarray[Any, Any]

_PARAMETERS = {
    "max_depth": 6,
    "eta": 0.15,
    "min_child_weight": 2.0,
    "subsample": 0.9,
    "colsample_bytree": 0.8,
    "lambda": 1.0,
    "objective": "reg:squarederror",
    "verbosity": 0,
    "seed": 0,
}
_ROUNDS = 120


@dataclass(frozen=True)
class Lessons:
    """What a model was taught by.

    rows: features, float32 (kernels, features). targets: float32 (kernels,).
    """

    rows: Array
    targets: Array

    def and_then(self, later: Lessons) -> Lessons:
        """These and later ones, which replace equal rows; of these, a sample where they are many.

        Rows of another width, as an earlier version of graphopt had, are forgotten.
        """
        if self.rows.shape[1] != later.rows.shape[1]:
            return later
        known = {row.tobytes() for row in later.rows}
        kept = np.array([i for i, row in enumerate(self.rows) if row.tobytes() not in known], int)
        room = max(0, MOST_LESSONS - len(later.rows))
        if len(kept) > room:
            kept = np.sort(np.random.default_rng(0).choice(kept, room, replace=False))
        return Lessons(
            np.concatenate([self.rows[kept], later.rows]),
            np.concatenate([self.targets[kept], later.targets]),
        )


@dataclass(frozen=True)
class CostModel:
    """A trained model."""

    booster: Any
    lessons: Lessons

    @property
    def width(self) -> int:
        """How many features a kernel has."""
        return int(self.lessons.rows.shape[1])

    def scores(self, features: Sequence[Sequence[float]]) -> Array:
        """The expected target of kernels with these features."""
        rows = np.asarray(features, np.float32).reshape(len(features), self.width)
        return np.asarray(self.booster.inplace_predict(rows), np.float64)

    def to_bytes(self) -> bytes:
        """The model as a file: a digest, because XGBoost ends the process when it is given anything
        else than a model, XGBoost's UBJSON behind its length, and the lessons, compressed."""
        trees = bytes(self.booster.save_raw("ubj"))
        table = np.column_stack([self.lessons.rows, self.lessons.targets]).astype("<f4")
        data = (
            len(trees).to_bytes(_LENGTH_BYTES, "little") + trees + zlib.compress(table.tobytes(), 9)
        )
        return _MAGIC + blake2b(data, digest_size=_DIGEST_BYTES).digest() + data

    @staticmethod
    def from_bytes(data: bytes) -> CostModel:
        """The model of which to_bytes() gave `data`.

        Raises:
            ValueError: it gave something else.
        """
        start = len(_MAGIC) + _DIGEST_BYTES
        digest, body = data[len(_MAGIC) : start], data[start:]
        if data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("not a cost model of this version")
        if blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
            raise ValueError("a damaged cost model")
        end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
        booster = xgboost.Booster()
        booster.load_model(bytearray(body[_LENGTH_BYTES:end]))
        table = np.frombuffer(zlib.decompress(body[end:]), "<f4")
        table = table.reshape(-1, int(booster.num_features()) + 1)
        return CostModel(booster, Lessons(table[:, :-1], table[:, -1]))


def load(logs: Sequence[Path], target: str) -> CostModel | None:
    """The cost model of the target in these logs that is nearest to the key `target`, the first of
    those; None if there is none to be read."""
    found = []
    for folder in logs:
        for path in sorted(folder.glob(f"*/{FILE}")):
            near = distance(target, path.parent.name)
            if near is not None:
                found.append((near, path))
    for _, path in sorted(found, key=lambda pair: pair[0]):
        try:
            return CostModel.from_bytes(path.read_bytes())
        except (OSError, ValueError):
            continue
    return None


def save(model: CostModel, folder: Path, target: str) -> None:
    """Put the model beside the records of a log, in place of the one there.

    Raises:
        ArtifactError: there is no room, or it cannot be written.
    """
    with replacing(folder / target / FILE, "tune") as file:
        file.write(model.to_bytes())


def train(
    records: Iterable[Record], threads: int, earlier: CostModel | None = None, recent: int = 0
) -> CostModel | None:
    """A model of these records; None where there are too few.

    Args:
        threads: for training.
        earlier: a model whose lessons count as well.
        recent: the last so many records count more: they are of the network that is being tuned.
    """
    kept = [record for record in records if record.features]
    widths = [len(record.features) for record in kept]
    if len(kept) < LEAST_ROWS:
        return None
    width = widths[-1]
    kept = [record for record, each in zip(kept, widths, strict=True) if each == width]
    rows = np.asarray([record.features for record in kept], np.float32)
    lessons = Lessons(rows, _targets(kept).astype(np.float32))
    if earlier is not None:
        lessons = earlier.lessons.and_then(lessons)
    rows, targets = lessons.rows, lessons.targets
    # Errors among the fast kernels matter: the slow ones only have to stay slow.
    weights = np.exp2(np.maximum(targets, SLOWEST) / 2)
    weights[len(weights) - recent :] *= RECENT
    data = xgboost.DMatrix(rows, label=targets, weight=weights)
    booster = xgboost.train({**_PARAMETERS, "nthread": threads}, data, _ROUNDS)
    return CostModel(booster, lessons)


def _targets(records: Sequence[Record]) -> Array:
    best: dict[tuple[str, str], float] = {}
    keys = [(record.target, record.workload_key) for record in records]
    for record, key in zip(records, keys, strict=True):
        if record.ok:
            best[key] = min(best.get(key, np.inf), record.ratio)
    return np.array(
        [
            max(SLOWEST, np.log2(best[key] / record.ratio)) if record.ok else FAILED
            for record, key in zip(records, keys, strict=True)
        ]
    )
