"""resample, overlap_add and pad against NumPy loops over odd shapes, for every vector width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512, run_candidate

from schedules import movement, overlap, resample
from schedules.interface import Epilogue, Op, Step, TargetTraits, TensorSig, Workload

RNG = np.random.default_rng(3)
Array = np.ndarray[Any, Any]


def negated(kind: str, inputs: list[Array], expected: Array, attrs: dict[str, Any]) -> Workload:
    """A workload with an epilogue, which every kernel must apply."""
    dtype = str(expected.dtype)
    op = Op(
        kind,
        tuple(TensorSig(a.shape, str(a.dtype)) for a in inputs),
        TensorSig(expected.shape, dtype),
        tuple(sorted(attrs.items())),
    )
    return Workload(op, Epilogue((), (Step("negative", (0,)),), dtype))


def run_all(
    family: Any, workload: Workload, inputs: list[Array], traits: TargetTraits
) -> list[Array]:
    found = family.candidates(workload, traits)
    assert found
    return [-run_candidate(c, workload, inputs, traits) for c in found]


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=str)
@pytest.mark.parametrize("shape", [(3, 7, 1), (2, 9, 5), (1, 4, 133)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_resample(shape: tuple[int, int, int], dtype: str, traits: TargetTraits) -> None:
    x = RNG.standard_normal(shape).astype(dtype)
    positions = RNG.integers(0, shape[1], (3, 71)).astype(np.int32)
    weights = RNG.standard_normal((3, 71)).astype(np.float32)
    wide = x.astype(np.float64)[:, positions] * weights[None, ..., None]
    expected = wide.sum(1).astype(dtype)
    workload = negated("resample", [x, positions, weights], expected, {})
    for result in run_all(resample, workload, [x, positions, weights], traits):
        tolerance = 2e-3 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(result, expected, atol=tolerance, rtol=tolerance)


def overlapped(x: Array, first: bool, size: int, stride: int, before: int, dilation: int) -> Array:
    moved = x if first else x.transpose(0, 3, 2, 1, 4)
    p, taps, q, windows, r = moved.shape
    out = np.zeros((p, q, size, r), x.dtype)
    for k in range(taps):
        for w in range(windows):
            m = w * stride + k * dilation - before
            if 0 <= m < size:
                out[:, :, m] += moved[:, k, :, w]
    return out if first else out.transpose(0, 2, 1, 3)


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=str)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("behind", [1, 37])
@pytest.mark.parametrize(
    ("stride", "before", "dilation"), [(1, 0, 1), (1, 2, 2), (2, 1, 1), (3, 4, 2)]
)
def test_overlap_add(
    stride: int, before: int, dilation: int, behind: int, first: bool, traits: TargetTraits
) -> None:
    shape = (2, 3, 2, 75, behind) if first else (2, 75, 2, 3, behind)
    x = RNG.standard_normal(shape).astype(np.float32)
    size = 74 * stride + 2 * dilation + 1 - before - 1
    expected = overlapped(x, first, size, stride, before, dilation)
    attrs = {
        "window_first": first,
        "size": size,
        "stride": stride,
        "before": before,
        "dilation": dilation,
    }
    workload = negated("overlap_add", [x], expected, attrs)
    for result in run_all(overlap, workload, [x], traits):
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
@pytest.mark.parametrize("before", [(0, 0, 2, 1), (1, 0, 9, 0), (0, 2, 0, 11)])
def test_padding_beyond_the_extent(mode: Any, before: tuple[int, ...]) -> None:
    x = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    after = (0, 1, 7, 13)
    expected = np.pad(x, list(zip(before, after, strict=True)), mode=mode)
    attrs = {"before": before, "mode": mode, "value": 0.0}
    workload = negated("pad", [x], expected, attrs)
    for result in run_all(movement, workload, [x], AVX512):
        np.testing.assert_array_equal(result, expected)


def test_padding_with_a_value_read_at_run_time() -> None:
    x, value = RNG.standard_normal((2, 3, 5)).astype(np.float32), np.full(1, 7.5, np.float32)
    expected = np.pad(x, [(1, 0), (0, 2), (3, 4)], constant_values=7.5)
    attrs = {"before": (1, 0, 3), "mode": "constant"}
    workload = negated("pad", [x, value], expected, attrs)
    for result in run_all(movement, workload, [x, value], AVX512):
        np.testing.assert_array_equal(result, expected)
