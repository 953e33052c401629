"""The report names the layer that lost the accuracy, and what each layer costs alone."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import onnx
import pytest
from quantization_cases import Builder, OnnxRuntimeRuns, feeds, quantized, run

from graphopt.compression.quantization.graph import Graph
from graphopt.compression.quantization.html import to_html
from graphopt.compression.quantization.pipeline import Quantized
from graphopt.compression.quantization.probe import float_probe, integer_probe
from graphopt.compression.quantization.scheme import signal_to_noise


def chain(worst: int, layers: int = 5) -> onnx.ModelProto:
    """Convolutions, one of which reads channels of very different sizes."""
    b = Builder()
    x = b.input("x", 2, 4, 10, 10)
    for place in range(layers):
        weight = b.rng.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6
        if place == worst - 1:
            weight[0] *= 300
        if place == worst:
            weight[:, 0] /= 300
        x = b.op("Conv", x, b.value(weight), b.random(4), pads=[1] * 4, name=f"conv{place}")
        x = b.op("LeakyRelu", x, alpha=0.3)
    return b.model(x)


@pytest.mark.parametrize("worst", [1, 3])
def test_the_layer_that_loses_the_accuracy_is_the_first_line(worst: int) -> None:
    model = chain(worst)
    report = quantized(model, feeds(model)).report
    start = f"Most accuracy is lost in conv{worst} (Conv): with it alone"
    assert report.headline.startswith(start)
    assert report.to_dict()["headline"] == report.headline
    ranked = sorted(report.layers, key=lambda row: row.effect or 0)
    assert ranked[0].node == f"conv{worst}"
    assert ranked[0].effect is not None
    assert ranked[1].effect is not None
    assert ranked[0].effect < ranked[1].effect - 10
    # Leaving it in float brings the accuracy back.
    other = quantized(model, feeds(model), exclude=(f"conv{worst}",)).report
    assert min(other.outputs.values()) > min(report.outputs.values()) + 10


def done_small() -> tuple[onnx.ModelProto, Quantized]:
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", 2, 3, 8, 8), 3, 4, name="stem"))
    y = b.op("Add", b.conv(x, 4, 4, name="deep"), x)
    y = b.op("Mul", y, b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", y), 4, 4, 1, name="gate")))
    z = b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    model = b.model(b.conv(z, 4, 4, name="head"))
    return model, quantized(model, feeds(model))


def test_the_float_probe_computes_the_model_and_adds_noise_where_it_is_told_to() -> None:
    model, done = done_small()
    inputs, runs = feeds(model)[0], OnnxRuntimeRuns()
    probe = float_probe(done.float_model, done.plan.groups, ["x"])
    onnx.checker.check_model(probe.model.proto, full_check=True)
    quiet = runs(probe.model, probe.feeds(inputs, {}, {}), probe.wanted)
    np.testing.assert_allclose(quiet["head_out"], run(model, inputs)["head_out"], atol=1e-6)
    written = {n for g in done.plan.groups if g.kind != "move" for n in g.outputs}
    assert set(probe.noise) == written
    added = {"head_out": np.full_like(quiet["head_out"], 0.5)}
    loud = runs(probe.model, probe.feeds(inputs, added, quiet), probe.wanted)
    np.testing.assert_allclose(loud["head_out"], quiet["head_out"] + 0.5, atol=1e-6)


def test_the_integer_probe_is_the_quantized_model() -> None:
    model, done = done_small()
    inputs, runs = feeds(model)[0], OnnxRuntimeRuns()
    probe = float_probe(done.float_model, done.plan.groups, ["x"])
    exact = {**inputs, **runs(probe.model, probe.feeds(inputs, {}, {}), probe.wanted)}
    other = integer_probe(done.float_model, done.plan, ["head_out"])
    onnx.checker.check_model(other.model.proto, full_check=True)
    found = runs(other.model, other.feeds(inputs, exact), other.wanted)
    np.testing.assert_array_equal(found["head_out"], run(done.model.proto, inputs)["head_out"])
    # The stem reads the model's input only: alone it gives what it gives in the model.
    plain = runs(done.model, inputs, ["Relu_1_out"])["Relu_1_out"]
    np.testing.assert_array_equal(found[other.alone["Relu_1_out"]], plain)
    assert not np.array_equal(found[other.alone["head_out"]], found["head_out"])


@pytest.mark.parametrize("batch", [2, "N"])
def test_the_effect_of_a_layer_is_that_of_quantizing_it_alone(batch: int | str) -> None:
    b = Builder()
    x = b.op("Relu", b.conv(b.input("x", batch, 3, 8, 8), 3, 4, name="stem"))
    y = b.op("Relu", b.op("Add", b.conv(x, 4, 4, name="deep"), x))
    model = b.model(b.conv(y, 4, 4, name="head"))
    given = {"x": np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    report = quantized(model, [given]).report
    for row in report.layers:
        alone = quantized(model, [given], only=(row.node,)).report.outputs["head_out"]
        assert row.effect == pytest.approx(alone, abs=0.01)


def test_rows_are_right() -> None:
    model, done = done_small()
    rows = {row.node: row for row in done.report.layers}
    assert rows["deep"].nodes[1].startswith("Add")
    assert rows["deep"].bits == 8
    assert set(rows["deep"].reads) == {"Relu_1_out"}
    assert rows["GlobalAveragePool_4"].bits is None
    assert rows["GlobalAveragePool_4"].scales is None
    steps = next(w for w in done.plan.weights if w.node == "deep").scale
    assert rows["deep"].scales == (steps.min(), steps.max())
    assert done.report.seconds_before is not None
    assert done.report.seconds_after is not None
    tensors = {row.tensor: row for row in done.report.tensors}
    x = np.concatenate([batch["x"] for batch in feeds(model)])
    assert (tensors["x"].least, tensors["x"].largest) == (x.min(), x.max())
    assert sum(tensors["x"].sketch) == x.size
    plain = quantized(model, feeds(model), method="min-max").report
    assert not any(row.clipped for row in plain.tensors)
    clipped = quantized(model, feeds(model), method="percentile", percentile=90.0).report
    row = next(row for row in clipped.tensors if row.tensor == "x")
    outside = np.mean((x < row.low) | (x > row.high))
    assert row.clipped == pytest.approx(outside, abs=0.005)
    assert row.clipped == pytest.approx(0.1, abs=0.01)
    # The last layer's output is the model's.
    assert rows["head"].output_sqnr == pytest.approx(done.report.outputs["head_out"])
    exact = [run(model, batch)["head_out"] for batch in feeds(model)]
    found = [run(done.model.proto, batch)["head_out"] for batch in feeds(model)]
    ratio = signal_to_noise(np.stack(exact), np.stack(found))
    assert done.report.outputs["head_out"] == pytest.approx(ratio, abs=0.1)
    weight = next(w for w in done.plan.weights if w.node == "head")
    assert Graph(done.float_model).array(weight.tensor).shape == (4, 4, 3, 3)
    assert 35 < (rows["head"].weight_sqnr or 0) < 60


def test_the_page_is_complete_escaped_and_needs_nothing_else() -> None:
    b = Builder()
    x = b.conv(b.input("x", 1, 3, 4, 4), 3, 3, name="<script>alert(1)</script>")
    model = b.model(b.op("Softmax", b.conv(x, 3, 3, name="other")))
    report = quantized(model, feeds(model)).report.with_times(0.010, 0.004)
    page = to_html(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=|https?://|@import", page)
    assert page.count("<svg") == 1 + len(report.tensors)
    assert "10 ms → 4 ms" in page
    assert "exponentials of 8-bit values" in page
    for tag in ("table", "tr", "td", "svg", "div", "html", "body"):
        assert page.count(f"<{tag}>") + page.count(f"<{tag} ") == page.count(f"</{tag}>")


def test_json_has_no_number_that_json_lacks() -> None:
    b = Builder()
    x = b.op("Mul", b.conv(b.input("x", 1, 3, 4, 4), 3, 3), b.value(0.0))
    model = b.model(b.conv(x, 3, 3))
    found = json.loads(quantized(model, feeds(model)).report.to_json(), parse_constant=pytest.fail)
    assert found["layers"]
    assert "inf" in str(found)


def test_a_model_that_loses_nothing_says_so() -> None:
    b = Builder()
    x = b.conv(b.input("x", 1, 3, 4, 4), 3, 3)
    model = b.model(b.op("Clip", x, b.value(9.0), b.value(9.0)))
    assert "No accuracy is lost" in quantized(model, feeds(model)).report.headline


def test_a_report_without_data_says_so() -> None:
    model = chain(1)
    report = quantized(model, None, activations=None).report
    assert "no calibration data" in report.headline
    assert all(row.effect is None and row.output_sqnr is None for row in report.layers)
    assert all(math.isfinite(row.weight_sqnr or math.nan) for row in report.layers)
    assert "<svg" in to_html(report)
