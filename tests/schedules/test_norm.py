"""layer_norm and rms_norm against float64: widths, axes, large means, dtypes, epilogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512, run_candidate, scheduled, serial_extents

from schedules import norm
from schedules.interface import Epilogue, Op, Step, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]


def workload(kind: str, shape: tuple[int, ...], split: int, dtype: str = "float32") -> Workload:
    inputs = [TensorSig(shape, dtype), TensorSig(shape[split:], dtype)]
    if kind == "layer_norm":
        inputs.append(inputs[1])
    attrs = (("axes", tuple(range(split, len(shape)))), ("epsilon", 1e-5))
    op = Op(kind, tuple(inputs), inputs[0], attrs, (False, True, True)[: len(inputs)])
    return Workload(op, Epilogue((inputs[0],), (Step("add", (0, 1)),), dtype, (False,)))


def reference(kind: str, arrays: list[Array], split: int) -> Array:
    x, gamma, *rest = (a.astype(np.float64) for a in arrays)
    axes = tuple(range(split, x.ndim))
    residual = rest[-1]
    mean = x.mean(axes, keepdims=True) if kind == "layer_norm" else 0
    y = (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5) * gamma
    result: Array = y + residual + (rest[0] if kind == "layer_norm" else 0)
    return result


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(
    ("shape", "split"),
    [
        ((2, 5, 197), 2),
        ((3, 384), 1),
        ((3, 7, 120), 2),
        ((4, 3), 1),
        ((2, 6, 5, 7), 2),
        ((9, 77), 0),
    ],
)
def test_against_float64(
    shape: tuple[int, ...], split: int, kind: str, traits: TargetTraits
) -> None:
    w = workload(kind, shape, split)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s.shape).astype(np.float32) for s in w.inputs]
    (c,) = norm.candidates(w, traits)
    assert not serial_extents(scheduled(c))
    exact = reference(kind, arrays, split)
    error = np.abs(run_candidate(c, w, arrays, traits) - exact)
    assert np.max(error) <= 2e-6 * np.max(np.abs(exact))


def test_large_mean_costs_no_accuracy() -> None:
    w = workload("layer_norm", (4, 1000), 1)
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(s.shape).astype(np.float32) for s in w.inputs]
    arrays[0] += np.float32(1000)
    exact = reference("layer_norm", arrays, 1)
    result = run_candidate(norm.candidates(w, AVX512)[0], w, arrays, AVX512)
    assert np.max(np.abs(result - exact)) <= 3e-4  # the mean itself is rounded to 6e-5


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 4e-3), ("float64", 1e-13)])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_dtypes(kind: str, dtype: str, limit: float) -> None:
    w = workload(kind, (5, 75), 1, dtype)
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(s.shape).astype(dtype) for s in w.inputs]
    result = run_candidate(norm.candidates(w, AVX512)[0], w, arrays, AVX512)
    np.testing.assert_allclose(result, reference(kind, arrays, 1), atol=limit)
