"""PP-OCR's recogniser on drawn lines: letters and English words in many fonts, with noise."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from catalogue import select
from demo import HEIGHT, alphabet, decode, preprocess
from quantization_tasks import CALIBRATION, Array, Feeds, Predict, Sample

_FONTS = (
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
"""Of matplotlib, which brings them; Pillow's own is used too."""
_DEBIAN = Path("/usr/share/fonts/truetype")
_DEBIAN_FONTS = (
    "dejavu/DejaVuSansCondensed.ttf",
    "dejavu/DejaVuSerifCondensed-Italic.ttf",
    "liberation/LiberationSans-Regular.ttf",
    "liberation/LiberationSerif-Regular.ttf",
    "freefont/FreeSans.ttf",
)
"""Used where they are installed."""

_WIDTH = 320
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_NOISE = (0.0, 10.0, 20.0, 30.0)
"""Standard deviations, of 255 grey levels."""


@dataclass(frozen=True)
class TextLines:
    """Lines 48 pixels high: half of them random letters and digits, half English words."""

    name: str = "ppocr_rec"
    unit: str = "characters"
    constants: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] | None = None

    def model(self, folder: Path) -> Path | None:
        """The model of the package rapidocr, if matplotlib's fonts are there too."""
        (entry,) = select(["ppocr_rec"])
        return entry.locate() if fonts() else None

    def calibration(self, seed: int) -> list[Feeds]:
        """Lines."""
        rng = np.random.default_rng((seed, 0))
        return [_line(rng).feeds for _ in range(CALIBRATION)]

    def samples(self, count: int) -> Sequence[Sample]:
        """Other lines."""
        rng = np.random.default_rng((0, 1))
        return [_line(rng) for _ in range(count)]

    def decide(self, predict: Predict, sample: Sample) -> Any:
        """The line."""
        (scores,) = predict(sample.feeds).values()
        return decode(scores[0], _alphabet())


def _line(rng: np.random.Generator) -> Sample:
    if rng.random() < 0.5:
        text = "".join(rng.choice(list(_LETTERS), rng.integers(4, 15)))
    else:
        text = " ".join(rng.choice(_words(), rng.integers(1, 4)))[:24].strip()
    return Sample({"x": preprocess(drawn(text, rng))}, text)


@cache
def _words() -> tuple[str, ...]:
    """Words of Python's own help texts."""
    from pydoc_data.topics import topics

    return tuple(sorted(set(re.findall(r"\b[A-Za-z]{3,10}\b", " ".join(topics.values())))))


@cache
def _alphabet() -> list[str]:
    (entry,) = select(["ppocr_rec"])
    path = entry.locate()
    assert path is not None
    return alphabet(path)


@cache
def fonts() -> tuple[str, ...]:
    """Font files; "" stands for Pillow's own. Empty without matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        return ()
    folder = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    there = [path for name in _DEBIAN_FONTS if (path := _DEBIAN / name).is_file()]
    return ("", *(str(path) for path in (*(folder / name for name in _FONTS), *there)))


def drawn(text: str, rng: np.random.Generator) -> Array:
    """A line of text as RGB [48, 320, 3] uint8: random font, colours, tilt, blur and noise."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    name, size = fonts()[rng.integers(len(fonts()))], int(rng.integers(20, 33))
    font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size=size)
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
    noise = rng.normal(0, 1, (HEIGHT, _WIDTH, 3)) * rng.choice(_NOISE)
    return np.asarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255), np.uint8)
