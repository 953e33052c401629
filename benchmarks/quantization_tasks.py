"""Models with data and a score: what benchmarks/quantization_accuracy.py quantizes and judges."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import digits
import numpy as np
import onnx
import onnxruntime as ort
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
        """What a right decision is, in words."""
        ...

    @property
    def constants(self) -> Mapping[str, Any] | None:
        """Inputs that are bound."""
        ...

    def model(self, folder: Path) -> Path | None:
        """The float model's file; None if a package that it needs is not installed."""
        ...

    def calibration(self, seed: int) -> list[Feeds]:
        """Batches to calibrate with."""
        ...

    def samples(self, seed: int, count: int) -> Iterator[tuple[Feeds, Any]]:
        """Held-out inputs with what is right for them; None: whatever the float model decides."""
        ...

    def decide(self, outputs: Mapping[str, Array]) -> Any:
        """What the outputs say."""
        ...


@dataclass(frozen=True)
class Digits:
    """The digits network, trained with another seed each time it is asked for."""

    name: str = "digits_cnn"
    score_name: str = "digits right"
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
            yield {"image": np.clip(noisy, 0, 1).astype(np.float32)}, int(labels[place])

    def decide(self, outputs: Mapping[str, Array]) -> Any:
        """The digit."""
        return int(outputs["logits"].argmax())


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

    def decide(self, outputs: Mapping[str, Array]) -> Any:
        """The line."""
        (scores,) = outputs.values()
        return decode(scores[0], _alphabet())

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


@dataclass(frozen=True)
class TextDirection:
    """PP-OCR's classifier on drawn lines, half of them upside down."""

    name: str = "ppocr_cls"
    score_name: str = "directions right"
    constants: Any = None

    def model(self, folder: Path) -> Path | None:
        """The model of the package rapidocr, if matplotlib's fonts are there too."""
        (entry,) = select(["ppocr_cls"])
        return entry.locate() if _fonts() is not None else None

    def calibration(self, seed: int) -> list[Feeds]:
        """64 lines."""
        return [feeds for feeds, _ in self._lines(np.random.default_rng((seed, 2)), 64)]

    def samples(self, seed: int, count: int) -> Iterator[tuple[Feeds, Any]]:
        """Other lines."""
        return self._lines(np.random.default_rng((seed, 3)), count)

    def decide(self, outputs: Mapping[str, Array]) -> Any:
        """Whether the line is upside down."""
        (scores,) = outputs.values()
        return int(scores[0].argmax())

    def _lines(self, rng: np.random.Generator, count: int) -> Iterator[tuple[Feeds, Any]]:
        for _ in range(count):
            text = "".join(rng.choice(list(_LETTERS), rng.integers(4, 10)))
            picture = drawn(text, rng)[:, :192]
            turned = int(rng.integers(2))
            yield {"x": preprocess(picture[::-1, ::-1] if turned else picture)}, turned


@dataclass(frozen=True)
class FileTypes:
    """Magika on the files of this Python installation."""

    name: str = "magika"
    score_name: str = "file types as by float32"
    constants: Any = None

    def model(self, folder: Path) -> Path | None:
        """The model of the package magika."""
        (entry,) = select(["magika"])
        return entry.locate()

    def calibration(self, seed: int) -> list[Feeds]:
        """64 files."""
        return [self._features(path) for path in self._files(seed)[:64]]

    def samples(self, seed: int, count: int) -> Iterator[tuple[Feeds, Any]]:
        """Other files."""
        for path in self._files(seed)[64 : 64 + count]:
            yield self._features(path), None

    def decide(self, outputs: Mapping[str, Array]) -> Any:
        """The type's number."""
        return int(outputs["target_label"].argmax())

    def _files(self, seed: int) -> list[Path]:
        """Files of at least 64 bytes, at most 40 of each kind, in an order that the seed gives."""
        kinds: dict[str, list[Path]] = {}
        for name in ("stdlib", "purelib"):
            for path in sorted(Path(sysconfig.get_path(name)).rglob("*")):
                found = kinds.setdefault(path.suffix, [])
                if len(found) < 400 and path.is_file() and path.stat().st_size >= 64:
                    found.append(path)
        rng = np.random.default_rng(seed)
        chosen = [rng.permutation(len(paths))[:250] for paths in kinds.values()]
        every = [
            paths[k] for paths, places in zip(kinds.values(), chosen, strict=True) for k in places
        ]
        return [every[k] for k in rng.permutation(len(every))]

    def _features(self, path: Path) -> Feeds:
        """The first and the last 1,024 bytes, as the package cuts them; 256 where there is none."""
        data = path.read_bytes()
        begin, end = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
        values = np.full((1, 2048), 256, np.int32)
        values[0, : len(begin)] = np.frombuffer(begin, np.uint8)
        if end:
            values[0, 2048 - len(end) :] = np.frombuffer(end, np.uint8)
        return {"bytes": values}


