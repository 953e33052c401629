"""Bad calibration data, models and paths: right, or refused with the name and what to do."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantization_cases import Builder, OnnxRuntimeRuns, quantized, run

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.images import ImagePreprocessing
from graphopt.compression.quantization.pipeline import Quantized, quantize_model
from graphopt.compression.quantization.scheme import signal_to_noise
from graphopt.compression.quantization.sources import open_data
from graphopt.errors import ArtifactError, GraphoptError
from graphopt.frontend.load import load_model
from graphopt.quantizing import QuantizationResult

X = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)


def network() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.conv(b.input("x", 1, 3, 8, 8), 3, 4, name="stem"))


def with_data(source: Any, model: onnx.ModelProto | None = None, **options: Any) -> Quantized:
    config, loaded = QuantizationConfig(), load_model(model or network())
    return quantize_model(loaded, open_data(source, **options), config, OnnxRuntimeRuns())


def cut(path: Path, share: float) -> Path:
    """The file without its end."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def npz(folder: Path, save: Any = np.savez, **arrays: Any) -> Path:
    save(folder / "data.npz", **arrays)
    return folder / "data.npz"


def npy(folder: Path, array: Any) -> Path:
    np.save(folder / "data.npy", array)
    return folder / "data.npy"


def damaged(folder: Path) -> Path:
    """An .npz whose directory is whole and whose data is not."""
    path = npz(folder, x=X)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)
    return path


def empty(folder: Path) -> Path:
    (folder / "empty.npz").write_bytes(b"")
    return folder / "empty.npz"


FILES: list[tuple[Callable[[Path], Path], str]] = [
    (lambda folder: cut(npz(folder, x=X), 0.5), r"data.npz' is no file of numbers, or is damaged"),
    (lambda folder: cut(npy(folder, X), 0.5), r"data.npy' .*ends in the middle of an array"),
    (lambda folder: cut(npy(folder, X), 0.001), r"data.npy' is no file of numbers"),
    (damaged, r"data.npz' is no file of numbers, or is damaged.*write it again"),
    (empty, r"empty.npz' is no file of numbers"),
    (npz, r"data.npz' holds no array"),
    (lambda folder: npz(folder, x=X[:0]), r"'x' in batch 0 .* has shape \[0, 3, 8, 8\]"),
    (lambda folder: npz(folder, x=X[:, :2]), r"shape \[1, 2, 8, 8\], the model takes \[1, 3, 8"),
    (lambda folder: npz(folder, a=X, b=X), r"data.npz' lacks input 'x'.*the model's inputs: x"),
    (lambda folder: npy(folder, np.array([{}], object)), "Python objects"),
    (lambda folder: npy(folder, np.array(["a"])), r"the model takes \[1, 3, 8, 8\]"),
]


@pytest.mark.parametrize(("make", "words"), FILES, ids=range(len(FILES)))
def test_damaged_and_wrong_files(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(GraphoptError, match=words):
        with_data(make(tmp_path))


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.fromarray((X[0].transpose(1, 2, 0) * 50).astype(np.uint8)).save(tmp_path / "b.png")
    cut(tmp_path / "b.png", 0.6)
    with pytest.raises(GraphoptError, match=r"b.png' is no image, or is damaged.*remove it"):
        with_data(tmp_path, images=ImagePreprocessing())


def exhausted() -> Iterator[Any]:
    made = iter([{"x": X[:1]}])
    next(made)
    return made


BATCHES: list[tuple[Any, str]] = [
    (exhausted(), "there is no calibration data"),
    ([{"x": [[1], [2, 3]]}], "'x' in batch 0 .* is no array"),
    ([{"x": None}], r"'x' in batch 0 .* has shape \[\]"),
    ([{"x": X[:1].astype(np.float64) * 1e300}], r"'x' in batch 0 .*infinity \(as float32\)"),
    ([{"x": X[:1].astype(np.complex64)}], "is complex64, the model takes float32"),
    ([{3: X[:1]}], "lacks input 'x'"),
]


@pytest.mark.parametrize(("batches", "words"), BATCHES, ids=[words[:24] for _, words in BATCHES])
def test_batches_that_do_not_fit(batches: Any, words: str) -> None:
    with pytest.raises(GraphoptError, match=words):
        quantized(network(), batches)


def test_an_error_of_the_users_iterable_is_the_users() -> None:
    def broken() -> Iterator[Any]:
        yield {"x": X[:1]}
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError, match="camera unplugged"):
        quantized(network(), broken())


