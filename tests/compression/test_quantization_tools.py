"""Accuracy tools: each keeps what it must keep, and gains what it promises."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from quantization_cases import Builder, OnnxRuntimeRuns, feeds, quantized, run
from test_quantization_report import chain

import graphopt
from graphopt.compression.quantization.adaround import adaround
from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.equalize import equalised
from graphopt.compression.quantization.gptq import gptq
from graphopt.compression.quantization.gram import as_matrices, from_matrices, layers
from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.groups import find_groups
from graphopt.compression.quantization.html import to_html
from graphopt.compression.quantization.mixed import cheapest_in_float, fewest_in_float
from graphopt.compression.quantization.pipeline import float_form
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.precision import saved_seconds
from graphopt.compression.quantization.scheme import Format, dequantize
from graphopt.compression.quantization.weights import weight_parameters
from graphopt.errors import InputError, ModelError, OptionError
from graphopt.frontend.load import load_model

DB = 3.0


def base_of(model: onnx.ModelProto) -> Any:
    return float_form(load_model(model), QuantizationConfig())[1]


def badly_scaled() -> onnx.ModelProto:
    """conv → relu → depthwise → conv, with channels of very different sizes."""
    b = Builder()
    sizes = 10.0 ** b.rng.uniform(-1.5, 1.5, 8)
    first = b.rng.standard_normal((8, 3, 3, 3)) * sizes[:, None, None, None] / 5
    middle = b.rng.standard_normal((8, 1, 3, 3)) / sizes[::-1, None, None, None] / 3
    last = b.rng.standard_normal((4, 8, 1, 1)) / 3
    x = b.op("Conv", b.input("x", 2, 3, 8, 8), b.value(first), b.random(8), pads=[1] * 4)
    x = b.op("MaxPool", b.op("Relu", x), kernel_shape=[2, 2])
    x = b.op("LeakyRelu", b.op("Conv", x, b.value(middle), pads=[1] * 4, group=8), alpha=0.1)
    return b.model(b.op("Conv", x, b.value(last), b.random(4)))


def test_equalised_layers_compute_the_same_with_equal_ranges() -> None:
    model = badly_scaled()
    base = base_of(model)
    done = equalised(base)
    assert done.pairs == 2
    onnx.checker.check_model(done.model.proto, full_check=True)
    for batch in feeds(model, 2):
        (exact,), (found,) = run(model, batch).values(), run(done.model.proto, batch).values()
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4)
    graph = Graph(done.model)
    first, second, third = (graph.array(n.input[1]) for n in graph.nodes if n.op_type == "Conv")
    wrote, read = np.abs(first).max((1, 2, 3)), np.abs(second).max((1, 2, 3))
    np.testing.assert_allclose(
        np.abs(second).max((1, 2, 3)), np.abs(third).max((0, 2, 3)), rtol=0.05
    )
    np.testing.assert_allclose(wrote, read, rtol=0.05)
    worse = quantized(model, feeds(model), granularity="tensor").report
    better = quantized(model, feeds(model), granularity="tensor", equalize=True).report
    assert min(better.outputs.values()) > min(worse.outputs.values()) + DB
    (row,) = better.tools
    assert (row.tool, row.note) == ("equalisation", "2 pairs of layers")
    assert row.after == pytest.approx(min(better.outputs.values()), abs=0.2)
    assert row.before == pytest.approx(min(worse.outputs.values()), abs=0.2)


def test_what_is_not_homogeneous_or_read_elsewhere_is_not_equalised() -> None:
    b = Builder()
    x = b.op("Clip", b.conv(b.input("x", 1, 3, 8, 8), 3, 4), b.value(0.0), b.value(6.0))
    y = b.conv(x, 4, 4)
    z = b.conv(y, 4, 4)
    model = b.model(z, b.op("Exp", y))
    assert equalised(base_of(model)).pairs == 0


def transformer_block(outlier: float) -> onnx.ModelProto:
    """A normalisation with one large channel, products that read it, and an MLP."""
    b = Builder()
    x = b.input("x", 2, 6, 16)
    gain = np.ones(16)
    gain[3] = outlier
    normal = b.op("LayerNormalization", x, b.value(gain), b.random(16), axis=-1, name="norm")
    q, k = (b.op("MatMul", normal, b.random(16, 16), name=name) for name in "qk")
    y = b.op("Add", q, k)
    hidden = b.op("Gelu", b.op("MatMul", y, b.random(16, 32), name="up"))
    return b.model(b.op("MatMul", hidden, b.random(32, 16), name="down"))


def test_smoothed_products_compute_the_same_and_lose_less() -> None:
    b_model = transformer_block(40.0)
    b_model.opset_import[0].version = 20
    plain = quantized(b_model, feeds(b_model)).report
    done = quantized(b_model, feeds(b_model), smooth=0.5)
    (row,) = done.report.tools
    assert row.tool == "SmoothQuant"
    # The normalisation takes its factor; sums and GELU cannot, and get one of their own.
    assert row.note == "1 tensors, 2 more with a factor of their own"
    assert min(done.report.outputs.values()) > min(plain.outputs.values()) + DB
    for batch in feeds(b_model, 2):
        (exact,), (found,) = (
            run(b_model, batch).values(),
            run(done.float_model.proto, batch).values(),
        )
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4)
    onnx.checker.check_model(done.model.proto, full_check=True)


def test_a_normalisation_that_a_residual_reads_too_gets_a_factor_of_its_own() -> None:
    b = Builder()
    x = b.op("LayerNormalization", b.input("x", 2, 6, 16), b.random(16), axis=-1)
    y = b.op("Add", b.op("MatMul", x, b.random(16, 16)), x)
    model = b.model(y)
    (row,) = quantized(model, feeds(model), smooth=0.7).report.tools
    assert row.note == "0 tensors, 1 more with a factor of their own"


CONVOLUTIONS = [
    {"pads": [1, 1, 1, 1]},
    {"strides": [2, 1], "pads": [0, 1, 1, 0]},
    {"dilations": [2, 2], "group": 2},
    {"group": 4, "pads": [1, 1, 1, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"},
]


@pytest.mark.parametrize("attributes", CONVOLUTIONS)
def test_gram_matrices_foretell_the_error_of_a_convolution(attributes: dict[str, Any]) -> None:
    b = Builder()
    group = attributes.get("group", 1)
    weight = b.rng.standard_normal((8, 4 // group, 3, 3)).astype(np.float32)
    x = b.op("Conv", b.input("x", 2, 4, 9, 8), b.value(weight), name="conv", **attributes)
    assert_foretold(b.model(x), weight)


@pytest.mark.parametrize("kind", ["conv1d", "MatMul", "Gemm", "transB"])
def test_gram_matrices_foretell_the_error_of_other_products(kind: str) -> None:
    b = Builder()
    if kind == "conv1d":
        weight = b.rng.standard_normal((5, 4, 3)).astype(np.float32)
        y = b.op("Conv", b.input("x", 2, 4, 9), b.value(weight), pads=[2, 1])
    elif kind == "MatMul":
        weight = b.rng.standard_normal((7, 5)).astype(np.float32)
        y = b.op("MatMul", b.input("x", 2, 3, 7), b.value(weight))
    else:
        transposed = int(kind == "transB")
        weight = b.rng.standard_normal((5, 7) if transposed else (7, 5)).astype(np.float32)
        y = b.op("Gemm", b.input("x", 4, 7), b.value(weight), transB=transposed)
    assert_foretold(b.model(y), weight)


def assert_foretold(model: onnx.ModelProto, weight: np.ndarray) -> None:
    base, data = base_of(model), feeds(model, 3)
    (group,) = (g for g in find_groups(Graph(base))[0] if g.kind == "product")
    (layer,) = layers(OnnxRuntimeRuns(), base, [group], data)
    noise = np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    node = base.proto.graph.node[0]
    matrices = as_matrices(noise, node, group)
    np.testing.assert_array_equal(from_matrices(matrices, noise, group), noise)
    expected = sum(np.trace(m @ h @ m.T) for m, h in zip(matrices, layer.gram, strict=True))
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(noise, other.graph.initializer[0].name)
    )
    outputs = [next(iter(run(other, batch).values())) for batch in data]
    positions = sum(y.size for y in outputs) / (len(matrices) * matrices.shape[1])
    measured = sum(float(np.sum(y.astype(np.float64) ** 2)) for y in outputs) / positions
    assert measured == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", [gptq, adaround])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_chosen_rounding_beats_rounding_to_nearest(method: Any, bits: int, symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    # Inputs that hang together, as features do: only then is there anything to choose.
    mixing = rng.standard_normal((40, 12))
    x = rng.standard_normal((500, 12)) @ mixing.T + 0.1 * rng.standard_normal((500, 40)) + 0.5
    gram = x.T @ x / len(x)
    weight = rng.standard_normal((6, 40)).astype(np.float32)
    form = Format(bits, True, symmetric)
    scale, zero = (array[:, None] for array in weight_parameters(weight, form, 0))
    codes = method(weight, gram, scale, zero, form)
    assert codes.dtype == np.int8
    assert codes.min() >= form.low
    assert codes.max() <= form.high
    steps = weight / scale + zero
    nearest = np.clip(np.rint(steps), form.low, form.high).astype(np.int8)
    error = [
        float(np.mean(((dequantize(c, scale, zero) - weight) @ x.T) ** 2)) for c in (codes, nearest)
    ]
    assert error[0] < 0.6 * error[1]
    if method is adaround:
        moved = np.abs(codes - np.clip(steps, form.low, form.high))
        assert moved.max() < 1 + 1e-3


@pytest.mark.parametrize("method", [gptq, adaround])
def test_rounding_copes_with_inputs_that_are_always_zero(method: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    scale, zero = (array[:, None] for array in weight_parameters(weight, Format(), 0))
    found = dequantize(method(weight, np.zeros((5, 5)), scale, zero, Format()), scale, zero)
    np.testing.assert_allclose(found, weight, atol=float(scale.max()) * 0.51)


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
@pytest.mark.parametrize(
    "options",
    [{"weight_bits": 3}, {"activations": None, "weight_bits": 3, "granularity": "group",
                          "group_size": 8}],
)  # fmt: skip
def test_rounding_in_a_whole_model(rounding: str, options: dict[str, Any]) -> None:
    b = Builder()
    mixing = np.random.default_rng(5).standard_normal((16, 4)).astype(np.float32)
    x = b.op("Relu", b.op("MatMul", b.input("x", 32, 16), b.random(16, 24)))
    x = b.op("Relu", b.op("Gemm", x, b.random(20, 24), b.random(20), transB=1))
    model = b.model(b.op("MatMul", x, b.random(20, 6)))
    data = [{"x": (batch["x"][:, :4] @ mixing.T).astype(np.float32)} for batch in feeds(model, 6)]
    plain = quantized(model, data, **options)
    done = quantized(model, data, rounding=rounding, **options)
    (row,) = done.report.tools
    assert (row.tool, row.note) == (rounding, "3 layers")
    assert row.after > row.before + 1
    assert min(done.report.outputs.values()) == pytest.approx(row.after, abs=0.1)
    assert row.before == pytest.approx(min(plain.report.outputs.values()), abs=0.1)
    again = Plan.from_json(done.plan.to_json())
    assert again.to_json() == done.plan.to_json()


@pytest.mark.parametrize("options", [{}, {"activations": None}], ids=["int8", "weights"])
def test_bias_correction_takes_the_mean_error_off(options: dict[str, Any]) -> None:
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", 2, 3, 8, 8), 3, 6, 1, name="first"))
    x = b.op("Relu", b.conv(x, 6, 8, 1, bias=False, group=2, name="grouped"))
    x = b.op("Flatten", b.op("GlobalAveragePool", x))
    x = b.op("Relu", b.op("Gemm", x, b.random(8, 8), name="gemm"))
    model = b.model(b.op("MatMul", x, b.random(8, 5), name="product"))
    data = [{"x": np.abs(batch["x"]) + 1} for batch in feeds(model, 8)]
    options = {"weight_bits": 4, **options}
    done = quantized(model, data, correct_bias=True, **options)
    plain = quantized(model, data, **options)
    onnx.checker.check_model(done.model.proto, full_check=True)
    assert set(done.plan.corrections) == {"first", "grouped", "gemm", "product"}
    name = model.graph.output[0].name

    def mean_error(proto: onnx.ModelProto) -> float:
        found = [run(proto, batch)[name] - run(model, batch)[name] for batch in data]
        return float(np.abs(np.mean(found, axis=(0, 1))).max())

    assert mean_error(done.model.proto) < 0.4 * mean_error(plain.model.proto)
    (row,) = done.report.tools
    assert row.tool == "bias correction"
    assert row.after > row.before


@given(st.lists(st.floats(0, 60), min_size=1, max_size=40, unique=True), st.floats(0, 1))
def test_the_fewest_layers_go_to_float(costs: list[float], share: float) -> None:
    effects = {f"layer{k}": cost for k, cost in enumerate(costs)}
    noise = {name: 10 ** (-cost / 10) for name, cost in effects.items()}
    limit = share * sum(noise.values())
    asked = []

    def good(quantized: Any) -> bool:
        asked.append(len(quantized))
        return sum(noise[name] for name in quantized) <= limit * (1 + 1e-12)

    kept = fewest_in_float(noise, {}, good)
    left = sum(noise[name] for name in noise if name not in kept)
    assert left <= limit * (1 + 1e-9) or len(kept) == len(noise)
    # Noise adds up here: no smaller set can do.
    ranked = sorted(noise.values(), reverse=True)
    assert len(kept) == 0 or sum(ranked[len(kept) - 1 :]) > limit
    assert len(asked) <= 3 + math.log2(len(noise)) + 25


def test_of_two_choices_the_one_that_loses_less_time_is_taken() -> None:
    # Giving up "large" is enough, and so is giving up both small ones, which save next to nothing.
    noise = {"large": 1.0, "small": 0.6, "other": 0.5, "quiet": 0.01}
    effects = {name: -10 * math.log10(power) for name, power in noise.items()}

    def good(quantized: Any) -> bool:
        return sum(noise[name] for name in quantized) <= 1.15

    savings = {"large": 1e-3, "small": 1e-6, "other": 2e-6, "quiet": 1e-4}
    assert cheapest_in_float(effects, {}, good) == ("large",)
    assert set(cheapest_in_float(effects, savings, good)) == {"small", "other"}
    assert cheapest_in_float(effects, {**savings, "large": 1e-7}, good) == ("large",)
    assert cheapest_in_float(effects, savings, lambda quantized: True) == ()


def test_seconds_are_the_layers_that_a_kernel_computes() -> None:
    plan = quantized(chain(2, 3), feeds(chain(2, 3))).plan
    before = [(("conv0", "LeakyRelu_1"), 4e-6), (("conv1",), 3e-6), (("conv2",), 2e-6)]
    after = [(("conv0", "x_QuantizeLinear"), 1e-6), (("conv1", "conv2"), 3e-6), (("other",), 9.0)]
    saved = saved_seconds(plan, before, after)
    assert saved == pytest.approx({"conv0": 3e-6, "conv1": 1.5e-6, "conv2": 0.5e-6})


def test_mixed_precision_weighs_times_that_are_measured() -> None:
    model = chain(2)
    done = graphopt.quantize(model, feeds(model), min_sqnr=28.0, threads=1)
    assert [each.node for each in done.report.floats] == ["conv2"]
    assert min(done.report.outputs.values()) >= 28
    assert re.search(r"with 1 layers in float, which saved .* of .* µs", done.report.tools[-1].note)
    assert "time per run" in to_html(done.report)


def test_min_sqnr_leaves_the_bad_layer_in_float() -> None:
    model = chain(2)
    plain = quantized(model, feeds(model)).report
    done = quantized(model, feeds(model), min_sqnr=28.0)
    assert min(plain.outputs.values()) < 28 <= min(done.report.outputs.values())
    assert [each.node for each in done.report.floats] == ["conv2"]
    assert done.report.floats[0].reason == "left in float for accuracy"
    assert "with 1 layers in float" in done.report.tools[-1].note
    assert not done.report.warnings
    easy = quantized(model, feeds(model), min_sqnr=5.0)
    assert not easy.report.floats
    with pytest.raises(ModelError, match=r"nothing to quantize.*left in float for accuracy"):
        quantized(model, feeds(model), min_sqnr=150.0)


def test_max_drop_uses_the_metric_of_the_user() -> None:
    model = chain(2)
    data = feeds(model, 6)
    name = model.graph.output[0].name
    exact = [run(model, batch)[name] for batch in data]
    calls = []

    def metric(predict: Any) -> float:
        calls.append(1)
        errors = [np.abs(predict(x)[name] - y).mean() for x, y in zip(data, exact, strict=True)]
        return -float(np.mean(errors) / np.mean(np.abs(exact)))

    from graphopt.compression.quantization.feeds import Given
    from graphopt.compression.quantization.pipeline import quantize_model

    config = QuantizationConfig(max_drop=0.02)
    done = quantize_model(load_model(model), Given(data), config, OnnxRuntimeRuns(), metric=metric)
    assert [each.node for each in done.report.floats] == ["conv2"]
    assert len(calls) < 15
    with pytest.raises(OptionError, match="max_drop and metric need each other"):
        quantized(model, data, max_drop=0.1)
    with pytest.raises(InputError, match="gives nan for the float model, which is no number"):
        quantize_model(
            load_model(model), Given(data), config, OnnxRuntimeRuns(), metric=lambda f: math.nan
        )


def test_tools_together() -> None:
    model = badly_scaled()
    done = quantized(
        model, feeds(model), weight_bits=5, equalize=True, smooth=0.5, rounding="gptq",
        correct_bias=True, min_sqnr=20.0,
    )  # fmt: skip
    onnx.checker.check_model(done.model.proto, full_check=True)
    names = [row.tool for row in done.report.tools]
    assert names == ["equalisation", "SmoothQuant", "gptq", "bias correction", "mixed precision"]
    assert min(done.report.outputs.values()) >= 20


def test_tools_need_data_that_can_be_read_again() -> None:
    model = badly_scaled()
    with pytest.raises(OptionError, match="read only once"):
        quantized(model, iter(feeds(model)), equalize=True)
    with pytest.raises(OptionError, match="needed for rounding='gptq'"):
        quantized(model, None, activations=None, rounding="gptq")
