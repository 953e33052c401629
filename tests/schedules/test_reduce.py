"""Reductions over every pattern of axes against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512, run_candidate, scheduled, serial_extents

from schedules import reduce
from schedules.interface import Epilogue, Op, Step, TargetTraits, TensorSig, Workload


def workload(
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    function: str = "sum",
    keepdims: bool = True,
    dtype: str = "float32",
    steps: tuple[Step, ...] = (),
) -> Workload:
    out = tuple(1 if a in axes else d for a, d in enumerate(shape) if keepdims or a not in axes)
    op = Op(
        "reduce",
        (TensorSig(shape, dtype),),
        TensorSig(out, dtype),
        (("function", function), ("axes", axes), ("keepdims", keepdims)),
        (False,),
    )
    return Workload(op, Epilogue((), steps, dtype))


CASES = [
    ((2, 19, 7, 7), (2, 3)),
    ((2, 32, 8, 9), (2, 3)),
    ((3, 33, 197), (2,)),
    ((3, 33, 197), (1,)),
    ((3, 33, 197), (0,)),
    ((3, 33, 40), (0, 2)),
    ((3, 33, 40), (0, 1, 2)),
    ((5, 2, 3, 4, 6), (1, 3)),
    ((1000,), (0,)),
    ((4, 1, 5), (1,)),
]


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize(("shape", "axes"), CASES)
def test_mean_of_all_patterns(
    shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool, traits: TargetTraits
) -> None:
    if len(axes) == len(shape) and not keepdims:
        pytest.skip("the harness cannot pass rank-0 tensors")
    w = workload(shape, axes, "mean", keepdims, steps=(Step("relu", (0,)),))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = np.maximum(x.astype(np.float64).mean(axes, keepdims=keepdims), 0)
    offered = reduce.candidates(w, traits)
    assert offered
    for c in offered:
        np.testing.assert_allclose(run_candidate(c, w, [x], traits), expected, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "int64", "uint8"])
@pytest.mark.parametrize("function", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize("axes", [(2,), (1,)])
def test_functions_and_dtypes(axes: tuple[int, ...], function: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    shape = (3, 21, 37)
    if dtype.startswith("float"):
        x = rng.uniform(0.5, 1.5, shape).astype(dtype)
    else:
        x = rng.integers(0, 3, shape).astype(dtype)
    w = workload(shape, axes, function, dtype=dtype)
    wide = x.astype(np.float64) if dtype.startswith("float") else x
    with np.errstate(over="ignore"):
        expected = getattr(np, function)(wide, axis=axes, keepdims=True)
    if not dtype.startswith("float"):
        expected = expected.astype(dtype)
    result = run_candidate(reduce.candidates(w, AVX512)[0], w, [x], AVX512)
    limit = {"float16": 2e-3, "float32": 3e-6}.get(dtype, 1e-14)
    np.testing.assert_allclose(result, expected, rtol=limit)


@pytest.mark.parametrize("function", ["max", "min"])
@pytest.mark.parametrize("axes", [(1,), (0,)])
def test_extremes_of_nan_and_infinities(axes: tuple[int, ...], function: str) -> None:
    x = np.random.default_rng(2).standard_normal((80, 80)).astype(np.float32)
    x[0] = -np.inf
    x[1] = np.inf
    x[:, 70] = -np.inf
    x[2, 3] = x[5, 79] = x[79, 17] = np.nan
    w = workload(x.shape, axes, function)
    result = run_candidate(reduce.candidates(w, AVX512)[0], w, [x], AVX512)
    np.testing.assert_array_equal(result, getattr(np, function)(x, axis=axes, keepdims=True))


@pytest.mark.parametrize(("shape", "axis"), [((3, 100_003), 1), ((50_001, 5), 0)])
def test_long_sums_stay_accurate(shape: tuple[int, ...], axis: int) -> None:
    x = np.random.default_rng(3).uniform(0, 1, shape).astype(np.float32)
    w = workload(x.shape, (axis,))
    result = run_candidate(reduce.candidates(w, AVX512)[0], w, [x], AVX512)
    error = np.abs(result - x.astype(np.float64).sum(axis, keepdims=True))
    assert np.all(error <= 1e-6 * np.abs(x).sum(axis, keepdims=True))


def test_global_average_pool_is_shared_among_workers() -> None:
    for c in reduce.candidates(workload((1, 64, 7, 7), (2, 3), "mean"), AVX512):
        assert not serial_extents(scheduled(c))
