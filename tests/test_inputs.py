"""Inputs and models at the edge: empty, enormous, not finite, half precision, weights outside."""

from __future__ import annotations

import resource
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import InputError, ModelError, OptionError

Array = np.ndarray[Any, Any]
MODELS = Path(__file__).parents[1] / "benchmarks/models"
FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def info(name: str, kind: int, shape: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Any = ()) -> Any:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def reference(source: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    blob = str(source) if isinstance(source, Path) else source.SerializeToString()
    session = ort.InferenceSession(blob, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def agree(found: Mapping[str, Array], expected: Mapping[str, Array], limit: float = 1e-4) -> None:
    assert list(found) == list(expected)
    for name, ref in expected.items():
        assert (found[name].dtype, found[name].shape) == (ref.dtype, ref.shape)
        wide = ref.astype(np.float64)
        assert np.abs(found[name] - wide).max() <= limit * np.abs(wide).max()


# Zero-size dimensions ---------------------------------------------------------------------------


def test_empty_inputs_give_empty_outputs(dynamic_mlp: onnx.ModelProto) -> None:
    inputs = {"x": np.zeros((0, 6), np.float32), "gain": np.zeros((0, 1), np.float32)}
    expected = reference(dynamic_mlp, inputs)
    got = graphopt.compile(dynamic_mlp).run(inputs)
    assert {n: v.shape for n, v in got.items()} == {n: v.shape for n, v in expected.items()}
    with pytest.raises(InputError, match="dimension 1 is 6"):
        graphopt.compile(dynamic_mlp).run({**inputs, "x": np.zeros((0, 0), np.float32)})


def test_empty_values_inside_a_model_do_no_harm() -> None:
    """Exporters leave such nodes now and then."""
    weights = [numpy_helper.from_array(np.array([v]), n) for n, v in (("s", 2), ("e", 2), ("a", 1))]
    nodes = [
        helper.make_node("Slice", ["x", "s", "e", "a"], ["empty"], "nothing"),
        helper.make_node("Concat", ["x", "empty"], ["y"], axis=1),
    ]
    made = model(nodes, [info("x", FLOAT, [2, 4])], [info("y", FLOAT, [2, 4])], weights)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(graphopt.compile(made).run({"x": x})["y"], x)


# Enormous dimensions ----------------------------------------------------------------------------


def test_enormous_inputs_are_refused(dynamic_mlp: onnx.ModelProto) -> None:
    with pytest.raises(OptionError, match=r"over 2\^31 elements"):
        graphopt.compile(dynamic_mlp, shapes={"x": (2**31 - 1, 6)})
    with pytest.raises(OptionError, match="not a whole number from 0 to"):
        graphopt.compile(dynamic_mlp, shapes={"x": (2**40, 6)})
    # A view of one row that claims to be many: nothing is read before it is refused.
    x = np.broadcast_to(np.zeros((1, 6), np.float32), (2**30, 6))
    gain = np.broadcast_to(np.zeros((1, 1), np.float32), (2**30, 1))
    with pytest.raises(InputError, match=r"over 2\^31 elements"):
        graphopt.compile(dynamic_mlp).run({"x": x, "gain": gain})


OUTER = model(
    [
        helper.make_node("MatMul", ["x", "z"], ["y"], "outer"),
        helper.make_node("ReduceMax", ["y"], ["m"], "top"),
    ],
    [info("x", FLOAT, ["n", 1]), info("z", FLOAT, [1, "n"])],
    [info("m", FLOAT, None)],
)


@pytest.mark.parametrize("kind", ["inside", "folded"])
def test_enormous_values_inside_a_model_are_refused_before_allocating(
    kind: str, tmp_path: Path
) -> None:
    """In a process that may not have 3 GiB, so that a lazy allocation would fail."""
    path = tmp_path / "m.onnx"
    if kind == "inside":
        onnx.save(OUTER, path)
        shapes = {"x": (2**17, 1)}
    else:
        size = numpy_helper.from_array(np.array([2**17, 2**17]), "size")
        nodes = [
            helper.make_node("ConstantOfShape", ["size"], ["big"], "filled"),
            helper.make_node("ReduceMax", ["big"], ["top"], "top", keepdims=0),
            helper.make_node("Add", ["x", "top"], ["y"], "sum"),
        ]
        onnx.save(model(nodes, [info("x", FLOAT, [1])], [info("y", FLOAT, [1])], [size]), path)
        shapes = {}
    script = (
        "import graphopt, sys\n"
        "try:\n"
        f"    graphopt.compile({str(path)!r}, shapes={shapes!r} or None)\n"
        "except graphopt.GraphoptError as error:\n"
        "    print('refused:', error)\n"
    )
    limit = 3 << 30
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.stdout.startswith("refused:"), done.stdout + done.stderr[-2000:]
    assert "elements" in done.stdout or "memory" in done.stdout


# Values that are not finite ---------------------------------------------------------------------


@pytest.mark.parametrize("numerics", ["default", "strict"])
def test_values_that_are_not_finite_pass_through(tiny_cnn: onnx.ModelProto, numerics: str) -> None:
    compiled = graphopt.compile(tiny_cnn, numerics=numerics, threads=2)
    for bad in (np.nan, np.inf, -np.inf):
        x = np.random.default_rng(0).standard_normal((1, 3, 12, 12), np.float32)
        x[0, 1, 5, 5] = bad
        found, expected = compiled.run({"x": x})["y"], reference(tiny_cnn, {"x": x})["y"]
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


def test_elementwise_operators_keep_values_that_are_not_finite() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["relu"]),
        helper.make_node("Exp", ["x"], ["exp"]),
        helper.make_node("Sqrt", ["x"], ["sqrt"]),
        helper.make_node("Clip", ["x", "lo", "hi"], ["clip"]),
        helper.make_node("Tanh", ["x"], ["tanh"]),
        helper.make_node("Sigmoid", ["x"], ["sigmoid"]),
        helper.make_node("ReduceMax", ["x"], ["max"], keepdims=0),
    ]
    outputs = [info(node.output[0], FLOAT, None) for node in nodes]
    bounds = [numpy_helper.from_array(np.float32(v), n) for n, v in (("lo", 0), ("hi", 6))]
    made = model(nodes, [info("x", FLOAT, [8])], outputs, bounds)
    x = {"x": np.array([np.inf, -np.inf, 0, -0.0, 1, -1, 88, -104], np.float32)}
    found, expected = graphopt.compile(made).run(x), reference(made, x)
    for name, ref in expected.items():
        np.testing.assert_allclose(found[name], ref, rtol=1e-5, atol=1e-30, err_msg=name)
    nan = graphopt.compile(made).run({"x": np.full(8, np.nan, np.float32)})
    for name in ("exp", "sqrt", "tanh", "sigmoid"):
        assert np.isnan(nan[name]).all(), name


