"""The formulas of quantization, for any numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphopt.compression.quantization.codebook import kmeans, nearest, powers_of_two
from graphopt.compression.quantization.scheme import (
    MIN_SCALE,
    Format,
    blocks,
    decibels,
    dequantize,
    parameters,
    quantize,
    quantize_bias,
    representable,
    rounded,
    signal_to_noise,
    widened_for_bias,
)
from graphopt.compression.quantization.weights import broadcast_parameters, weight_parameters

FORMATS = st.builds(Format, bits=st.integers(2, 8), signed=st.booleans(), symmetric=st.booleans())
SIZES = st.floats(1e-6, 1e6)
FLOATS = st.floats(-1e6, 1e6, width=32)
VECTORS = arrays.arrays(np.float32, st.integers(1, 40), elements=FLOATS)


@given(FORMATS)
def test_limits_hold_the_zero_point_and_fit_the_type(form: Format) -> None:
    assert form.low <= form.middle <= form.high
    bounds = np.iinfo(form.dtype)
    assert bounds.min <= form.low < form.high <= bounds.max
    if form.symmetric:
        assert form.high - form.middle == form.middle - form.low or not form.signed


@given(VECTORS, FORMATS)
def test_values_in_range_are_off_by_half_a_step_at_most(x: np.ndarray, form: Format) -> None:
    scale, zero = parameters(x.min(), x.max(), form)
    error = np.abs(rounded(x, scale, zero, form).astype(np.float64) - x)
    # float32 itself rounds the product, and the quotient near a tie.
    assert (error <= float(scale) * 0.5 + np.abs(x) * 3e-7 + float(scale) * 2e-5).all()


@given(VECTORS, FORMATS)
def test_rounding_twice_is_rounding_once(x: np.ndarray, form: Format) -> None:
    scale, zero = parameters(x.min(), x.max(), form)
    once = quantize(x, scale, zero, form)
    again = quantize(dequantize(once, scale, zero), scale, zero, form)
    np.testing.assert_array_equal(once, again)


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), FORMATS)
def test_zero_is_exact_and_scales_are_positive_and_finite(a: float, b: float, form: Format) -> None:
    scale, zero = parameters(min(a, b), max(a, b), form)
    assert scale.dtype == np.float32
    assert MIN_SCALE <= float(scale) < np.inf
    assert form.low <= int(zero) <= form.high
    assert rounded(np.zeros(1, np.float32), scale, zero, form)[0] == 0


@given(VECTORS, FORMATS, SIZES)
def test_values_out_of_range_saturate(x: np.ndarray, form: Format, size: float) -> None:
    scale, zero = parameters(-size, size, form)
    low, high = representable(scale, zero, form)
    found = rounded(x * 1e3, scale, zero, form)
    assert (found >= np.float32(low) * (1 + 1e-6) - 1e-30).all()
    assert (found <= np.float32(high) * (1 + 1e-6) + 1e-30).all()
    assert rounded(np.float32([np.inf, -np.inf]), scale, zero, form) == pytest.approx(
        [float(high), float(low)], rel=1e-6
    )


def test_a_symmetric_range_does_not_use_the_most_negative_value() -> None:
    scale, zero = parameters(-1.0, 0.5, Format())
    assert int(zero) == 0
    assert quantize(np.float32([-1, 1, -2]), scale, zero, Format()).tolist() == [-127, 127, -127]


def test_ranges_are_widened_to_hold_zero() -> None:
    form = Format(8, False, False)
    scale, zero = parameters(2.0, 3.0, form)
    assert (float(scale), int(zero)) == (pytest.approx(3 / 255), 0)
    scale, zero = parameters(-3.0, -2.0, form)
    assert (float(scale), int(zero)) == (pytest.approx(3 / 255), 255)
    scale, zero = parameters(0.0, 0.0, form)
    assert (float(scale), int(zero)) == (pytest.approx(1 / 255), 0)


@given(VECTORS, st.floats(1e-6, 1e3), st.floats(1e-6, 1e3))
def test_every_bias_fits_in_int32(bias: np.ndarray, sx: float, sw: float) -> None:
    dead = np.arange(bias.size) % 2 == 0
    scale = widened_for_bias(np.full(bias.size, sw * 1e-6, np.float32), sx, bias, dead)
    assert (scale > 0).all()
    step = (scale * np.float32(sx)).astype(np.float32)
    error = np.abs(quantize_bias(bias, step) * step.astype(np.float64) - bias)
    assert (error <= step * 0.51 + np.abs(bias) * 1e-6).all()
    filled = dead & (bias != 0)
    assert (step[filled] <= np.maximum(np.abs(bias[filled]) / 2**23, sx * 1e-18)).all()


@given(VECTORS, st.integers(1, 9))
def test_blocks_fill_the_last_one_with_zeros(x: np.ndarray, size: int) -> None:
    cut = blocks(np.stack([x, x]), 1, size)
    assert cut.shape == (2, -(-x.size // size), size)
    np.testing.assert_array_equal(cut.reshape(2, -1)[:, : x.size], np.stack([x, x]))
    assert not cut.reshape(2, -1)[:, x.size :].any()


def test_noise_in_decibels() -> None:
    x = np.float32([3, 4])
    assert signal_to_noise(x, x) == np.inf
    assert signal_to_noise(x, np.float32([3, 4.5])) == pytest.approx(20)
    assert decibels(0, 1) == -np.inf


@pytest.mark.parametrize(
    ("axis", "depth", "group", "shape"),
    [(None, None, 0, ()), (1, None, 0, (6,)), (None, 0, 4, (3, 6)), (None, 1, 4, (10, 2))],
)
def test_scales_of_weights_have_the_shape_that_was_asked_for(
    axis: int | None, depth: int | None, group: int, shape: tuple[int, ...]
) -> None:
    weight = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
    for form in (Format(8), Format(4, True, False)):
        scale, zero = weight_parameters(weight, form, axis, depth, group)
        assert scale.shape == zero.shape == shape
        place = (weight.shape, axis, depth, group)
        wide = broadcast_parameters(scale, *place), broadcast_parameters(zero, *place)
        assert signal_to_noise(weight, rounded(weight, *wide, form)) > (
            35 if form.bits == 8 else 15
        )


def test_clipping_helps_weights_of_few_bits() -> None:
    weight = np.random.default_rng(1).laplace(size=(4, 4096)).astype(np.float32)
    form = Format(3)
    scale, zero = weight_parameters(weight, form, 0)
    full = parameters(weight.min(1), weight.max(1), form)
    best = signal_to_noise(weight, rounded(weight, scale[:, None], zero[:, None], form))
    assert best > 1 + signal_to_noise(
        weight, rounded(weight, full[0][:, None], full[1][:, None], form)
    )


@settings(max_examples=30)
@given(VECTORS, st.integers(2, 8))
def test_a_table_maps_each_value_to_its_nearest_entry(x: np.ndarray, bits: int) -> None:
    for table in (kmeans(x, 2**bits), powers_of_two(x, 2**bits)):
        assert table.size <= 2**bits
        assert (np.diff(table) >= 0).all()
        best = np.abs(x[:, None] - table.astype(np.float64)).min(1)
        found = np.abs(x - table[nearest(x, table)].astype(np.float64))
        np.testing.assert_allclose(found, best, rtol=1e-6)


def test_kmeans_beats_even_steps_on_a_skewed_distribution() -> None:
    x = np.random.default_rng(2).standard_normal(20000).astype(np.float32) ** 3
    table = kmeans(x, 16)
    even = np.linspace(x.min(), x.max(), 16).astype(np.float32)
    assert signal_to_noise(x, table[nearest(x, table)]) > 8 + signal_to_noise(
        x, even[nearest(x, even)]
    )


def test_powers_of_two_are_powers_of_two() -> None:
    table = powers_of_two(np.float32([0.9, -0.3, 0.04]), 16)
    sizes = np.log2(np.abs(table[table != 0]))
    np.testing.assert_array_equal(sizes, np.rint(sizes))
    assert 1.0 in table
    assert 0.0 in table
