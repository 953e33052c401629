"""softmax and log_softmax against float64: axes, odd lengths, masks, special values, dtypes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from harness import ALL_TRAITS, AVX512, run_candidate, scheduled, serial_extents

from schedules import softmax
from schedules.interface import Epilogue, Op, Step, TargetTraits, TensorSig, Workload

CASES = [((2, 3, 197), 2), ((7, 1000), 1), ((3, 5), 1), ((2, 33, 40), 1), ((50, 3), 0)]
CASES += [((1, 4, 5, 21), 1), ((2, 9000), 1), ((9, 1), 1), ((2, 6000, 18), 1)]


def workload(
    kind: str, shape: tuple[int, ...], axis: int, dtype: str = "float32", steps: int = 0
) -> Workload:
    sig = TensorSig(shape, dtype)
    op = Op(kind, (sig,), sig, (("axis", axis),), (False,))
    operands = (
        TensorSig(shape[-1:] if len(shape) == 1 else (*(1 for _ in shape[1:]), shape[-1]), dtype),
    )
    if not steps:
        return Workload(op, Epilogue(dtype=dtype))
    return Workload(op, Epilogue(operands, (Step("multiply", (0, 1)),), dtype, (False,)))


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
@pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
@pytest.mark.parametrize(("shape", "axis"), CASES)
def test_against_float64(
    shape: tuple[int, ...], axis: int, kind: str, traits: TargetTraits
) -> None:
    w = workload(kind, shape, axis, steps=1)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) * 5).astype(np.float32)
    factor = rng.standard_normal(w.inputs[1].shape).astype(np.float32)
    (c,) = softmax.candidates(w, traits)
    assert not serial_extents(scheduled(c))
    exact = getattr(scipy.special, kind)(x.astype(np.float64), axis=axis) * factor
    error = np.abs(run_candidate(c, w, [x, factor], traits) - exact)
    assert np.max(error) <= 1e-6 * np.max(np.abs(exact))


@pytest.mark.parametrize("axis", [0, 1])
def test_masks_and_special_values(axis: int) -> None:
    x = np.random.default_rng(1).standard_normal((40, 40)).astype(np.float32)
    x[3, 5:] = -np.inf
    x[4, :] = -np.inf
    x[:, 6] = -np.inf
    x[5, 7] = np.nan
    x[8, 9] = np.inf
    x[10] *= 1000
    w = workload("softmax", x.shape, axis)
    result = run_candidate(softmax.candidates(w, AVX512)[0], w, [x], AVX512)
    with np.errstate(invalid="ignore"):
        exact = np.exp(x - x.max(axis, keepdims=True).astype(np.float64))
        exact /= exact.sum(axis, keepdims=True)
    np.testing.assert_allclose(result, exact, atol=1e-6)
    assert np.all(result[x == -np.inf][~np.isnan(exact[x == -np.inf])] == 0)


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 1e-3), ("float64", 1e-14)])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
def test_dtypes(kind: str, axis: int, dtype: str, limit: float) -> None:
    x = np.random.default_rng(2).standard_normal((21, 37)).astype(dtype)
    w = workload(kind, x.shape, axis, dtype)
    result = run_candidate(softmax.candidates(w, AVX512)[0], w, [x], AVX512)
    exact = getattr(scipy.special, kind)(x.astype(np.float64), axis=axis)
    np.testing.assert_allclose(result, exact, rtol=2 * limit, atol=limit)
