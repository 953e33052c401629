"""Pretrained models from packages, on inputs as their users have them, in changing shapes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from PIL import Image, ImageDraw, ImageFont

import graphopt

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from double import doubled, in_double

TOLERANCE = 1e-4
Feeds = dict[str, Any]

# Found in every package that is installed; a missing package is a skip that says so.
PACKAGES = ("rapidocr", "silero_vad", "magika", "onnx_asr", "basic_pitch")


def model_files() -> Iterator[Any]:
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            reason = f"the package {package} is not installed (make setup)"
            yield pytest.param(Path(package), id=package, marks=pytest.mark.skip(reason=reason))
            continue
        root = Path(spec.submodule_search_locations[0])
        # "._…" are droppings of a file manager, not models.
        files = sorted(f for f in root.rglob("*.onnx") if not f.name.startswith("._"))
        assert files, f"{package} has no models any more"
        for file in files:
            yield pytest.param(file, id=f"{package}-{file.stem}")


def page(width: int, height: int, text: str = "graphopt 0123") -> Image.Image:
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for line in range(max(1, height // 90)):
        draw.text((8, 6 + 90 * line), text, "black", ImageFont.load_default(size=34))
    return image


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    bgr = np.asarray(image, np.float32)[:, :, ::-1]
    return np.ascontiguousarray(((bgr / 255 - 0.5) / 0.5).transpose(2, 0, 1))[None]


def speech(samples: int, rate: int = 16000, seed: int = 0) -> np.ndarray[Any, Any]:
    """Something with the spectrum and rhythm of a voice: harmonics under an envelope, and noise."""
    time = np.arange(samples) / rate
    pitch = 120 * np.exp(0.1 * np.sin(2 * np.pi * 3 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(k * phase + seed) / k for k in range(1, 12))
    envelope = np.clip(np.sin(2 * np.pi * 4 * time + seed), 0, None)
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (0.2 * voice * envelope + 0.01 * noise).astype(np.float32)


def inputs_for(file: Path) -> list[Feeds]:
    """Inputs in an order in which a user might give them; None stands for the last run's state."""
    name = file.name
    if "det" in name:
        return [{"x": pixels(page(320, 224))}, {"x": pixels(page(256, 320))}]
    if "rec" in name:
        return [{"x": pixels(page(width, 48))} for width in (320, 416)]
    if "cls" in name:
        return [{"x": pixels(page(192, 48))}, {"x": np.repeat(pixels(page(192, 48)), 3, axis=0)}]
    if name.startswith("silero"):
        return list(voice_activity(file))
    if file.parts[-2] == "standard_v3_3":
        return [{"bytes": content(n)} for n in (1, 3)]
    if name == "nmp.onnx":
        return [{"serving_default_input_2:0": speech(43844, 22050)[None, :, None]}]
    return [
        {
            "waveforms": np.stack([speech(n, seed=i) for i in range(batch)]),
            "waveforms_lens": np.array([n - 1000 * i for i in range(batch)], np.int64),
        }
        for batch, n in ((1, 16000), (2, 9600))
    ]


def content(files: int) -> np.ndarray[Any, Any]:
    """Beginnings, middles and ends of files as magika takes them: bytes, 256 for none."""
    rows = np.full((files, 2048), 256, np.int32)
    sources = sorted(Path(graphopt.__file__).parent.glob("*.py"))
    for row, source in zip(rows, sources, strict=False):
        data = np.frombuffer(source.read_bytes()[:1024], np.uint8)
        row[: data.size] = data
        row[2048 - data.size :] = data
    return rows


def voice_activity(file: Path) -> Iterator[Feeds]:
    session = onnxruntime.InferenceSession(file)
    names = [value.name for value in session.get_inputs()]
    if "sequence" in file.name:
        state = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
        for steps in (5, 9):
            feeds = {"input": speech(576 * steps).reshape(steps, 576), **state}
            yield feeds
            _, state["h"], state["c"] = session.run(None, feeds)
        return
    rates = (16000, 8000) if "sr" in names and "16k" not in file.name else (16000,)
    for rate in rates:
        window = 576 if rate == 16000 else 288
        batch = 1 if "openvino" in file.name else 2
        state = {"state": np.zeros((2, batch, 128), np.float32)}
        for step in range(3):
            sound = [speech(window * 3, rate, i)[window * step :][:window] for i in range(batch)]
            feeds = {"input": np.stack(sound), **state, "sr": np.array(rate, np.int64)}
            feeds = {name: feeds[name] for name in names}
            yield feeds
            state["state"] = session.run(None, feeds)[1]


@pytest.mark.parametrize("file", list(model_files()))
def test_agrees_with_onnx_runtime(file: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options)
    program = graphopt.compile(file, threads=2)
    for feeds in inputs_for(file):
        found = program.run(feeds)
        expected = session.run(None, feeds)
        for output, want in zip(session.get_outputs(), expected, strict=True):
            got = found[output.name]
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            assert np.isfinite(got).all()
            if worst_error(got, want) > TOLERANCE:
                # A logarithm of power tells how far ONNX Runtime's STFT is from float64.
                want = in_float64(file, feeds)[output.name]
            assert worst_error(got, want) <= TOLERANCE, output.name


def worst_error(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    scale = float(np.abs(want).max()) or 1.0
    return float(np.abs(got.astype(np.float64) - want).max()) / scale


class STFT(OpRun):  # type: ignore[misc]
    """The operator in float64; onnx's own fails on signals of rank 2."""

    op_domain = ""

    def _run(self, signal, step, window=None, length=None, onesided=1):  # type: ignore[no-untyped-def]
        assert onesided
        samples = signal[..., 0] if signal.ndim == 3 else signal
        size = int(length) if window is None else len(window)
        frames = np.lib.stride_tricks.sliding_window_view(samples, size, axis=1)[:, :: int(step)]
        spectrum = np.fft.rfft(frames if window is None else frames * window)
        return (np.stack([spectrum.real, spectrum.imag], axis=-1),)


def in_float64(file: Path, feeds: Feeds) -> Feeds:
    """The model's results in float64; only for models that onnx's evaluator can run."""
    model = in_double(onnx.load(file))
    given = {name: doubled(value) for name, value in feeds.items()}
    results = ReferenceEvaluator(model, new_ops=[STFT]).run(None, given)
    return dict(zip([value.name for value in model.graph.output], results, strict=True))
