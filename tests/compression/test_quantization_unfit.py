"""Layers that 8 bits do not suit stay in float by default, with a reason; others do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from quantization_cases import Builder, feeds, quantized
from test_quantization_report import chain

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.errors import OptionError

Array = np.ndarray[Any, Any]


def levelled(behind: bool = True) -> onnx.ModelProto:
    """A convolution whose result is divided by its largest magnitude, and one behind it."""
    b = Builder()
    x = b.conv(b.input("x", 1, 2, 8, 8), 2, 4, bias=False, name="first")
    largest = b.op("ReduceMax", b.op("Abs", x), axes=[1, 2, 3], keepdims=1)
    x = b.op("Div", x, largest)
    return b.model(b.conv(x, 4, 3, name="second") if behind else x)


def of_levels(model: onnx.ModelProto, *levels: float) -> list[dict[str, Array]]:
    """Inputs of different loudness."""
    data = feeds(model, len(levels))
    return [
        {"x": batch["x"] * np.float32(level)} for batch, level in zip(data, levels, strict=True)
    ]


def floats(done: Any) -> list[str]:
    """Products that stay in float."""
    return [row.node for row in done.report.floats if row.op == "Conv"]


def test_a_layer_that_no_single_scale_serves_stays_in_float() -> None:
    model = levelled()
    data = of_levels(model, 1.0, 0.01, 1.0, 0.01)
    all_integer = quantized(model, data, min_layer_sqnr=0)
    assert floats(all_integer) == []
    worst = min(row.effect for row in all_integer.report.layers if row.effect is not None)
    done = quantized(model, data)
    assert floats(done) == ["first"]
    (row,) = (each for each in done.report.floats if each.node == "first")
    assert f"with it alone quantized the outputs have {worst:.1f} dB" in row.reason
    assert [each.node for each in done.report.layers if each.kind == "product"] == ["second"]
    assert all(each.effect is None or each.effect >= 20 for each in done.report.layers)
    before, after = (min(each.report.outputs.values()) for each in (all_integer, done))
    assert after > before + 10
    onnx.checker.check_model(done.model.proto, full_check=True)


def test_samples_of_one_level_leave_nothing_in_float() -> None:
    model = levelled()
    assert floats(quantized(model, of_levels(model, 0.3, 0.2, 0.3, 0.25))) == []


@pytest.mark.parametrize(
    "options", [{"only": ("first", "second")}, {"min_sqnr": 1.0}, {"weight_bits": 4}]
)
def test_what_the_user_chose_goes_first(options: dict[str, Any]) -> None:
    model = levelled()
    assert floats(quantized(model, of_levels(model, 1.0, 0.01), **options)) == []


def test_where_every_layer_would_stay_in_float_none_does() -> None:
    model = levelled(behind=False)
    done = quantized(model, of_levels(model, 1.0, 0.01))
    assert floats(done) == []
    assert [row.node for row in done.report.layers] == ["first"]


def test_other_bad_layers_stay_in_integers() -> None:
    model = chain(2)
    data = feeds(model)
    effects = [row.effect for row in quantized(model, data).report.layers]
    worst = min(effect for effect in effects if effect is not None)
    assert floats(quantized(model, data, min_layer_sqnr=worst + 1)) == []


def test_the_bar_is_a_number_of_decibels() -> None:
    with pytest.raises(OptionError, match="min_layer_sqnr must be a number from 0 to 200"):
        QuantizationConfig.of(min_layer_sqnr=-1)