@pytest.mark.parametrize("value", [0.0, 7.0, -1e-42, 1e37])
def test_one_constant_gives_a_model_that_is_right_for_it_and_a_warning(value: float) -> None:
    model, batch = network(), {"x": np.full((1, 3, 8, 8), value, np.float32)}
    done = quantized(model, [batch])
    (warning,) = done.report.warnings
    assert "input 'x' is" in warning
    assert "everywhere in the calibration data" in warning
    exact, found = run(model, batch)["stem_out"], run(done.model.proto, batch)["stem_out"]
    assert np.isfinite(found).all()
    assert signal_to_noise(exact, found) > 35


def branches() -> onnx.ModelProto:
    """A convolution, an If with a convolution in each branch, and a convolution."""
    b = Builder()
    x = b.input("x", 1, 3, 8, 8)
    c = b.conv(x, 3, 4, name="stem")
    positive = b.op("Greater", b.op("ReduceMean", x, keepdims=0), b.value(0.0))
    bodies = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Sigmoid")):
        nodes = [
            helper.make_node("Conv", [c, b.random(4, 4, 1, 1)], [f"{name}_c"], f"{name}_conv"),
            helper.make_node(op, [f"{name}_c"], [f"{name}_o"], f"{name}_act"),
        ]
        out = helper.make_tensor_value_info(f"{name}_o", TensorProto.FLOAT, [1, 4, 8, 8])
        bodies[name] = helper.make_graph(nodes, name, [], [out])
    y = b.op("If", positive, name="branch", **bodies)
    return b.model(b.conv(y, 4, 4, name="head"))


def test_what_is_in_branches_stays_in_float_and_is_listed() -> None:
    model, taken = branches(), {"x": np.abs(X[:1])}
    done = quantized(model, [taken, {"x": -np.abs(X[1:2])}])
    assert [row.node for row in done.report.layers] == ["stem", "head"]
    (row,) = done.report.floats
    assert (row.node, row.reason[:10]) == ("branch", "2 products")
    exact, found = run(model, taken)["head_out"], run(done.model.proto, taken)["head_out"]
    assert signal_to_noise(exact, found) > 30


def test_a_tensor_that_is_never_seen_is_named() -> None:
    b = Builder()
    x = b.input("x", "n", 3, 8, 8)
    chosen = b.op("NonZero", b.op("ReduceMax", x, axes=[1, 2, 3], keepdims=0))
    y = b.op("Gather", x, b.op("Reshape", chosen, b.value([-1], np.int64)), axis=0, name="pick")
    model = b.model(b.conv(y, 3, 4, name="after"))
    assert quantized(model, [{"x": X[:4]}]).report.layers[-1].node == "after"
    with pytest.raises(GraphoptError, match=r"never saw a value of tensor 'pick_out'.*exclude"):
        quantized(model, [{"x": X[:4] * 0}])


def test_operator_sets_that_are_not_known() -> None:
    model = network()
    model.opset_import[0].version = 99
    with pytest.raises(GraphoptError, match=r"operator set 99 .* the newest is"):
        quantized(model, [{"x": X[:1]}])


def result() -> QuantizationResult:
    done = quantized(network(), [{"x": X[:1]}])
    return QuantizationResult(done.model.proto, done.report, done.plan, done.statistics)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/dev/full", "Cannot write /dev/full: it is a device"),
        ("{}/none/a.onnx", "No such file or directory.*folder exists"),
        ("{}", "is a directory"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path: Path, path: str, words: str) -> None:
    done = result()
    with pytest.raises(ArtifactError, match=words):
        done.save(path.format(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    done = result()
    for name, save in (("m.onnx", done.save), ("r.html", done.save_report)):
        (tmp_path / name).write_text("old")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))  # as if no room were left
        try:
            with pytest.raises(ArtifactError, match=f"Cannot write .*{name}.*has room"):
                save(tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / name).read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "r.html"]
