"""The public contract: what users and their programs rely on, from ONNX to a loaded artifact."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphopt
from graphopt import TensorSpec
from graphopt.artifact import bundle
from graphopt.cache import default_cache
from graphopt.errors import ArtifactError, CompileError, InputError, ModelError, OptionError
from graphopt.report import Report
from graphopt.runtime.host import host_arch

Array = np.ndarray[Any, Any]


def reference(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """ONNX Runtime's outputs, optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def agree(actual: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert list(actual) == list(expected)
    for name, ref in expected.items():
        assert actual[name].dtype == ref.dtype
        assert actual[name].shape == ref.shape
        assert np.abs(actual[name] - ref).max() <= 1e-4 * np.abs(ref).max()


def image(seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((1, 3, 12, 12), np.float32)


def batch(rows: int) -> dict[str, Array]:
    rng = np.random.default_rng(rows)
    return {
        "x": rng.standard_normal((rows, 6), np.float32),
        "gain": rng.standard_normal((rows, 1), np.float32),
    }


@pytest.fixture(scope="module")
def cnn(tiny_cnn: onnx.ModelProto) -> graphopt.CompiledModel:
    return graphopt.compile(tiny_cnn, threads=2)


def test_run_gives_named_outputs_that_agree(
    cnn: graphopt.CompiledModel, tiny_cnn: onnx.ModelProto
) -> None:
    x = image()
    expected = reference(tiny_cnn, {"x": x})
    agree(cnn.run({"x": x}), expected)
    agree(cnn(x), expected)
    agree(cnn({"x": x}), expected)


def test_signature(cnn: graphopt.CompiledModel) -> None:
    assert cnn.inputs == (TensorSpec("x", "float32", (1, 3, 12, 12)),)
    assert cnn.outputs == (TensorSpec("y", "float32", (1, 5)),)
    assert cnn.shapes == ({"x": (1, 3, 12, 12)},)


def test_out_is_written_and_results_are_the_callers(cnn: graphopt.CompiledModel) -> None:
    x = image()
    first = cnn.run({"x": x})["y"]
    kept = first.copy()
    y = np.empty((1, 5), np.float32)
    assert cnn.run({"x": image(1)}, out={"y": y})["y"] is y
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(y, kept)


def test_report_accounts_for_the_program(cnn: graphopt.CompiledModel) -> None:
    report = cnn.report
    assert report.shapes == {"x": (1, 3, 12, 12)}
    assert report.threads == 2
    assert report.nodes == 7
    assert 0 < report.groups <= report.operations
    assert report.origins() == {"default": len(report.calls)}
    nodes = {node for call in report.calls for node in call.nodes}
    assert nodes >= {"stem", "mix", "head"}
    assert Report.from_dict(report.to_dict()) == report


def test_profile_sums_to_the_whole(cnn: graphopt.CompiledModel) -> None:
    profile = cnn.profile({"x": image()}, repeats=5)
    spent = sum(row.seconds for row in profile.rows) + profile.outside_seconds
    assert spent == pytest.approx(profile.total_seconds)
    assert [row.site for row in profile.rows] == [call.site for call in cnn.report.calls]


@pytest.mark.parametrize("form", ["path", "str", "bytes", "proto"])
def test_all_forms_of_a_model(tmp_path: Path, dynamic_mlp: onnx.ModelProto, form: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(dynamic_mlp, path)
    source = {"path": path, "str": str(path), "bytes": path.read_bytes(), "proto": dynamic_mlp}
    model = graphopt.compile(source[form], shapes={"x": (2, 6)})
    agree(model.run(batch(2)), reference(dynamic_mlp, batch(2)))


def test_saved_and_loaded_programs_give_the_same_bits(
    cnn: graphopt.CompiledModel, tmp_path: Path
) -> None:
    path = tmp_path / "cnn.gopt"
    cnn.save(path)
    x = image()
    expected = cnn.run({"x": x})["y"]
    for source in (path, str(path), path.read_bytes()):
        loaded = graphopt.load(source)
        np.testing.assert_array_equal(loaded.run({"x": x})["y"], expected)
        assert (loaded.inputs, loaded.outputs) == (cnn.inputs, cnn.outputs)
        assert loaded.report.calls == cnn.report.calls


def test_compiling_twice_saves_equal_bytes(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    for name in ("a", "b"):
        graphopt.compile(tiny_cnn, threads=2).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_open_shapes_compile_per_shape_seen(dynamic_mlp: onnx.ModelProto) -> None:
    model = graphopt.compile(dynamic_mlp)
    assert model.inputs == (
        TensorSpec("x", "float32", (None, 6)),
        TensorSpec("gain", "float32", (None, 1)),
    )
    assert model.outputs == (TensorSpec("y", "float32", (None, 4)),)
    assert model.shapes == ()
    with pytest.raises(OptionError, match="nothing is compiled yet"):
        _ = model.report
    for rows in (2, 5, 2):
        agree(model.run(batch(rows)), reference(dynamic_mlp, batch(rows)))
    assert {shapes["x"] for shapes in model.shapes} == {(2, 6), (5, 6)}
    assert model.report.shapes["x"] == (2, 6)  # the one used last


def test_concurrent_first_calls_compile_once(
    dynamic_mlp: onnx.ModelProto, caplog: pytest.LogCaptureFixture
) -> None:
    model = graphopt.compile(dynamic_mlp)
    start = threading.Barrier(6)

    def call(index: int) -> dict[str, Array]:
        start.wait()
        return model.run(batch(3 + index % 2))

    with caplog.at_level(logging.INFO, "graphopt"), ThreadPoolExecutor(6) as pool:
        results = list(pool.map(call, range(6)))
    for index, result in enumerate(results):
        agree(result, reference(dynamic_mlp, batch(3 + index % 2)))
    assert sum("compiling for" in record.message for record in caplog.records) == 2


def test_specialisations_share_their_weights(dynamic_mlp: onnx.ModelProto, tmp_path: Path) -> None:
    model = graphopt.compile(dynamic_mlp, shapes=[{"x": (1, 6)}, {"x": (7, 6)}])
    assert [shapes["gain"] for shapes in model.shapes] == [(1, 1), (7, 1)]  # "batch" binds both
    model.run(batch(4))  # one more, kept too
    model.save(tmp_path / "m.gopt")
    entries = bundle.load(tmp_path / "m.gopt").manifest.entries
    assert [entry.weights_offset for entry in entries] == [0, 0, 0]
    loaded = graphopt.load(tmp_path / "m.gopt")
    assert [shapes["x"][0] for shapes in loaded.shapes] == [1, 7, 4]
    for rows in (1, 4, 7):
        agree(loaded.run(batch(rows)), reference(dynamic_mlp, batch(rows)))
    with pytest.raises(InputError, match=r"x=1,6.*x=7,6.*x=4,6"):
        loaded.run(batch(2))


def test_saving_without_a_specialisation_names_the_flag(
    dynamic_mlp: onnx.ModelProto, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"shapes=.*--shape"):
        graphopt.compile(dynamic_mlp).save(tmp_path / "m.gopt")
    assert list(tmp_path.iterdir()) == []


def test_other_processors_programs_are_saved_but_not_run(
    tiny_cnn: onnx.ModelProto, tmp_path: Path
) -> None:
    other = "aarch64:cortex-a76" if host_arch() == "x86_64" else "x86_64:x86-64"
    model = graphopt.compile(tiny_cnn, other, threads=1)
    with pytest.raises(OptionError, match=r"compiled for .* this machine is"):
        model.run({"x": image()})
    path, arch = tmp_path / "m.gopt", other.split(":")[0]
    if shutil.which(f"{arch}-linux-gnu-g++"):
        model.save(path)
        with pytest.raises(ArtifactError, match=f"compiled for {arch}"):
            graphopt.load(path)
    else:
        with pytest.raises(CompileError, match=rf"{arch}-linux-gnu-g\+\+"):
            model.save(path)


@pytest.mark.parametrize("target", ["x86_64:x86-64", "x86_64:x86-64-v3", "x86_64:x86-64-v4"])
@pytest.mark.parametrize("threads", [1, 2])
def test_levels_and_thread_counts_agree(
    tiny_cnn: onnx.ModelProto, target: str, threads: int
) -> None:
    if not graphopt.TargetSpec.parse(target).is_host_compatible():
        pytest.skip("this machine lacks the level's features")
    model = graphopt.compile(tiny_cnn, target, threads=threads)
    x = image()
    agree(model.run({"x": x}), reference(tiny_cnn, {"x": x}))


def test_without_a_linker_everything_but_saving_works(
    tiny_cnn: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    model = graphopt.compile(tiny_cnn, cache=True)  # the cache is off, silently
    agree(model.run({"x": image()}), reference(tiny_cnn, {"x": image()}))
    with pytest.raises(CompileError, match="needs a linker"):
        model.save(tmp_path / "m.gopt")
    assert list(tmp_path.iterdir()) == []


def compilations(caplog: pytest.LogCaptureFixture) -> int:
    return sum("found in the compile cache" in record.message for record in caplog.records)


def test_the_cache_finds_what_was_compiled(
    tiny_cnn: onnx.ModelProto,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    x = image()
    with caplog.at_level(logging.INFO, "graphopt"):
        first = graphopt.compile(tiny_cnn, threads=2, cache=True)
        assert compilations(caplog) == 0
        second = graphopt.compile(tiny_cnn, threads=2, cache=True)
        assert compilations(caplog) == 1
        graphopt.compile(tiny_cnn, threads=1, cache=True)
        graphopt.compile(tiny_cnn, threads=2, cache=True, numerics="strict")
        assert compilations(caplog) == 1
    np.testing.assert_array_equal(second.run({"x": x})["y"], first.run({"x": x})["y"])
    first.save(tmp_path / "a")
    second.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert second.report.calls == first.report.calls


def test_damaged_cache_entries_are_ignored_and_replaced(
    tiny_cnn: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path))
    graphopt.compile(tiny_cnn, cache=True)
    (entry,) = default_cache().entries()
    path = tmp_path / f"{entry.key}.gopt"
    whole = path.read_bytes()
    for damage in (b"", whole[:100], whole[:-1], whole[:500] + b"\xff" + whole[501:]):
        path.write_bytes(damage)
        model = graphopt.compile(tiny_cnn, cache=True)
        agree(model.run({"x": image()}), reference(tiny_cnn, {"x": image()}))
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shapes": {"z": (1, 6)}}, "no input of the model"),
        ({"shapes": {"x": (1, 7)}}, "dimension 1 is 6"),
        ({"shapes": {"x": (1, 6, 1)}}, "2 dimensions"),
        ({"shapes": {"x": (-1, 6)}}, "whole number from 0"),
        ({"shapes": {"x": (2**31 - 1, 6)}}, "over 2\\^31"),
        ({"shapes": {"x": (1, 6), "gain": (2, 1)}}, "'batch' is"),
        ({"target": "cpu:cascadlake"}, "'cascadelake'"),
        ({"treads": 2}, "did you mean 'threads'"),
        ({"tuning_log": "no-such-logs"}, "there is no folder"),
        ({"quantization": "int9"}, "unknown quantization"),
        ({"quantization": "int8"}, "there is no calibration data"),
        ({"calibration": []}, "for quantization"),
        ({"threads": 0}, "threads"),
    ],
)
def test_wrong_options_are_refused(
    dynamic_mlp: onnx.ModelProto, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        graphopt.compile(dynamic_mlp, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None}, "no value is given for input 'x'"),
        ({"xx": np.zeros((2, 6), np.float32)}, "no input named 'xx'"),
        ({"x": np.zeros((2, 6), np.float64)}, "float64"),
        ({"x": np.zeros((2, 6), ">f4")}, "byte order|>f4"),
        ({"x": np.zeros((2, 7), np.float32)}, "dimension 1 is 6"),
        ({"x": np.zeros((0, 6), np.float32)}, "'batch' is 0"),
        ({"x": np.zeros((3, 6), np.float32)}, "'batch' is"),
        ({"x": "text"}, "dimension"),
    ],
)
def test_wrong_inputs_are_refused(
    dynamic_mlp: onnx.ModelProto, change: dict[str, Any], words: str
) -> None:
    model = graphopt.compile(dynamic_mlp, shapes={"x": (2, 6)})
    inputs = {k: v for k, v in {**batch(2), **change}.items() if v is not None}
    with pytest.raises(InputError, match=words):
        model.run(inputs)
    agree(model.run(batch(2)), reference(dynamic_mlp, batch(2)))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"not an onnx file", "not an ONNX"), (None, "no file")],
)
def test_unreadable_models_are_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        graphopt.compile(path)
    with pytest.raises(ModelError, match="directory"):
        graphopt.compile(tmp_path)


