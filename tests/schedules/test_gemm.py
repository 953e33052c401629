"""Packed GEMM against NumPy's float64 product."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX2, AVX512, SSE, random_inputs, run_candidate
from hypothesis import given
from hypothesis import strategies as st
from products import bias_gelu_residual, check, matmul

from schedules import gemm
from schedules.interface import Epilogue, Step, TargetTraits, TensorSig


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 7), (3, 100), (5, 1), (49, 100), (128, 7), (197, 1), (197, 100)]
)
@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
def test_odd_sizes(rows: int, columns: int, traits: TargetTraits) -> None:
    workload = matmul((rows, 64), (64, columns), constant=True)
    check(gemm.candidates(workload, traits)[-1], workload, traits)


@pytest.mark.parametrize("depth", [1, 3, 100, 1536])
def test_depths(depth: int) -> None:
    workload = matmul((49, depth), (depth, 40), constant=True)
    for candidate in gemm.candidates(workload, AVX512):
        check(candidate, workload, AVX512)


@pytest.mark.parametrize("columns", [384, 1000])
def test_wide(columns: int) -> None:
    workload = matmul((1, 197, 192), (192, columns), constant=True)
    for candidate in gemm.candidates(workload, AVX512):
        check(candidate, workload, AVX512)


def test_leading_axes_transposed_weights_and_epilogue() -> None:
    workload = matmul(
        (2, 3, 5, 33),
        (70, 33),
        transpose_b=True,
        constant=True,
        epilogue=bias_gelu_residual((2, 3, 5, 70)),
    )
    for traits in (AVX512, SSE):
        for candidate in gemm.candidates(workload, traits):
            check(candidate, workload, traits)


def test_operand_broadcast_over_a_leading_axis() -> None:
    steps = Epilogue((TensorSig((2, 1, 20)),), (Step("multiply", (0, 1)),))
    workload = matmul((2, 9, 8), (8, 20), constant=True, epilogue=steps)
    check(gemm.candidates(workload, AVX2)[0], workload, AVX2)


@pytest.mark.parametrize(
    ("dtype", "output"), [("float64", "float64"), ("int32", "int32"), ("int8", "int32")]
)
def test_other_types(dtype: str, output: str) -> None:
    workload = matmul((7, 20), (20, 19), constant=True, dtype=dtype, output=output)
    for candidate in gemm.candidates(workload, AVX512):
        check(candidate, workload, AVX512)


def test_half_precision_accumulates_in_single() -> None:
    workload = matmul((3, 600), (600, 20), constant=True, dtype="float16")
    a, b = random_inputs(workload)
    candidate = gemm.candidates(workload, AVX512)[0]
    actual = run_candidate(candidate, workload, (a, b), AVX512)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    # One rounding to half precision; sums in half precision would be wrong by far more.
    np.testing.assert_allclose(actual, exact, rtol=1e-3, atol=2e-3)


def test_non_finite_elements_stay_in_their_row() -> None:
    workload = matmul((20, 30), (30, 40), constant=True)
    a, b = random_inputs(workload)
    a[3, 5], a[7, 0] = np.inf, np.nan
    actual = run_candidate(gemm.candidates(workload, AVX512)[0], workload, (a, b), AVX512)
    affected = ~np.isfinite(actual).all(axis=1)
    assert list(np.flatnonzero(affected)) == [3, 7]


def test_activations_and_batches_of_weights_are_left_to_others() -> None:
    assert gemm.candidates(matmul((4, 8), (8, 8)), AVX512) == ()


def test_batches_of_weights() -> None:
    workload = matmul((2, 3, 5, 8), (3, 8, 20), constant=True)
    for candidate in gemm.candidates(workload, AVX2):
        check(candidate, workload, AVX2)


@given(
    depth=st.integers(1, 5),
    columns=st.integers(1, 40),
    block=st.sampled_from([4, 16, 48]),
    transposed=st.booleans(),
)
def test_packing_keeps_every_element(
    depth: int, columns: int, block: int, transposed: bool
) -> None:
    matrix = np.arange(1.0, depth * columns + 1).reshape(depth, columns)
    packed = gemm.ColumnPanels(block, transposed).pack(matrix.T if transposed else matrix)
    assert packed.shape == gemm.ColumnPanels(block, transposed).packed_shape(
        matrix.shape[::-1] if transposed else matrix.shape
    )
    merged = packed.transpose(1, 0, 2).reshape(depth, -1)
    np.testing.assert_array_equal(merged[:, :columns], matrix)
    assert not merged[:, columns:].any()


def test_price_follows_the_tile() -> None:
    """A thin product is priced as less efficient than a tall one."""
    thin = gemm.candidates(matmul((1, 256), (256, 512), constant=True), AVX512)[0]
    tall = gemm.candidates(matmul((140, 256), (256, 512), constant=True), AVX512)[0]
    assert thin.cost.efficiency < 0.8 < tall.cost.efficiency <= 1
    assert tall.cost.flops == 140 * thin.cost.flops
