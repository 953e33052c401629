"""Kernels on a GPU: right in every order of threads, and the emulation tells when they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import on_gpu
import pytest
from gpu_process import Gpu

Array = np.ndarray[Any, Any]
BARRIER = "  __syncthreads();\n"


def draw(*shape: int, dtype: str = "float32") -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("make", [on_gpu.reversal, on_gpu.dynamic_reversal])
def test_threads_exchange_through_shared_memory(gpu: Gpu, make: Callable[[], Any]) -> None:
    x = draw(128)
    for order in gpu.orders:
        _, y = gpu.ordered(order, on_gpu.run_kernel, make, [x, np.zeros_like(x)])
        assert np.array_equal(y, x[::-1] * 2 + 1)


def test_warps_exchange_by_shuffles(gpu: Gpu) -> None:
    x = draw(5, 100)
    for order in gpu.orders:
        _, y = gpu.ordered(order, on_gpu.run_kernel, on_gpu.row_sums, [x, np.zeros(5, "float32")])
        assert np.allclose(y, x.sum(1, dtype="float64"), rtol=1e-5, atol=1e-5)


def test_halves(gpu: Gpu) -> None:
    x = draw(96, dtype="float16")
    _, y = gpu.call(on_gpu.run_kernel, on_gpu.halved_exponentials, [x, np.zeros_like(x)])
    assert np.allclose(y, np.exp(x.astype("float64") / 2), rtol=2**-9)
    x = draw(5, 100, dtype="float16")
    _, y = gpu.call(on_gpu.run_kernel, on_gpu.half_row_sums, [x, np.zeros(5, "float16")])
    assert np.allclose(y, x.sum(1, dtype="float64"), rtol=2**-10, atol=2**-10)


def test_products_of_bytes(gpu: Gpu) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (32, 16), dtype=np.int8) for _ in "ab")
    words = [a.view(np.int32), b.view(np.int32), np.zeros((32, 32), np.int32)]
    *_, y = gpu.call(on_gpu.run_kernel, on_gpu.byte_products, words)
    assert np.array_equal(y, a.astype(np.int32) @ b.astype(np.int32).T)


class Without:
    """Source without its barrier number `index`."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, source: str) -> str:
        parts = source.split(BARRIER)
        assert self.index + 1 < len(parts), "there is no such barrier"
        joined = parts[self.index] + parts[self.index + 1]
        return BARRIER.join([*parts[: self.index], joined, *parts[self.index + 2 :]])


def replace_once(source: str, old: str, new: str) -> str:
    assert source.count(old) == 1, (old, source)
    return source.replace(old, new)


def unsynchronised_write(source: str) -> str:
    """A plant: every thread writes where its neighbour does, without any barrier missing."""
    return replace_once(source, "[((int)threadIdx.x)] = ", "[(((int)threadIdx.x) & 62)] = ")


def outside_of_shared(source: str) -> str:
    """A plant: the last thread reads in front of the shared array."""
    return replace_once(source, "[(63 - ((int)threadIdx.x))]", "[(62 - ((int)threadIdx.x))]")


def outside_of_the_output(source: str) -> str:
    """A plant: the last block writes behind its array."""
    return replace_once(source, "  y_ptr[(", "  y_ptr[1 + (")


def barrier_for_some(source: str) -> str:
    """A plant: half a warp waits at another barrier than the other half."""
    waits = "if (threadIdx.x < 16) {\n__syncthreads();\n} else {\n__syncthreads();\n}\n"
    return replace_once(source, BARRIER, waits)


def test_a_missing_barrier_is_a_race(emulated: Gpu) -> None:
    x = draw(128)
    for order in emulated.orders:
        with pytest.raises(Exception, match=r"race: thread \d+ of block \d (reads|writes) shared"):
            emulated.ordered(
                order, on_gpu.run_kernel, on_gpu.reversal, [x, np.zeros_like(x)], Without(0)
            )


def test_results_differ_between_orders_where_a_barrier_is_missing(emulated: Gpu) -> None:
    """The second line of defence, when accesses are not checked."""
    x = draw(128)
    found = [
        emulated.ordered(order, on_gpu.run_unchecked, on_gpu.reversal, [x, x], Without(0))[1]
        for order in ("forward", "reverse")
    ]
    assert not np.array_equal(found[0], found[1], equal_nan=True)


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (unsynchronised_write, "race: .* writes shared memory"),
        (outside_of_shared, "reads 4 bytes outside of its memory"),
        (outside_of_the_output, "writes 4 bytes outside of its memory"),
        (barrier_for_some, "wait at different barriers"),
    ],
)
def test_planted_mistakes_are_found(
    emulated: Gpu, plant: Callable[[str], str], reason: str
) -> None:
    x = draw(128)
    with pytest.raises(Exception, match=reason):
        emulated.call(on_gpu.run_kernel, on_gpu.reversal, [x, np.zeros_like(x)], plant)


def race_between_blocks(source: str) -> str:
    """A plant: both blocks write the same half of the output."""
    return replace_once(
        source,
        "y_ptr[((((int)blockIdx.x) * 64) + ((int)threadIdx.x))]",
        "y_ptr[((int)threadIdx.x)]",
    )


def test_blocks_may_not_write_the_same_memory(emulated: Gpu) -> None:
    x = draw(128)
    with pytest.raises(Exception, match=r"race: .* writes device memory"):
        emulated.call(
            on_gpu.run_kernel, on_gpu.reversal, [x, np.zeros_like(x)], race_between_blocks
        )


def test_a_gpu_that_failed_goes_on(emulated: Gpu) -> None:
    x = draw(128)
    with pytest.raises(Exception, match="race"):
        emulated.call(on_gpu.run_kernel, on_gpu.reversal, [x, np.zeros_like(x)], Without(0))
    _, y = emulated.call(on_gpu.run_kernel, on_gpu.reversal, [x, np.zeros_like(x)])
    assert np.array_equal(y, x[::-1] * 2 + 1)


def test_launches() -> None:
    assert on_gpu.launches(on_gpu.reversal) == "grid 2x1x1, block 64x1x1, 256 bytes shared"
    assert on_gpu.launches(on_gpu.dynamic_reversal) == "grid 2x1x1, block 64x1x1, 256 bytes shared"
    assert on_gpu.launches(on_gpu.byte_products) == "grid 32x1x1, block 32x1x1, 0 bytes shared"
