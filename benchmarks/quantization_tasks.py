"""Models with data and a score: what benchmarks/quantization_accuracy.py quantizes and judges."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import digits
import numpy as np
import onnx
from catalogue import select
from demo import HEIGHT, alphabet, decode, preprocess

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


class Task(Protocol):
    """A pretrained model and its data."""

    @property
    def name(self) -> str:
        """As in the catalogue."""
        ...

    @property
    def score_name(self) -> str:
        """What score() is, in words."""
        ...

    @property
    def constants(self) -> Mapping[str, Any] | None:
        """Inputs that are bound."""
        ...

    def model(self, folder: Path) -> Path | None:
        """The float model's file; None if its package is not installed."""
        ...

    def calibration(self, seed: int) -> list[Feeds]:
        """Batches to calibrate with."""
        ...

    def samples(self, seed: int, count: int) -> Iterator[tuple[Feeds, Any]]:
        """Held-out inputs with what is right for them."""
        ...

    def score(self, outputs: Mapping[str, Array], truth: Any) -> float:
        """From 0 (wrong) to 1 (right)."""
        ...


@dataclass(frozen=True)
class Digits:
    """The digits network, trained with another seed each time it is asked for."""

    name: str = "digits_cnn"
    score_name: str = "accuracy"
    constants: Any = None

    def model(self, folder: Path) -> Path | None:
        """Train on the first images."""
        data = digits.load()
        if data is None:
            return None
        images, labels = data
        count = digits.TRAINED_ON
        path = folder / "digits.onnx"
        onnx.save(digits.export(digits.train(images[:count], labels[:count])), path)
        return path

    def calibration(self, seed: int) -> list[Feeds]:
        """64 of the images that the network was trained on."""
        data = digits.load()
        assert data is not None
        chosen = np.random.default_rng(seed).choice(digits.TRAINED_ON, 64, replace=False)
        return [{"image": data[0][k : k + 1]} for k in chosen]

    def samples(self, seed: int, count: int) -> Iterator[tuple[Feeds, Any]]:
        """The other images, with some noise, which differs by the seed."""
        data = digits.load()
        assert data is not None
        images, labels = (part[digits.TRAINED_ON :] for part in data)
        rng = np.random.default_rng((seed, 1))
        for place in range(min(count, len(images))):
            noisy = images[place : place + 1] + rng.normal(0, 0.1, (1, 1, 8, 8))
            yield {"image": np.clip(noisy, 0, 1).astype(np.float32)}, labels[place]

    def score(self, outputs: Mapping[str, Array], truth: Any) -> float:
        """Whether the digit is right."""
        return float(outputs["logits"].argmax() == truth)


FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)
"""Of matplotlib, which brings them."""

_WIDTH = 320
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass(frozen=True)
class TextLines:
    """PP-OCR's recogniser on drawn lines of random letters and digits."""

    name: str = "ppocr_rec"
    score_name: str = "lines read exactly"
    constants: Any = None

    def model(self, folder: Path) -> Path | None:
        """The model of the package rapidocr, if matplotlib's fonts are there too."""
        (entry,) = select(["ppocr_rec"])
        return entry.locate() if _fonts() is not None else None

    def calibration(self, seed: int) -> list[Feeds]:
        """64 lines."""
        return [feeds for feeds, _ in self._lines(np.random.default_rng((seed, 0)), 64)]

    def samples(self, seed: int, count: int) -> Iterator[tuple[Feeds, Any]]:
        """Other lines."""
        return self._lines(np.random.default_rng((seed, 1)), count)

    def score(self, outputs: Mapping[str, Array], truth: Any) -> float:
        """Whether the line is read without a mistake."""
        (scores,) = outputs.values()
        return float(decode(scores[0], _alphabet()) == truth)

    def _lines(self, rng: np.random.Generator, count: int) -> Iterator[tuple[Feeds, Any]]:
        for _ in range(count):
            text = "".join(rng.choice(list(_LETTERS), rng.integers(4, 15)))
            yield {"x": preprocess(drawn(text, rng))}, text


_ALPHABET: list[str] = []


def _alphabet() -> list[str]:
    if not _ALPHABET:
        (entry,) = select(["ppocr_rec"])
        path = entry.locate()
        assert path is not None
        _ALPHABET.extend(alphabet(path))
    return _ALPHABET


def _fonts() -> Path | None:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"


def drawn(text: str, rng: np.random.Generator) -> Array:
    """A line of text as RGB [48, 320, 3] uint8: random font, colours, blur and noise."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    folder = _fonts()
    assert folder is not None
    font = ImageFont.truetype(str(folder / rng.choice(FONTS)), int(rng.integers(22, 33)))
    left, top, right, bottom = font.getbbox(text)
    dark, light = rng.integers(0, 110, 3), rng.integers(150, 256, 3)
    if rng.random() < 0.3:
        dark, light = light, dark
    width = max(_WIDTH, round(right - left) + 20)
    image = Image.new("RGB", (width, HEIGHT), tuple(int(v) for v in light))
    origin = (10 - left + rng.integers(0, 4), (HEIGHT - (bottom - top)) / 2 - top)
    ImageDraw.Draw(image).text(origin, text, tuple(int(v) for v in dark), font)
    image = image.rotate(
        rng.normal(0, 1.0), Image.Resampling.BILINEAR, fillcolor=tuple(map(int, light))
    )
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.4))))
    if width > _WIDTH:
        image = image.resize((_WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 30), (HEIGHT, _WIDTH, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


TASKS: tuple[Task, ...] = (Digits(), TextLines())
