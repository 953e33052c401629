"""Silero's detector of speech on synthesised voices, pauses, hums and noise, as a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from catalogue import select
from quantization_tasks import CALIBRATION, Array, Feeds, Predict, Sample
from scipy.signal import lfilter

RATE = 16000
_PIECE, _CONTEXT = 512, 64
"""New values of a step, and those from before it that the model reads again."""
_STEPS = 32
"""Of 32 ms each in one recording."""
_BLOCK = 80
"""Values between two changes of the vocal tract: 5 ms."""

_VOWELS = np.array(
    [
        (270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410),
        (730, 1090, 2440), (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240),
        (640, 1190, 2390), (490, 1350, 1690),
    ],
    np.float64,
)  # fmt: skip
"""Formants in Hz of American English vowels: G. Peterson and H. Barney, "Control Methods Used in a
Study of the Vowels", JASA 24 (1952)."""
_BANDWIDTHS = (80.0, 110.0, 160.0)


@dataclass(frozen=True)
class Voice:
    """Recordings of a second; a decision for every 32 ms, with the model's own state.

    Right is where more than half of a piece lies in a syllable.
    """

    name: str = "silero_vad"
    unit: str = "decisions"
    constants: Mapping[str, Any] = field(default_factory=lambda: {"sr": RATE})
    shapes: Mapping[str, tuple[int, ...]] | None = field(
        default_factory=lambda: {"input": (1, _CONTEXT + _PIECE), "state": (2, 1, 128)}
    )

    def model(self, folder: Path) -> Path | None:
        """The model of the package silero_vad."""
        (entry,) = select(["silero_vad"])
        return entry.locate()

    def calibration(self, seed: int) -> list[Feeds]:
        """Steps of other recordings, with the state that the float model has then."""
        rng = np.random.default_rng((seed, 0))
        path = self.model(Path())
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found: list[Feeds] = []
        for _ in range(CALIBRATION // 4):
            steps = []
            state = _silence()
            for piece in _pieces(recording(rng)[0]):
                feeds = {"input": piece, "state": state}
                steps.append(feeds)
                state = session.run(["stateN"], {**feeds, "sr": np.array(RATE)})[0]
            found += [steps[k] for k in rng.choice(_STEPS, 4, replace=False)]
        return found

    def samples(self, count: int) -> Sequence[Sample]:
        """Recordings, together with at least `count` steps."""
        rng = np.random.default_rng((0, 1))
        many = -(-count // _STEPS) * 8
        found = []
        for _ in range(many):
            sound, spoken = recording(rng)
            shares = spoken[_CONTEXT:].reshape(_STEPS, _PIECE).mean(axis=1)
            found.append(Sample({"sound": sound}, [int(share > 0.5) for share in shares]))
        return found

    def decide(self, predict: Predict, sample: Sample) -> Any:
        """For each step, 1 for speech."""
        state, found = _silence(), []
        for piece in _pieces(sample.feeds["sound"]):
            outputs = predict({"input": piece, "state": state})
            state = outputs["stateN"]
            found.append(int(outputs["output"].item() > 0.5))
        return found


def _silence() -> Array:
    return np.zeros((2, 1, 128), np.float32)


def _pieces(sound: Array) -> list[Array]:
    """What the model reads, (1, 576) each."""
    places = range(0, _STEPS * _PIECE, _PIECE)
    return [sound[np.newaxis, k : k + _CONTEXT + _PIECE] for k in places]


def recording(rng: np.random.Generator) -> tuple[Array, Array]:
    """A second of a voice with pauses, or of something else, and where somebody speaks.

    Returns:
        float32 in −1 … 1 at 16 kHz, and bool.
    """
    length = _CONTEXT + _STEPS * _PIECE
    spoken = np.zeros(length, np.bool_)
    kind = rng.random()
    if kind < 0.7:
        sound, spoken = _speech(rng, length)
    elif kind < 0.85:
        sound = _hum(rng, length)
    else:
        sound = np.zeros(length)
    peak = float(np.abs(sound).max())
    if peak > 0:
        sound *= 10 ** rng.uniform(-1.6, -0.3) / peak
    level = 10 ** rng.uniform(-4, -1.7)
    coloured = lfilter([1.0], [1.0, -rng.uniform(0, 0.95)], rng.standard_normal(length))
    sound = sound + level * coloured / coloured.std()
    return np.asarray(np.clip(sound, -1, 1), np.float32), spoken


def _speech(rng: np.random.Generator, length: int) -> tuple[Array, Array]:
    """Syllables and pauses: a source of pulses and breath through moving formants."""
    voiced, breath, spoken = np.zeros(length), np.zeros(length), np.zeros(length, np.bool_)
    formants = np.zeros((length // _BLOCK + 1, 3))
    size = rng.uniform(0.9, 1.25)  # of the vocal tract, and of it the sex
    base = 210 - 380 * (1.05 - size) if size > 1.05 else rng.uniform(85, 140)
    place, vowel = int(rng.uniform(0, 0.4) * RATE), _VOWELS[rng.integers(len(_VOWELS))]
    formants[:] = vowel * size
    while place < length:
        if rng.random() < 0.25:
            place += int(rng.uniform(0.15, 0.5) * RATE)
            continue
        consonant = int(rng.uniform(0.03, 0.09) * RATE)
        if rng.random() < 0.6:
            breath[place : place + consonant] += rng.uniform(0.05, 0.3)
        place += consonant
        many = int(rng.uniform(0.1, 0.28) * RATE)
        envelope = np.minimum(1, 4 * np.sin(np.pi * np.linspace(0, 1, many)).clip(0))
        part = voiced[place : place + many]
        part += (envelope * rng.uniform(0.5, 1))[: len(part)]
        target = _VOWELS[rng.integers(len(_VOWELS))]
        blocks = slice(place // _BLOCK, (place + many) // _BLOCK + 1)
        way = np.linspace(0, 1, len(formants[blocks]))[:, None].clip(0, 0.5) * 2
        formants[blocks] = size * (vowel + (target - vowel) * way)
        spoken[place - consonant : place + many] = True
        vowel, place = target, place + many
    pitch = base * (1 + 0.15 * np.cumsum(rng.standard_normal(length)) / np.sqrt(length))
    pitch *= 1 + 0.02 * np.sin(2 * np.pi * rng.uniform(4, 6) * np.arange(length) / RATE)
    turns = np.cumsum(np.clip(pitch, 60, 400)) / RATE
    pulses = np.diff(np.floor(turns), prepend=0.0)
    source = lfilter([1.0], [1.0, -0.95], pulses) + 0.02 * rng.standard_normal(length)
    sound = _through(source * voiced, formants)
    hiss = lfilter([1.0, -0.95], [1.0], rng.standard_normal(length)) * breath
    return sound / max(float(np.abs(sound).max()), 1e-9) + hiss, spoken


def _through(source: Array, formants: Array) -> Array:
    """A source through one resonator per formant, whose frequencies move every 5 ms."""
    sound = np.diff(source, prepend=0.0)  # lips radiate the derivative
    for k, width in enumerate(_BANDWIDTHS):
        radius = np.exp(-np.pi * width / RATE)
        state, out = np.zeros(2), np.empty_like(sound)
        for block, start in enumerate(range(0, len(sound), _BLOCK)):
            turn = 2 * np.pi * min(formants[block, k], 7000.0) / RATE
            feedback = [1.0, -2 * radius * np.cos(turn), radius**2]
            gain = [sum(feedback)]
            part = sound[start : start + _BLOCK]
            out[start : start + _BLOCK], state = lfilter(gain, feedback, part, zi=state)
        sound = out
    return sound


def _hum(rng: np.random.Generator, length: int) -> Array:
    """Steady harmonics, as of machines and instruments."""
    time = np.arange(length) / RATE
    pitch = rng.uniform(50, 800)
    weights = rng.uniform(0, 1, 12) / np.arange(1, 13) ** rng.uniform(0.3, 1.5)
    phases = rng.uniform(0, 2 * np.pi, 12)
    waves = np.sin(2 * np.pi * pitch * np.arange(1, 13)[:, None] * time + phases[:, None])
    return np.asarray(weights @ waves)
