"""Calibration data: files, folders, images, iterables, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from quantization_cases import Builder, feeds, quantized

from graphopt.compression.quantization.feeds import InputSpec, checked
from graphopt.compression.quantization.images import ImagePreprocessing
from graphopt.compression.quantization.sources import open_data
from graphopt.errors import GraphoptError, InputError, OptionError

FLOAT = np.dtype(np.float32)
ONE = (InputSpec("x", FLOAT, (1, 3, 4, 4)),)
OPEN = (InputSpec("x", FLOAT, (None, 3, 4, 4)),)
TWO = (InputSpec("x", FLOAT, (None, 3)), InputSpec("mask", np.dtype(np.int64), (None, 2)))


def batches(source: Any, specs: tuple[InputSpec, ...], **options: Any) -> list[dict[str, Any]]:
    return list(checked(open_data(source, **options).batches(specs), specs))


def test_an_npz_is_cut_into_batches(tmp_path: Path) -> None:
    x = np.arange(12 * 3, dtype=np.float32).reshape(12, 3)
    mask = np.arange(24).reshape(12, 2)
    np.savez(tmp_path / "in.npz", x=x, mask=mask)
    found = batches(tmp_path / "in.npz", TWO)
    assert [b["x"].shape for b in found] == [(6, 3), (6, 3)]
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in found]), x)
    np.testing.assert_array_equal(np.concatenate([b["mask"] for b in found]), mask)


@pytest.mark.parametrize(
    ("shape", "specs", "expected"),
    [
        ((5, 3, 4, 4), ONE, [(1, 3, 4, 4)] * 5),
        ((5, 1, 3, 4, 4), ONE, [(1, 3, 4, 4)] * 5),
        ((14, 3, 4, 4), OPEN, [(7, 3, 4, 4)] * 2),
        ((11, 3, 4, 4), OPEN, [(1, 3, 4, 4)] * 11),
        ((6, 2, 3, 4, 4), OPEN, [(2, 3, 4, 4)] * 6),
    ],
)
def test_an_npy_is_the_only_input(
    tmp_path: Path, shape: tuple[int, ...], specs: tuple[InputSpec, ...], expected: list[Any]
) -> None:
    np.save(tmp_path / "any.npy", np.zeros(shape, np.float64))
    found = batches(tmp_path / "any.npy", specs)
    assert [b["x"].shape for b in found] == expected
    assert found[0]["x"].dtype == np.float32


def test_a_folder_has_a_file_per_batch_or_per_input(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    for place in (2, 0, 1):
        np.save(first / f"sample{place}.npy", np.full((3, 4, 4), place, np.float32))
    found = batches(first, ONE)
    assert [float(b["x"].mean()) for b in found] == [0, 1, 2]
    np.save(second / "x.npy", np.zeros((4, 3), np.float32))
    np.save(second / "mask.npy", np.zeros((4, 2), np.int32))
    assert [b["mask"].shape for b in batches(second, TWO)] == [(4, 2)]
    np.savez(second / "z.npz", x=np.zeros((1, 3), np.float32), mask=np.zeros((1, 2), np.int64))
    (second / "x.npy").unlink()
    (second / "mask.npy").unlink()
    assert [b["x"].shape for b in batches(second, TWO)] == [(1, 3)]


def test_images_with_stated_preprocessing(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :, 0], pixels[:, :8, 2] = 255, 51
    Image.fromarray(pixels).save(tmp_path / "one.png")
    with pytest.raises(OptionError, match=r"not stated.*--image-mean"):
        batches(tmp_path, ONE)
    stated = ImagePreprocessing(mean=(0.5, 0.0, 0.2), std=(0.5, 1.0, 0.2))
    (found,) = batches(tmp_path, ONE, images=stated)
    assert found["x"].shape == (1, 3, 4, 4)
    np.testing.assert_allclose(found["x"][0, 0], 1)
    np.testing.assert_allclose(found["x"][0, 2, :, [0, -1]], [[0] * 4, [-1] * 4], atol=1e-6)
    bgr = ImagePreprocessing(color="bgr", layout="nhwc", crop=True, size=(8, 8))
    specs = (InputSpec("x", FLOAT, (1, None, None, 3)),)
    (found,) = batches(tmp_path, specs, images=bgr)
    np.testing.assert_allclose(found["x"][0, :, :, 2], 1)
    assert found["x"].shape == (1, 8, 8, 3)
    gray = ImagePreprocessing(color="gray")
    (found,) = batches(tmp_path, (InputSpec("x", FLOAT, (None, 1, 2, 2)),), images=gray)
    assert found["x"].shape == (1, 1, 2, 2)
    with pytest.raises(OptionError, match="leaves the size of images open"):
        batches(tmp_path, (InputSpec("x", FLOAT, (1, 3, None, None)),), images=stated)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken.png' is no image"):
        batches(tmp_path, ONE, images=stated)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"color": "cmyk"}, "color must be"),
        ({"layout": "chw"}, "layout must be"),
        ({"mean": (1, 2)}, "mean must be one number or 3"),
        ({"std": 0}, "std must not be 0"),
    ],
)
def test_wrong_preprocessing(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ImagePreprocessing(**options)


X = np.zeros((1, 3, 4, 4), np.float32)
WRONG: list[tuple[Any, str]] = [
    ([{"y": X}], "batch 0 of the calibration data lacks input 'x'"),
    ([{"x": X, "y": X}], "names 'y'"),
    (
        [{"x": X}, {"x": X[0]}],
        r"'x' in batch 1 .* shape \[3, 4, 4\], the model takes \[1, 3, 4, 4\]",
    ),
    ([{"x": X.astype(str)}], "is <U32, the model takes float32"),
    ([{"x": X * np.nan}], "'x' in batch 0 .* has a NaN"),
    ([{"x": X + np.inf}], "an infinity"),
    ([3], "a batch of calibration data is a int"),
    (7, "must be a path or an iterable"),
    ("no/such/file.npz", "there is no calibration data at 'no/such/file.npz'"),
    (__file__, "is no .npz or .npy"),
    (Path(__file__).parent, "has no .npz, .npy or image"),
    ([], "there is no calibration data"),
]


@pytest.mark.parametrize(("source", "words"), WRONG, ids=[words[:20] for _, words in WRONG])
def test_wrong_data_is_refused_in_words(source: Any, words: str) -> None:
    b = Builder()
    model = b.model(b.conv(b.input("x", 1, 3, 4, 4), 3, 3))
    with pytest.raises(GraphoptError, match=words):
        quantized(model, batches(source, ONE))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((4, 3))}, "lacks input 'mask'"),
        ({"x": np.zeros((4, 3)), "mask": np.zeros((4, 2), int), "z": X}, "has 'z'"),
        ({"x": np.zeros((4, 3)), "mask": np.zeros((3, 2), int)}, "different numbers of samples"),
        ({"x": np.zeros((4, 3)), "mask": np.zeros((4, 2))}, "is float64, the model takes int64"),
    ],
)
def test_wrong_files(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(InputError, match=words):
        batches(tmp_path / "in.npz", TWO)
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    with pytest.raises(InputError, match=r"bad.npz"):
        batches(tmp_path / "bad.npz", TWO)


def test_samples_that_do_not_divide_into_batches(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((5, 3, 4, 4), np.float32))
    with pytest.raises(InputError, match="has 5 samples, and the model takes 2 at a time"):
        batches(tmp_path / "in.npy", (InputSpec("x", FLOAT, (2, 3, 4, 4)),))


def test_a_generator_is_read_once_and_never_kept_whole() -> None:
    b = Builder()
    model = b.model(b.conv(b.input("x", 1, 3, 4, 4), 3, 3))
    made = iter(feeds(model, 40))
    done = quantized(model, made)
    assert (done.report.batches, done.report.compared) == (40, 16)


def test_a_nan_inside_the_network_names_the_tensor() -> None:
    b = Builder()
    x = b.op("Sqrt", b.input("x", 1, 3, 4, 4), name="root")
    model = b.model(b.conv(x, 3, 3))
    with pytest.raises(InputError, match="tensor 'root_out' has a NaN"):
        quantized(model, feeds(model))


def test_the_model_is_not_changed() -> None:
    b = Builder()
    model = b.model(b.conv(b.input("x", 1, 3, 4, 4), 3, 3))
    before = model.SerializeToString()
    quantized(model, feeds(model))
    assert model.SerializeToString() == before
    assert onnx.ModelProto.FromString(before) == model