@dataclass(frozen=True)
class Voice:
    """Silero's detector of speech on made-up sounds: voices of harmonics, hums and noise."""

    name: str = "silero_vad"
    score_name: str = "decisions as by float32"
    constants: Mapping[str, Any] = field(default_factory=lambda: {"sr": 16000})

    def model(self, folder: Path) -> Path | None:
        """The model of the package silero_vad."""
        (entry,) = select(["silero_vad"])
        return entry.locate()

    def calibration(self, seed: int) -> list[Feeds]:
        """128 pieces."""
        return [feeds for feeds, _ in self._pieces(np.random.default_rng((seed, 4)), 128)]

    def samples(self, seed: int, count: int) -> Iterator[tuple[Feeds, Any]]:
        """Other pieces."""
        return self._pieces(np.random.default_rng((seed, 5)), count)

    def decide(self, outputs: Mapping[str, Array]) -> Any:
        """Whether there is speech."""
        return bool(outputs["output"].item() > 0.5)

    def _pieces(self, rng: np.random.Generator, count: int) -> Iterator[tuple[Feeds, Any]]:
        """Pieces of 32 ms in sequences of 16, with the state that the float model has then."""
        path = self.model(Path())
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        made = 0
        while made < count:
            sound = _sound(rng, 64 + 16 * 512)
            state = np.zeros((2, 1, 128), np.float32)
            for place in range(16):
                piece = sound[np.newaxis, 512 * place : 512 * place + 576]
                yield {"input": piece, "state": state}, None
                feeds = {"input": piece, "state": state, "sr": np.array(16000)}
                state = session.run(["stateN"], feeds)[0]
                made += 1
                if made == count:
                    return


def _sound(rng: np.random.Generator, length: int) -> Array:
    """A voice, a hum or noise, at 16 kHz."""
    time = np.arange(length) / 16000
    kind, sound = rng.integers(3), np.zeros(length)
    if kind < 2:
        pitch = rng.uniform(80, 260) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(1, 5) * time))
        phase = 2 * np.pi * np.cumsum(pitch) / 16000
        formants = rng.uniform((300, 900, 2200), (900, 2000, 3200))
        for harmonic in range(1, 30):
            distance = np.min(np.abs(formants - harmonic * pitch.mean()))
            sound += np.exp(-distance / 200) * np.sin(harmonic * phase + rng.uniform(0, 6))
        if kind == 0:  # syllables make it a voice
            sound *= np.clip(np.sin(2 * np.pi * rng.uniform(2, 5) * time + rng.uniform(0, 6)), 0, 1)
        sound *= rng.uniform(0.02, 0.3) / max(float(np.abs(sound).max()), 1e-6)
    sound += rng.normal(0, 10 ** rng.uniform(-4, -1.5), length)
    return sound.astype(np.float32)


TASKS: tuple[Task, ...] = (Digits(), TextLines(), TextDirection(), Voice(), FileTypes())
