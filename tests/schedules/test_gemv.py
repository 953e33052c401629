"""Products of few rows or few columns against NumPy's float64 product."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512
from products import bias_gelu_residual, check, matmul

from schedules import gemm, gemv
from schedules.interface import TargetTraits


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("columns", [384, 1000])
def test_few_rows(rows: int, columns: int) -> None:
    workload = matmul((rows, 100), (100, columns), constant=True)
    (candidate,) = gemm.candidates(workload, AVX512)
    assert dict(candidate.decisions)["vectors"] > 4  # wide panels keep the multipliers busy
    check(candidate, workload, AVX512)


@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 1, 64), (1, 3, 1537), (197, 2, 100)])
@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
@pytest.mark.parametrize("transposed", [False, True])
def test_few_columns(
    rows: int, columns: int, depth: int, traits: TargetTraits, transposed: bool
) -> None:
    b = (columns, depth) if transposed else (depth, columns)
    workload = matmul((rows, depth), b, transpose_b=transposed, constant=True)
    found = [c for c in gemv.candidates(workload, traits) if "inner" in c.name]
    assert found
    for candidate in found:
        check(candidate, workload, traits)


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
def test_one_query_meets_many_keys(traits: TargetTraits) -> None:
    workload = matmul((2, 3, 1, 40), (2, 1, 77, 40), transpose_b=True)
    (candidate,) = gemv.candidates(workload, traits)
    check(candidate, workload, traits)


@pytest.mark.parametrize("columns", [3, 300])
def test_epilogue(columns: int) -> None:
    workload = matmul(
        (1, 2, 48), (48, columns), constant=True, epilogue=bias_gelu_residual((1, 2, columns))
    )
    found = (*gemm.candidates(workload, AVX512), *gemv.candidates(workload, AVX512))
    assert len(found) == (2 if columns < 16 else 1)
    for candidate in found:
        check(candidate, workload, AVX512)


@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_other_types(dtype: str) -> None:
    workload = matmul((5, 37), (37, 3), constant=True, dtype=dtype)
    (candidate,) = gemv.candidates(workload, AVX512)
    check(candidate, workload, AVX512)


def test_large_products_are_left_to_gemm() -> None:
    assert gemv.candidates(matmul((64, 64), (64, 64), constant=True), AVX512) == ()


def test_packing() -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(gemv.Transposed().pack(matrix), matrix.T)
    assert gemv.Transposed().packed_shape((2, 3)) == (3, 2)
