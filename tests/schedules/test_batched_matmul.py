"""Products of two activations against NumPy's float64 product."""

from __future__ import annotations

from dataclasses import replace

import pytest
from harness import ALL_TRAITS, AVX512, nests, scheduled
from products import bias_gelu_residual, check, matmul

from schedules import batched_matmul
from schedules.interface import TargetTraits

SHAPES = [
    ((1, 2, 128, 32), (1, 2, 32, 128), False),
    ((1, 2, 128, 32), (1, 2, 128, 32), True),
    ((1, 3, 197, 64), (1, 3, 197, 64), True),
    ((1, 3, 50, 197), (1, 3, 197, 64), False),
    ((5, 3), (3, 7), False),
    ((5, 1), (9, 1), True),
    ((2, 1, 3, 19), (4, 19, 21), False),
    ((1, 1, 3, 19), (2, 4, 35, 19), True),
    ((2, 3, 4, 6), (6, 5), False),
    ((2, 70), (70, 33), False),
]


@pytest.mark.parametrize(("a", "b", "transposed"), SHAPES, ids=str)
@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
def test_shapes(
    a: tuple[int, ...], b: tuple[int, ...], transposed: bool, traits: TargetTraits
) -> None:
    workload = matmul(a, b, transpose_b=transposed)
    found = batched_matmul.candidates(workload, traits)
    for candidate in found if traits.lanes == 16 else found[:1]:
        check(candidate, workload, traits)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_number_of_workers(threads: int) -> None:
    workload = matmul((1, 100, 20), (1, 20, 40))
    traits = replace(AVX512, threads=threads)
    candidate = batched_matmul.candidates(workload, traits)[0]
    check(candidate, workload, traits)
    (loop,) = nests(scheduled(candidate))
    assert int(loop.extent) >= threads


def test_panel_too_large_for_the_stack() -> None:
    workload = matmul((20, 600), (600, 40))
    for candidate in batched_matmul.candidates(workload, AVX512):
        check(candidate, workload, AVX512)


def test_epilogue() -> None:
    workload = matmul((2, 9, 16), (2, 16, 24), epilogue=bias_gelu_residual((2, 9, 24)))
    for candidate in batched_matmul.candidates(workload, AVX512):
        check(candidate, workload, AVX512)


@pytest.mark.parametrize("dtype", ["float64", "int32", "int64", "uint8"])
@pytest.mark.parametrize("transposed", [False, True])
def test_other_types(dtype: str, transposed: bool) -> None:
    b = (2, 17, 40) if transposed else (2, 40, 17)
    output = "int32" if dtype == "uint8" else dtype
    workload = matmul((2, 7, 40), b, transpose_b=transposed, dtype=dtype, output=output)
    check(batched_matmul.candidates(workload, AVX512)[0], workload, AVX512)


def test_constants_are_taken_too() -> None:
    workload = matmul((4, 8), (8, 8), constant=True)
    check(batched_matmul.candidates(workload, AVX512)[0], workload, AVX512)
