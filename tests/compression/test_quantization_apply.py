"""QDQ models: valid, the same in every runtime, with names kept and integers inside."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import numpy_helper
from quantization_cases import Builder, feeds, quantized, run

import graphopt
from graphopt.compression.quantization.apply import apply
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.scheme import signal_to_noise
from graphopt.errors import ModelError, OptionError
from graphopt.frontend.load import load_model


def network(opset: int = 17, batch: int = 2) -> onnx.ModelProto:
    """Convolutions of all kinds, residuals, squeeze-and-excite, concat, and a head."""
    b = Builder(opset)
    x = b.op("Relu", b.conv(b.input("x", batch, 3, 12, 12), 3, 8, name="stem"))
    deep = b.conv(b.op("Relu", b.conv(x, 8, 8, group=8, name="depthwise")), 8, 8, 1, name="point")
    x = b.op("Relu", b.op("Add", deep, x))
    gate = b.op("HardSigmoid", b.conv(b.op("GlobalAveragePool", x), 8, 8, 1, name="gate"))
    x = b.op("Mul", x, gate)
    left = b.conv(x, 8, 4, group=2, bias=False, name="grouped")
    right = b.op("MaxPool", b.conv(x, 8, 4, 1, name="right"), kernel_shape=[3, 3], pads=[1] * 4)
    x = b.op("Concat", left, right, axis=1)
    sums = b.conv(x, 8, 6, name="last")
    x = b.op("Mul", sums, b.op("Sigmoid", sums))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    y = b.op("Gemm", x, b.random(5, 6), b.random(5, scale=0.3), transB=1, name="head")
    return b.model(y)


def wave(batch: int = 2) -> onnx.ModelProto:
    """One-dimensional convolutions, then a product of three axes."""
    b = Builder()
    x = b.input("x", batch, 3, 20)
    x = b.op("Conv", x, b.random(6, 3, 5), b.random(6), pads=[2, 2], name="conv1d")
    x = b.op("Transpose", b.op("LeakyRelu", x, alpha=0.2), perm=[0, 2, 1])
    y = b.op("Add", b.op("MatMul", x, b.random(6, 4), name="product"), b.random(4))
    return b.model(y)


@pytest.mark.parametrize("model", [network(), network(11), wave()], ids=["cnn", "old", "wave"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activations": "int8"},
        {"activations": "int8", "activation_symmetric": True, "method": "mse"},
        {"weight_bits": 7, "granularity": "tensor"},
    ],
    ids=["default", "int8", "symmetric", "seven"],
)
def test_every_runtime_computes_the_same(model: onnx.ModelProto, options: dict[str, Any]) -> None:
    data = feeds(model)
    done = quantized(model, data, **options)
    proto = done.model.proto
    onnx.checker.check_model(proto, full_check=True)
    name = proto.graph.output[0].name
    exact = run(model, data[0])[name]
    plain = run(proto, data[0])[name]
    assert signal_to_noise(exact, plain) > 22
    others = {
        "optimised": run(proto, data[0], optimised=True)[name],
        "graphopt": graphopt.compile(proto, threads=1).run(data[0])[name],
        "openvino": next(
            iter(
                openvino.Core()
                .compile_model(
                    openvino.Core().read_model(proto.SerializeToString()),
                    "CPU",
                    {"INFERENCE_PRECISION_HINT": "f32"},
                )(data[0])
                .values()
            )
        ),
    }
    for runtime, found in others.items():
        # A value near the middle of two steps may be rounded either way: nothing else differs.
        noise = signal_to_noise(plain, found)
        assert noise > 8 + signal_to_noise(exact, plain), runtime


def test_names_are_kept_and_integers_are_inside() -> None:
    model = network()
    done = quantized(model, feeds(model))
    proto = done.model.proto
    assert {n.name for n in model.graph.node} <= {n.name for n in proto.graph.node}
    assert {o for n in model.graph.node for o in n.output} <= {
        o for n in proto.graph.node for o in n.output
    }
    assert [v.name for v in proto.graph.input] == ["x"]
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weights = {name: a for name, a in stored.items() if a.ndim > 1 and name.endswith("_quantized")}
    assert len(weights) == 8
    for array in weights.values():
        assert array.dtype == np.int8
        assert np.abs(array.astype(int)).max() == 127
    assert not [name for name, a in stored.items() if a.ndim > 1 and a.dtype == np.float32]
    assert done.report.bytes_after < 0.5 * done.report.bytes_before


def test_a_float_reader_of_a_float_tensor_keeps_reading_it() -> None:
    b = Builder()
    x = b.op("Softmax", b.input("x", 2, 3, 8, 8), axis=1)
    product = b.conv(x, 3, 3, name="conv")
    model = b.model(b.op("Exp", x, name="exact"), product)
    done = quantized(model, feeds(model))
    nodes = {node.name: node for node in done.model.proto.graph.node}
    assert nodes["exact"].input[0] == x
    assert nodes["conv"].input[0] == f"{x}_dequantized"


def test_what_an_integer_kernel_writes_exists_in_8_bits_only() -> None:
    b = Builder()
    x = b.conv(b.input("x", 2, 3, 8, 8), 3, 3, name="first")
    model = b.model(b.op("Softmax", x, name="float"), b.conv(x, 3, 3, name="second"))
    done = quantized(model, feeds(model))
    nodes = {node.name: node for node in done.model.proto.graph.node}
    assert nodes["float"].input[0] == nodes["second"].input[0] == f"{x}_dequantized"


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_integer_inputs_and_outputs(dtype: str) -> None:
    model = network()
    data = feeds(model)
    done = quantized(model, data, io_type=dtype, activations=dtype)
    proto = done.model.proto
    onnx.checker.check_model(proto, full_check=True)
    facts = json.loads({p.key: p.value for p in proto.metadata_props}["graphopt.io"])
    name = model.graph.output[0].name
    assert set(facts) == {"x", name}
    x, bounds = facts["x"], np.iinfo(dtype)
    steps = np.rint(data[0]["x"] / np.float32(x["scale"])) + x["zero_point"]
    found = run(proto, {"x": np.clip(steps, bounds.min, bounds.max).astype(dtype)})[name]
    assert found.dtype == dtype
    y = facts[name]
    numbers = (found.astype(np.float32) - y["zero_point"]) * np.float32(y["scale"])
    assert signal_to_noise(run(model, data[0])[name], numbers) > 20
    with pytest.raises(OptionError, match="needs activations in 8 bits"):
        quantized(model, data, io_type=dtype, activations=None)


WEIGHT_ONLY: list[tuple[dict[str, Any], float, float]] = [
    ({}, 38, 0.3),
    ({"weight_bits": 4}, 15, 0.25),
    ({"config": "int4-weights", "group_size": 4}, 20, 0.5),
    ({"weight_bits": 3, "weights": "k-means"}, 8, 0.4),
    ({"weight_bits": 6, "weights": "k-means"}, 26, 0.6),
    ({"weight_bits": 4, "weights": "power-of-two"}, 8, 0.4),
    ({"weights": "float16"}, 65, 0.55),
    ({"weights": "bfloat16"}, 45, 0.55),
]


@pytest.mark.parametrize(("options", "quality", "size"), WEIGHT_ONLY)
def test_weights_only(options: dict[str, Any], quality: float, size: float) -> None:
    b = Builder()
    x = b.op("Relu", b.op("Gemm", b.input("x", 4, 33), b.random(64, 33), b.random(64), transB=1))
    x = b.op("MatMul", x, b.random(64, 48))
    model = b.model(b.op("MatMul", b.op("Tanh", x), b.random(48, 10)))
    data = feeds(model)
    done = quantized(model, data, **{"activations": None, **options})
    proto = done.model.proto
    onnx.checker.check_model(proto, full_check=True)
    assert not done.plan.activations
    name = model.graph.output[0].name
    exact, found = run(model, data[0])[name], run(proto, data[0])[name]
    assert signal_to_noise(exact, found) > quality
    # ONNX Runtime's own fusion of such products rounds the activations to 8 bits as well.
    assert signal_to_noise(found, run(proto, data[0], optimised=True)[name]) > 25
    compiled = graphopt.compile(proto, threads=1).run(data[0])[name]
    np.testing.assert_allclose(compiled, found, atol=2e-4)
    assert done.report.bytes_after < size * done.report.bytes_before
    # Without data, the same model comes out.
    again = quantized(model, None, **{"activations": None, **options})
    assert again.model.proto.SerializeToString() == proto.SerializeToString()
    assert again.report.outputs == {}


def test_shared_weights_are_stored_once() -> None:
    b = Builder()
    weight = b.random(3, 3, 1, 1)
    x = b.op("Conv", b.op("Relu", b.op("Conv", b.input("x", 1, 3, 4, 4), weight)), weight)
    model = b.model(x)
    proto = quantized(model, feeds(model)).model.proto
    assert len([t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8]) == 2
    onnx.checker.check_model(proto, full_check=True)


def test_dead_channels_and_huge_biases() -> None:
    b = Builder()
    weight = b.rng.standard_normal((4, 3, 1, 1)).astype(np.float32)
    weight[1] = 0
    weight[2] *= 1e-9
    bias = b.value([0.5, 0.25, 1e3, 0.0])
    x = b.op("Conv", b.input("x", 1, 3, 4, 4), b.value(weight), bias, name="conv")
    model = b.model(x)
    data = feeds(model)
    proto = quantized(model, data).model.proto
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    scales = [array for name, array in stored.items() if name.endswith("_scale")]
    assert all((array > 0).all() and np.isfinite(array).all() for array in scales)
    exact, found = run(model, data[0])[x], run(proto, data[0])[x]
    np.testing.assert_allclose(found[:, 1], 0.25, rtol=1e-6)
    np.testing.assert_allclose(found[:, 2], 1e3, rtol=1e-6)
    assert signal_to_noise(exact[:, [0, 3]], found[:, [0, 3]]) > 35
    np.testing.assert_allclose(run(proto, data[0], optimised=True)[x], found, rtol=0.02, atol=0.05)


def test_a_tensor_that_is_always_zero() -> None:
    b = Builder()
    x = b.op("Mul", b.input("x", 1, 3, 4, 4), b.value(0.0))
    model = b.model(b.conv(x, 3, 4, name="conv"))
    data = feeds(model)
    done = quantized(model, data)
    exact, found = run(model, data[0])["conv_out"], run(done.model.proto, data[0])["conv_out"]
    np.testing.assert_allclose(found, exact, atol=2e-5)
    assert (run(done.model.proto, {"x": data[0]["x"] * np.float32(1e6)})["conv_out"] == found).all()


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    b = Builder()
    weight = np.ones((4, 3, 1, 1), np.float32)
    weight[0, 0] = np.nan
    model = b.model(b.op("Conv", b.input("x", 1, 3, 4, 4), b.value(weight), name="conv"))
    with pytest.raises(ModelError, match="NaN"):
        quantized(model, None, activations=None)


def test_a_plan_survives_json_and_is_refused_for_another_model() -> None:
    model = network()
    done = quantized(model, feeds(model))
    again = Plan.from_json(done.plan.to_json())
    assert again.to_json() == done.plan.to_json()
    applied = apply(done.float_model, again).proto
    assert applied.SerializeToString() == done.model.proto.SerializeToString()
    with pytest.raises(ModelError, match="for another model: this one has no"):
        apply(load_model(wave()), again)


def test_open_dimensions_stay_open() -> None:
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", "batch", 3, "rows", 8), 3, 4, name="conv"))
    model = b.model(b.conv(x, 4, 4, name="second"))
    data = [
        {"x": np.random.default_rng(k).standard_normal((1 + k, 3, 4 + k, 8)).astype(np.float32)}
        for k in range(3)
    ]
    proto = quantized(model, data).model.proto
    onnx.checker.check_model(proto, full_check=True)
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, dims[2].dim_param) == ("batch", "rows")
    assert run(proto, {"x": np.zeros((5, 3, 9, 8), np.float32)})["second_out"].shape == (5, 4, 9, 8)