# Half precision ---------------------------------------------------------------------------------


def test_half_precision_inputs_and_outputs() -> None:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array((rng.standard_normal((6, 4)) / 3).astype(np.float16), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Cast", ["k"], ["c"], to=HALF),
        helper.make_node("Mul", ["r", "c"], ["y"]),
    ]
    inputs = [info("x", HALF, ["n", 6]), info("k", FLOAT, [4])]
    made = model(nodes, inputs, [info("y", HALF, ["n", 4]), info("r", HALF, ["n", 4])], [weight])
    compiled = graphopt.compile(made)
    assert [spec.dtype for spec in compiled.inputs] == ["float16", "float32"]
    feed = {
        "x": rng.standard_normal((5, 6)).astype(np.float16),
        "k": rng.standard_normal(4, np.float32),
    }
    agree(compiled.run(feed), reference(made, feed), 2e-3)
    with pytest.raises(InputError, match=r"float16.*astype"):
        graphopt.compile(made, shapes={"x": (5, 6)}).run({**feed, "x": feed["x"].astype("f4")})


# Weights outside the model's file ---------------------------------------------------------------


def external(path: Path, size: int, data: Path, offset: int = 0) -> None:
    """y = relu(x · w) with w float32 [size, 8] in `data`; written without ever holding w."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=[size, 8], data_location=1)
    for key, value in (("location", data.name), ("offset", offset), ("length", size * 32)):
        weight.external_data.add(key=key, value=str(value))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    made = model(nodes, [info("x", FLOAT, [1, size])], [info("y", FLOAT, [1, 8])], [weight])
    path.write_bytes(made.SerializeToString())


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((300, 8), np.float32)
    data = tmp_path / "weights.bin"
    data.write_bytes(bytes(64) + values.tobytes())
    external(tmp_path / "m.onnx", 300, data, offset=64)
    x = {"x": np.random.default_rng(1).standard_normal((1, 300), np.float32)}
    compiled = graphopt.compile(tmp_path / "m.onnx")
    agree(compiled.run(x), reference(tmp_path / "m.onnx", x))
    compiled.save(tmp_path / "m.gopt")
    blob = (tmp_path / "m.onnx").read_bytes()
    data.unlink()
    agree(graphopt.load(tmp_path / "m.gopt").run(x), {"y": np.maximum(x["x"] @ values, 0)})
    with pytest.raises(ModelError, match=r"weights\.bin"):
        graphopt.compile(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no folder is known"):
        graphopt.compile(blob)


@pytest.mark.slow
def test_weights_over_two_gigabytes(tmp_path: Path) -> None:
    size = (2**31 + 2**20) // 32
    data = tmp_path / "weights.bin"
    with data.open("wb") as file:  # sparse: zeros but for the last rows
        file.seek((size - 4) * 32)
        file.write(np.arange(32, dtype=np.float32).tobytes())
    external(tmp_path / "m.onnx", size, data)
    compiled = graphopt.compile(tmp_path / "m.onnx")
    x = np.ones((1, size), np.float32)
    expected = np.arange(32, dtype=np.float32).reshape(4, 8).sum(axis=0, keepdims=True)
    np.testing.assert_allclose(compiled.run({"x": x})["y"], expected)
    compiled.save(tmp_path / "m.gopt")
    np.testing.assert_allclose(graphopt.load(tmp_path / "m.gopt").run({"x": x})["y"], expected)


# A batch that changes ---------------------------------------------------------------------------


def test_a_network_with_a_changing_batch(tmp_path: Path) -> None:
    materialize = runpy.run_path(str(MODELS / "materialize.py"))["materialize"]
    made = materialize(MODELS / "cnn_dynamic.onnx")
    (spec,) = graphopt.compile(made).inputs
    assert spec.shape == (None, 3, 96, 96)
    compiled = graphopt.compile(made, shapes=[{spec.name: (n, 3, 96, 96)} for n in (1, 2)])
    images = np.random.default_rng(0).standard_normal((3, 3, 96, 96), np.float32)
    compiled.save(tmp_path / "m.gopt")
    loaded = graphopt.load(tmp_path / "m.gopt")
    for count in (1, 2, 3, 1):
        feed = {spec.name: images[:count]}
        expected = reference(made, feed)
        agree(compiled.run(feed), expected)
        if count < 3:
            agree(loaded.run(feed), expected)
    with pytest.raises(InputError, match=r"it has: .*=1,3,96,96; .*=2,3,96,96"):
        loaded.run({spec.name: images})
    assert len(compiled.shapes) == 3
