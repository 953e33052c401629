"""The canonical float model: newer operator set, folded affine operators, the same function."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from quantization_cases import Builder, feeds, run

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.pipeline import float_form
from graphopt.errors import ModelError
from graphopt.frontend.load import load_model


def form(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    config = QuantizationConfig.of(**options)  # type: ignore[arg-type]
    return float_form(load_model(model), config)[1].proto


def assert_same(model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    onnx.checker.check_model(other, full_check=True)
    for batch in feeds(model, 2):
        first, second = run(model, batch), run(other, batch)
        for name, value in first.items():
            np.testing.assert_allclose(second[name], value, rtol=1e-4, atol=1e-5)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def batch_norm(b: Builder, x: str, channels: int) -> str:
    variance = b.value(b.rng.uniform(0.2, 2, channels))
    return b.op("BatchNormalization", x, *(b.random(channels) for _ in range(3)), variance)


@pytest.mark.parametrize("bias", [True, False])
def test_affine_operators_behind_a_convolution_are_folded(bias: bool) -> None:
    b = Builder()
    x = b.conv(b.input("x", 2, 3, 8, 8), 3, 6, bias=bias, group=3, name="conv")
    x = b.op("Add", x, b.random(1, 6, 1, 1))
    x = batch_norm(b, x, 6)
    x = b.op("Sub", b.op("Div", x, b.value(3.0)), b.random(6, 1, 1))
    x = b.op("Mul", b.value([2.0]), x)
    y = b.op("Relu", x)
    model = b.model(y)
    found = form(model)
    assert kinds(found) == ["Conv", "Relu"]
    assert found.graph.node[0].name == "conv"
    assert found.graph.node[0].output[0] == x
    assert_same(model, found)


def test_what_is_not_per_channel_or_read_elsewhere_stays() -> None:
    b = Builder()
    x = b.conv(b.input("x", 1, 3, 8, 8), 3, 4, name="conv")
    y = b.op("Add", x, b.random(8))  # per column
    z = b.op("Mul", b.op("Sub", b.value(1.0), b.conv(x, 4, 4)), b.value(2.0))
    assert kinds(form(b.model(y, z))) == ["Conv", "Add", "Conv", "Sub", "Mul"]


def test_gemm_takes_its_factors_and_a_batch_normalisation() -> None:
    b = Builder()
    x = b.op("Gemm", b.input("x", 3, 5), b.random(4, 5), b.random(1, 4), transB=1, alpha=0.5,
             beta=2.0, name="gemm")  # fmt: skip
    x = batch_norm(b, x, 4)
    y = b.op("Gemm", x, b.random(4, 2), b.value(1.5), name="second")
    model = b.model(y)
    found = form(model)
    assert kinds(found) == ["Gemm", "Gemm"]
    attributes = [item.name for node in found.graph.node for item in node.attribute]
    assert attributes == ["transB"]
    assert_same(model, found)


def test_copies_go() -> None:
    b = Builder()
    x = b.op("Identity", b.conv(b.op("Identity", b.input("x", 1, 3, 4, 4)), 3, 4))
    y = b.op("Dropout", b.op("Relu", x))
    z = b.op("Identity", b.op("Add", y, b.value(1.0)))
    model = b.model(z)
    found = form(model)
    assert kinds(found) == ["Conv", "Relu", "Add", "Identity"]  # the last one names the output
    assert_same(model, found)


@pytest.mark.parametrize("opset", [7, 11, 12])
def test_old_operator_sets_are_raised(opset: int) -> None:
    b = Builder(opset)
    x = b.conv(b.input("x", 2, 3, 8, 8), 3, 4, name="conv")
    x = b.op("ReduceMean", x, axes=[2], keepdims=0, name="mean")
    x = b.op("Softmax", b.op("Unsqueeze", x, axes=[0], name="wide"), axis=2, name="softmax")
    model = b.model(b.op("Squeeze", x, axes=[0], name="flat"))
    found = form(model)
    assert found.opset_import[0].version == 13
    assert {"conv", "mean", "wide", "flat"} <= {node.name for node in found.graph.node}
    assert_same(model, found)
    narrow = form(model, activations=None, weight_bits=4)
    assert narrow.opset_import[0].version == 21
    assert_same(model, narrow)


def test_a_model_that_cannot_be_raised_is_refused_with_its_node() -> None:
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["b"])], "b", [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )  # fmt: skip
    b = Builder(11)
    x = b.input("x", 1, 3, 4, 4)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    b.inputs.append(flag)
    y = b.op("If", "flag", then_branch=branch, else_branch=branch, name="choice")
    b.conv(x, 3, 3, name="conv")
    with pytest.raises(ModelError, match=r"of operator set 11.*need 13.*has a body") as caught:
        form(b.model(y, "conv_out"))
    assert caught.value.node == "choice"
