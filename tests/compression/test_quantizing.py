"""quantize() as users call it: with our own compiler running the calibration data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantization_cases import Builder, feeds, quantized, run

import graphopt
from graphopt.errors import ArtifactError, OptionError


def test_a_model_is_quantized_saved_compiled_and_explained(
    tiny_cnn: onnx.ModelProto, tmp_path: Path
) -> None:
    data = feeds(tiny_cnn)
    result = graphopt.quantize(tiny_cnn, data, threads=1)
    assert isinstance(result, graphopt.QuantizationResult)
    result.save(tmp_path / "q.onnx")
    assert onnx.load(tmp_path / "q.onnx") == result.model
    found = graphopt.compile(tmp_path / "q.onnx", threads=1).run(data[0])
    exact = run(tiny_cnn, data[0])
    assert np.abs(found["y"] - exact["y"]).max() < 0.1 * np.abs(exact["y"]).max()
    assert result.report.outputs["y"] > 20
    result.save_report(tmp_path / "r.html")
    result.save_report(tmp_path / "r.json")
    assert result.report.headline in (tmp_path / "r.json").read_text()
    with pytest.raises(OptionError, match=r"neither \.html nor \.json"):
        result.save_report(tmp_path / "r.txt")
    with pytest.raises(ArtifactError):
        result.save(tmp_path / "none" / "q.onnx")


def test_our_runs_and_onnx_runtimes_give_the_same_plan(tiny_cnn: onnx.ModelProto) -> None:
    data = feeds(tiny_cnn)
    ours = graphopt.quantize(tiny_cnn, data, threads=1)
    theirs = quantized(tiny_cnn, data)
    for a, b in zip(ours.plan.activations, theirs.plan.activations, strict=True):
        assert (a.tensor, a.zero) == (b.tensor, b.zero)
        assert a.scale == pytest.approx(b.scale, rel=1e-5)
    for name, value in theirs.report.outputs.items():
        assert ours.report.outputs[name] == pytest.approx(value, abs=1)


def test_random_data_is_used_only_when_asked_for_and_said(dynamic_mlp: onnx.ModelProto) -> None:
    with pytest.raises(OptionError, match="there is no calibration data"):
        graphopt.quantize(dynamic_mlp)
    with pytest.raises(OptionError, match="unbound dimensions"):
        graphopt.quantize(dynamic_mlp, "random")
    result = graphopt.quantize(dynamic_mlp, "random", shapes={"x": (4, 6)}, threads=1)
    assert "random numbers" in result.report.data
    assert any("random" in warning for warning in result.report.warnings)


def test_compile_quantizes(tiny_cnn: onnx.ModelProto, dynamic_mlp: onnx.ModelProto) -> None:
    data = feeds(tiny_cnn)
    program = graphopt.compile(tiny_cnn, quantization="int8", calibration=data, threads=1)
    assert program.quantization is not None
    assert "lost" in program.quantization.headline
    expected = run(graphopt.quantize(tiny_cnn, data, threads=1).model, data[0])["y"]
    assert np.abs(program.run(data[0])["y"] - expected).max() < 0.05 * np.abs(expected).max()
    assert graphopt.compile(tiny_cnn, threads=1).quantization is None
    config = graphopt.QuantizationConfig(activations=None, weight_bits=4)
    open_program = graphopt.compile(dynamic_mlp, quantization=config, threads=1)
    x = {"x": np.ones((3, 6), np.float32), "gain": np.ones((3, 1), np.float32)}
    assert open_program.run(x)["y"].shape == (3, 4)


def shaped_by_an_input() -> tuple[onnx.ModelProto, str]:
    b = Builder()
    x = b.input("x", "batch", 12)
    b.inputs.append(onnx.helper.make_tensor_value_info("size", onnx.TensorProto.INT64, [2]))
    y = b.op("MatMul", b.op("Reshape", x, "size"), b.random(6, 4), name="product")
    return b.model(y), y


def test_constants_of_compile_are_fed_to_calibration() -> None:
    model, y = shaped_by_an_input()
    data = [{"x": np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)}]
    program = graphopt.compile(
        model, quantization="int8", calibration=data, constants={"size": [6, 6]},
        shapes={"x": (3, 12)}, threads=1,
    )  # fmt: skip
    assert program.quantization is not None
    assert program.run({**data[0], "size": np.int64([6, 6])})[y].shape == (6, 4)


def test_constants_and_shapes_are_bound(tmp_path: Path) -> None:
    model, y = shaped_by_an_input()
    data = [{"x": np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)}]
    result = graphopt.quantize(
        model, data, shapes={"x": (3, 12)}, constants={"size": [6, 6]}, threads=1
    )
    assert [value.name for value in result.model.graph.input] == ["x"]
    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert run(result.model, data[0])[y].shape == (6, 4)


def test_external_weights_end_inside(tmp_path: Path) -> None:
    b = Builder()
    x = b.op("Gemm", b.input("x", 2, 64), b.random(64, 64), b.random(64))
    y = b.op("Add", b.op("Exp", x), b.random(2, 64))
    model = b.model(y)
    data = feeds(model)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    result = graphopt.quantize(tmp_path / "m.onnx", data, threads=1)
    result.save(tmp_path / "elsewhere.onnx")
    (tmp_path / "m.onnx").unlink()
    assert run(onnx.load(tmp_path / "elsewhere.onnx"), data[0])[y].shape == (2, 64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"metod": "mse"}, "did you mean 'method'"),
        ({"config": "int5"}, "unknown quantization 'int5'"),
        ({"weight_bits": 1}, "weight_bits must be a whole number from 2 to 8"),
        ({"weight_bits": 9}, "from 2 to 8"),
        ({"percentile": 10}, "percentile must be a number from 50 to 100"),
        ({"exclude": "Conv"}, "exclude must be a list of names"),
        ({"exclude": ["Covn"]}, "no node or operator"),
        ({"weights": "k-means"}, "for weights only"),
        ({"granularity": "group"}, "for weights only"),
        ({"weight_symmetric": False}, "for weights only"),
        ({"equalize": 1}, "must be True or False"),
        ({"images": graphopt.ImagePreprocessing()}, "the data is no folder"),
        ({"shapes": [{"x": (1, 3, 12, 12)}] * 1 + [{}]}, "one set of shapes"),
    ],
)
def test_wrong_options(tiny_cnn: onnx.ModelProto, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        graphopt.quantize(tiny_cnn, feeds(tiny_cnn, 1), **options)


def test_a_config_survives_json() -> None:
    config = graphopt.QuantizationConfig(
        method="mse", exclude=("a", "b"), weight_bits=5, activations="int8"
    )
    assert graphopt.QuantizationConfig.from_json(config.to_json()) == config
    assert graphopt.QuantizationConfig.of(config, weight_bits=6).weight_bits == 6