def test_non_finite_inputs_run(dynamic_mlp: onnx.ModelProto) -> None:
    model = graphopt.compile(dynamic_mlp, shapes={"x": (2, 6)}, numerics="strict")
    inputs = batch(2)
    inputs["x"][0, 0] = np.nan
    inputs["gain"][1, 0] = np.inf
    y, ref = model.run(inputs)["y"], reference(dynamic_mlp, inputs)["y"]
    assert np.isnan(y[0]).all() == np.isnan(ref[0]).all()
    np.testing.assert_array_equal(np.isfinite(y[1]), np.isfinite(ref[1]))


def test_verify_compares_with_onnx_runtime(dynamic_mlp: onnx.ModelProto, tmp_path: Path) -> None:
    result = graphopt.verify(dynamic_mlp, shapes={"x": (3, 6)})
    assert result.ok
    assert [check.name for check in result.outputs] == ["y"]
    assert result.outputs[0].error <= 1e-4
    other = onnx.ModelProto()
    other.CopyFrom(dynamic_mlp)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    compiled = graphopt.compile(dynamic_mlp, shapes={"x": (3, 6)})
    assert graphopt.verify(compiled).ok
    assert not graphopt.verify(compiled, other).ok
    compiled.save(tmp_path / "m.gopt")
    with pytest.raises(OptionError, match="--against"):
        graphopt.verify(tmp_path / "m.gopt")
    assert graphopt.verify(tmp_path / "m.gopt", dynamic_mlp).ok


def test_external_data_is_found_beside_the_model(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(tiny_cnn)
    path = tmp_path / "model.onnx"
    onnx.save(copy, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    model = graphopt.compile(path)
    agree(model.run({"x": image()}), reference(tiny_cnn, {"x": image()}))
    assert graphopt.verify(path).ok
    assert graphopt.verify(model).ok
    (tmp_path / "data.bin").unlink()
    with pytest.raises(ModelError, match=r"data\.bin"):
        graphopt.compile(path)


def test_inspect_says_what_is_open(dynamic_mlp: onnx.ModelProto) -> None:
    found = graphopt.inspect(dynamic_mlp)
    assert found.unbound == ("x", "gain")
    assert found.compiles
    assert graphopt.inspect(dynamic_mlp, shapes={"x": (2, 6)}).unbound == ()
    with pytest.raises(OptionError, match="unknown target"):
        graphopt.inspect(dynamic_mlp, "toaster")


def test_public_names() -> None:
    for name in graphopt.__all__:
        assert getattr(graphopt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = graphopt.nonsense  # type: ignore[attr-defined]
