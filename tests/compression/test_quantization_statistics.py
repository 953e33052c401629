"""Histograms, statistics and ranges: bounded memory, independence of order, known optima."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from graphopt.compression.quantization.config import METHODS, QuantizationConfig
from graphopt.compression.quantization.histogram import BINS, Accumulator
from graphopt.compression.quantization.ranges import clipped_share, find_range
from graphopt.compression.quantization.scheme import parameters, rounded, signal_to_noise
from graphopt.compression.quantization.statistics import (
    Statistics,
    TensorStatistics,
    gather,
)
from graphopt.errors import InputError

VALUES = arrays.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.floats(-(2.0**66), 2.0**66, width=32, allow_subnormal=False),
)


def statistics(*batches: np.ndarray, axis: int | None = None) -> TensorStatistics:
    channels = {} if axis is None else {"t": axis}
    return gather(({"t": batch} for batch in batches), ["t"], channels).of("t")


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_a_histogram_does_not_depend_on_the_order_of_the_batches(batches: list) -> None:
    forward, backward = Accumulator(), Accumulator()
    for batch in batches:
        forward.add(np.abs(batch)[batch != 0])
    for batch in reversed(batches):
        backward.add(np.abs(batch)[batch != 0])
    first, second = forward.result(), backward.result()
    assert first.limit == second.limit
    np.testing.assert_array_equal(first.counts, second.counts)
    assert first.total == sum(np.count_nonzero(batch) for batch in batches)


@given(VALUES)
def test_every_value_is_in_its_bin(values: np.ndarray) -> None:
    sizes = np.abs(values)[values != 0]
    counted = Accumulator()
    counted.add(sizes)
    found = counted.result()
    if not sizes.size:
        assert found.limit == 0
        return
    assert found.limit / 2 <= sizes.max() < found.limit
    edges = np.linspace(0, found.limit, BINS + 1)
    expected, _ = np.histogram(sizes.astype(np.float64), edges)
    np.testing.assert_array_equal(found.counts, expected)


@settings(max_examples=30)
@given(st.lists(VALUES, min_size=1, max_size=4), st.sampled_from(METHODS))
@example(
    [np.float32([0]), np.float32([-1] * 3), np.float32([3.854924e17]), np.float32([-3e19, 1])],
    "entropy",
)
def test_ranges_hold_zero_and_lie_inside_what_was_seen(batches: list, method: str) -> None:
    found = statistics(*batches)
    low, high = find_range(found, QuantizationConfig(method=method))
    assert min(found.low, 0) <= low <= 0 <= high <= max(found.high, 0)
    restored = Statistics.from_json(Statistics(1, {"t": found}).to_json()).of("t")
    assert restored.to_dict() == found.to_dict()
    assert find_range(restored, QuantizationConfig(method=method)) == (low, high)


def test_min_max_and_moving_average() -> None:
    found = statistics(np.float32([-1, 2]), np.float32([-3, 1]))
    assert find_range(found, QuantizationConfig(method="min-max")) == (-3, 2)
    low, high = find_range(found, QuantizationConfig(method="moving-average"))
    assert (low, high) == (pytest.approx(-1.2), pytest.approx(1.9))


def test_percentile_agrees_with_numpy() -> None:
    x = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    found = statistics(x[:1000], x[1000:50_000], x[50_000:])
    config = QuantizationConfig(method="percentile", percentile=99)
    low, high = find_range(found, config)
    assert low == pytest.approx(np.quantile(x, 0.005), rel=0.01)
    assert high == pytest.approx(np.quantile(x, 0.995), rel=0.01)
    assert clipped_share(found, low, high) == pytest.approx(0.01, rel=0.02)
    positive = statistics(np.abs(x))
    low, high = find_range(positive, config)
    assert (low, high) == (0, pytest.approx(np.quantile(np.abs(x), 0.995), rel=0.01))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", ["two-sided", "rectified", "outliers"])
def test_mse_finds_about_the_best_range(shape: str, symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    x = rng.laplace(size=100_000).astype(np.float32)
    if shape == "rectified":
        x = np.maximum(x - 0.5, 0)
    if shape == "outliers":
        x[:3] = 60
    config = QuantizationConfig(method="mse", activation_symmetric=symmetric, activations="int8")
    form = config.activation_form

    def quality(low: float, high: float) -> float:
        return signal_to_noise(x, rounded(x, *parameters(low, high, form), form))

    low, high = float(min(x.min(), 0)), float(x.max())
    shares = np.linspace(0.05, 1, 60)
    tried = [quality(low * a, high * b) for a in shares for b in (a, min(2 * a, 1), 1)]
    found = quality(*find_range(statistics(x[:7], x[7:]), config))
    assert found > quality(low, high) + (0.3 if shape == "outliers" else -0.1)
    assert found > max(tried) - 0.25


def test_entropy_clips_outliers_and_keeps_an_even_distribution() -> None:
    rng = np.random.default_rng(2)
    config = QuantizationConfig(method="entropy")
    x = rng.standard_normal(100_000).astype(np.float32)
    x[:2] = 40
    low, high = find_range(statistics(x), config)
    assert high < 20
    even = rng.uniform(-1, 1, 100_000).astype(np.float32)
    low, high = find_range(statistics(even), config)
    assert low < -0.9
    assert high > 0.9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 5.0, -2.0])
def test_one_constant(value: float, method: str) -> None:
    low, high = find_range(
        statistics(np.full((3, 4), value, np.float32)), QuantizationConfig(method=method)
    )
    # The one value that there is must survive.
    form = QuantizationConfig().activation_form
    scale, zero = parameters(low, high, form)
    assert rounded(np.float32([value]), scale, zero, form)[0] == pytest.approx(value, rel=0.02)


def test_statistics_per_channel() -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 5, 5)).astype(np.float32)
    found = statistics(x[:1], x[1:], axis=1)
    np.testing.assert_allclose(found.mean, x.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found.peak, np.abs(x).max((0, 2, 3)))
    assert statistics(x, x[:, :2], axis=1).mean is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match=r"tensor 't' has an? (NaN|infinity)"):
        statistics(np.float32([1, value]))


def test_a_tensor_that_was_never_seen_is_refused_by_name() -> None:
    found = gather([{"t": np.zeros((0, 3), np.float32)}], ["t"], {})
    with pytest.raises(InputError, match="never saw a value of tensor 't'"):
        found.of("t")
    with pytest.raises(InputError, match="'other'"):
        found.of("other")
    with pytest.raises(InputError, match="no calibration data"):
        gather([], ["t"], {})
