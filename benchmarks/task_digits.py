"""The digits network: trained here on scikit-learn's digits, judged on those it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import digits
import numpy as np
import onnx
from quantization_tasks import CALIBRATION, Feeds, Predict, Sample


@dataclass(frozen=True)
class Digits:
    """Images of 8×8 pixels with some noise."""

    name: str = "digits_cnn"
    unit: str = "digits"
    constants: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] | None = None

    def model(self, folder: Path) -> Path | None:
        """Train on the first images; None without scikit-learn's data."""
        data = digits.load()
        if data is None:
            return None
        images, labels = data
        count = digits.TRAINED_ON
        path = folder / "digits.onnx"
        if not path.exists():
            onnx.save(digits.export(digits.train(images[:count], labels[:count])), path)
        return path

    def calibration(self, seed: int) -> list[Feeds]:
        """Some of the images that the network was trained on."""
        data = digits.load()
        assert data is not None
        chosen = np.random.default_rng(seed).choice(digits.TRAINED_ON, CALIBRATION, replace=False)
        return [{"image": data[0][k : k + 1]} for k in chosen]

    def samples(self, count: int) -> Sequence[Sample]:
        """The other images, again with other noise if there are too few."""
        data = digits.load()
        assert data is not None
        images, labels = (part[digits.TRAINED_ON :] for part in data)
        rng = np.random.default_rng(1)
        found = []
        for place in range(count):
            k = place % len(images)
            noisy = images[k : k + 1] + rng.normal(0, 0.1, (1, 1, 8, 8))
            clipped = np.clip(noisy, 0, 1).astype(np.float32)
            found.append(Sample({"image": clipped}, int(labels[k])))
        return found

    def decide(self, predict: Predict, sample: Sample) -> Any:
        """The digit."""
        return int(predict(sample.feeds)["logits"].argmax())
