"""What becomes an integer kernel, what its epilogue takes, and why the rest stays in float."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from quantization_cases import Builder

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.pipeline import float_form
from graphopt.compression.quantization.placement import Placement, place
from graphopt.errors import ModelError, OptionError
from graphopt.frontend.load import load_model


def placed(model: onnx.ModelProto, **options: object) -> Placement:
    config = QuantizationConfig.of(**options)  # type: ignore[arg-type]
    return place(Graph(float_form(load_model(model), config)[1]), config)


def group(found: Placement, name: str) -> Group:
    return next(each for each in found.groups if each.name == name)


def activation(b: Builder, x: str, kind: str) -> str:
    if kind == "silu":
        return b.op("Mul", x, b.op("Sigmoid", x))
    if kind == "gelu":
        half = b.op("Mul", x, b.value(0.5))
        inner = b.op("Erf", b.op("Div", x, b.value(1.4142135)))
        return b.op("Mul", half, b.op("Add", inner, b.value(1)))
    if kind == "hardswish":
        gate = b.op("Clip", b.op("Add", x, b.value(3)), b.value(0), b.value(6))
        return b.op("Div", b.op("Mul", x, gate), b.value(6))
    if kind == "LeakyRelu":
        return b.op("LeakyRelu", x, alpha=0.1)
    return b.op(kind, x) if kind else x


@pytest.mark.parametrize(
    ("kind", "nodes"),
    [("", 1), ("Relu", 2), ("LeakyRelu", 2), ("Tanh", 2), ("silu", 3), ("gelu", 6),
     ("hardswish", 5)],
)  # fmt: skip
def test_an_activation_is_part_of_the_kernel(kind: str, nodes: int) -> None:
    b = Builder()
    x = activation(b, b.conv(b.input("x", 1, 3, 8, 8), 3, 4, name="first"), kind)
    b.conv(x, 4, 4, name="second")
    found = placed(b.model("second_out"))
    assert len(group(found, "first").nodes) == nodes
    assert found.tensors == ("x", x)
    assert not found.refusals


def test_a_residual_is_added_inside_the_later_kernel() -> None:
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", 1, 3, 8, 8), 3, 4, name="stem"))
    short = b.conv(x, 4, 4, 1, name="short")
    deep = b.conv(b.op("Relu", b.conv(x, 4, 4, name="deep1")), 4, 4, name="deep2")
    out = b.op("Relu", b.op("Add", deep, short))
    b.conv(out, 4, 4, name="head")
    found = placed(b.model("head_out"))
    assert group(found, "deep2").residual == short
    assert group(found, "deep2").output == out
    assert group(found, "short").residual is None
    assert short in found.tensors
    assert deep not in found.tensors


def test_a_residual_of_float_stays_float() -> None:
    # As in a transformer: the sum goes to a normalisation, which needs more than 8 bits.
    b = Builder()
    x = b.op("LayerNormalization", b.input("x", 2, 5, 8), b.random(8), b.random(8), axis=-1)
    y = b.op("MatMul", x, b.random(8, 8), name="product")
    z = b.op("Add", b.op("Add", y, b.random(8)), x)
    out = b.op("LayerNormalization", z, b.random(8), b.random(8), axis=-1)
    found = placed(b.model(out))
    assert found.tensors == (x,)
    assert {each.op for each in found.refusals} == {"LayerNormalization"}


def test_attention_stays_in_float_with_reasons() -> None:
    b = Builder()
    x = b.input("x", 2, 5, 8)
    q, k, v = (b.op("MatMul", x, b.random(8, 8), name=name) for name in "qkv")
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]), name="scores")
    mixed = b.op("MatMul", b.op("Softmax", scores), v, name="mixed")
    out = b.op("MatMul", mixed, b.random(8, 8), name="out")
    found = placed(b.model(out))
    assert [each.name for each in found.groups] == ["q", "k", "v", "out"]
    assert found.tensors == ("x", mixed)
    reasons = {each.node: each.reason for each in found.refusals}
    assert "both operands are computed" in reasons["scores"]
    assert "both operands are computed" in reasons["mixed"]


def test_data_movement_shares_one_scale_and_concat_joins_ranges() -> None:
    b = Builder()
    x = b.input("x", 1, 4, 8, 8)
    left, right = b.conv(x, 4, 4, name="left"), b.conv(x, 4, 4, name="right")
    pooled = b.op("MaxPool", right, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    joined = b.op("Concat", left, pooled, axis=1)
    b.conv(joined, 8, 4, name="head")
    found = placed(b.model("head_out"))
    assert found.shared == (tuple(sorted((left, right, pooled, joined))),)
    assert set(found.tensors) == {x, left, right, pooled, joined}


def test_arithmetic_is_an_integer_kernel_between_integer_kernels_only() -> None:
    b = Builder()
    x = b.conv(b.input("x", 1, 4, 8, 8), 4, 4, name="stem")
    gate = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", x, name="pool"), 4, 4, 1, name="gate"))
    scaled = b.op("Mul", x, gate, name="scaled")
    b.conv(scaled, 4, 4, name="head")
    found = placed(b.model("head_out"))
    assert group(found, "scaled").kind == group(found, "pool").kind == "arithmetic"
    assert set(found.tensors) == {"x", x, "pool_out", gate, scaled}
    b = Builder()
    product = b.op("Mul", b.input("x", 1, 4, 8, 8), b.input("y", 1, 4, 8, 8), name="scaled")
    b.conv(product, 4, 4, name="head")
    found = placed(b.model("head_out"))
    assert [each.name for each in found.groups] == ["head"]
    assert [each.node for each in found.refusals] == ["scaled"]


def test_exclude_and_only() -> None:
    b = Builder()
    x = b.conv(b.input("x", 1, 4, 8, 8), 4, 4, name="a")
    x = b.op("Relu", x, name="a_relu")
    x = b.conv(b.conv(x, 4, 4, name="b"), 4, 4, name="c")
    model = b.model(x)
    found = placed(model, exclude=("b",))
    assert [each.name for each in found.groups] == ["a", "c"]
    assert found.tensors == ("x", "b_out")
    assert found.refusals[0].reason == "left in float by option exclude"
    # Any node of a kernel names it.
    assert [g.name for g in placed(model, exclude=("a_relu",)).groups] == ["b", "c"]
    found = placed(model, only=("b",))
    assert [each.name for each in found.groups] == ["b"]
    with pytest.raises(ModelError, match=r"nothing to quantize.*option exclude"):
        placed(model, exclude=("Conv",))
    with pytest.raises(OptionError, match=r"exclude names 'A_rel'.*no node.*'a_relu'"):
        placed(model, exclude=("A_rel",))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("transposed", "there is no integer kernel for transposed convolution"),
        ("computed", "its weights are computed"),
        ("vector", "its weights are a vector"),
        ("transA", "its first operand is transposed"),
        ("constant", "its first operand is constant"),
    ],
)
def test_every_refusal_says_why(kind: str, reason: str) -> None:
    b = Builder()
    x = b.input("x", 1, 4, 8, 8)
    if kind == "transposed":
        y = b.op("ConvTranspose", x, b.random(4, 4, 2, 2), name="node")
    elif kind == "computed":
        y = b.op("Conv", x, b.input("w", 4, 4, 1, 1), name="node")
    elif kind == "vector":
        y = b.op("MatMul", x, b.random(8), name="node")
    elif kind == "transA":
        y = b.op("Gemm", b.input("m", 3, 2), b.random(3, 5), transA=1, name="node")
    else:
        y = b.op("MatMul", b.random(5, 8), x, name="node")
    b.conv(x, 4, 4, name="other")
    found = placed(b.model(y, "other_out"))
    assert [(each.node, each.reason) for each in found.refusals] == [("node", reason)]


def test_a_model_without_products_has_nothing_to_quantize() -> None:
    b = Builder()
    with pytest.raises(ModelError, match="nothing to quantize"):
        placed(b.model(b.op("Relu", b.input("x", 2, 3))))


def test_a_quantized_model_is_refused_with_the_node() -> None:
    b = Builder()
    scale, zero = b.value(0.1), b.value(0, np.uint8)
    q = b.op("QuantizeLinear", b.input("x", 1, 4, 8, 8), scale, zero, name="q")
    b.conv(b.op("DequantizeLinear", q, scale, zero), 4, 4, name="c")
    with pytest.raises(ModelError, match="quantized already: QuantizeLinear reads 'x'") as caught:
        placed(b.model("c_out"))
    assert caught.value.node == "q"
