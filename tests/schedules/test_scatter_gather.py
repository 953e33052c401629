"""Kernels that read or write where indices say, against NumPy element by element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import AVX512
from plain_harness import run_family

from schedules import gather, scatter

Array = np.ndarray[Any, Any]
TWO = replace(AVX512, threads=2)
RNG = np.random.default_rng(1)
COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def draw(shape: tuple[int, ...], dtype: str) -> Array:
    if dtype.startswith("float"):
        return RNG.standard_normal(shape).astype(dtype)
    return RNG.integers(0, 2 if dtype == "bool" else 9, shape).astype(dtype)


@pytest.mark.parametrize(
    ("data", "indices", "axis", "dtype"),
    [
        ((5,), (9,), 0, "float32"),
        ((4, 5), (2, 9), 1, "int64"),
        ((4, 5, 6), (7, 3, 6), 0, "bool"),
        ((4, 5, 60), (4, 5, 60), 1, "uint8"),
        ((3, 4), (0, 4), 0, "float32"),
    ],
)
@pytest.mark.parametrize("reduction", list(COMBINE))
def test_scatter_elements_applies_updates_in_order(
    data: tuple[int, ...], indices: tuple[int, ...], axis: int, dtype: str, reduction: str
) -> None:
    x, updates, size = draw(data, dtype), draw(indices, dtype), data[axis]
    at = RNG.integers(-size, size, indices)
    [y] = run_family(
        scatter.elements_candidates,
        "scatter_elements",
        [x, at, updates],
        [(data, dtype)],
        TWO,
        axis=axis,
        reduction=reduction,
    )
    expected = x.copy()
    for place in np.ndindex(*indices):
        target = (*place[:axis], at[place], *place[axis + 1 :])
        with np.errstate(over="ignore"):
            expected[target] = COMBINE[reduction](expected[target], updates[place])
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("data", "indices", "dtype"),
    [
        ((8,), (12, 1), "float32"),
        ((4, 5), (6, 2), "int32"),
        ((4, 5, 6), (3, 2, 1), "bool"),
        ((4, 5, 6), (2, 0), "float64"),
        ((300, 200), (50, 1), "float32"),  # shared by ranges of rows
        ((6,), (0, 1), "float16"),
    ],
)
@pytest.mark.parametrize("reduction", ["none", "add", "max"])
def test_scatter_nd_applies_updates_in_order(
    data: tuple[int, ...], indices: tuple[int, ...], dtype: str, reduction: str
) -> None:
    depth = indices[-1]
    x, updates = draw(data, dtype), draw((*indices[:-1], *data[depth:]), dtype)
    at = np.zeros(indices, np.int64)
    for d in range(depth):
        at[..., d] = RNG.integers(-data[d], data[d], indices[:-1])
    [y] = run_family(
        scatter.nd_candidates,
        "scatter_nd",
        [x, at, updates],
        [(data, dtype)],
        TWO,
        reduction=reduction,
    )
    expected = x.copy()
    for place in np.ndindex(*indices[:-1]):
        target = tuple(at[place])
        expected[target] = COMBINE[reduction](expected[target], updates[place])
    np.testing.assert_array_equal(y, expected)


def test_what_would_be_written_outside_is_left_out() -> None:
    x, updates = draw((4, 3), "float32"), draw((2, 3), "float32")
    for bad in (4, -5, 2**40, -(2**40)):
        at = np.array([[1, bad, 2], [0, 1, bad]])
        [y] = run_family(
            scatter.elements_candidates,
            "scatter_elements",
            [x, at, updates],
            [((4, 3), "float32")],
            TWO,
            axis=0,
            reduction="none",
        )
        expected = x.copy()
        for place in [(0, 0), (0, 2), (1, 0), (1, 1)]:
            expected[at[place], place[1]] = updates[place]
        np.testing.assert_array_equal(y, expected)
        at = np.array([[1], [bad]])
        [y] = run_family(
            scatter.nd_candidates,
            "scatter_nd",
            [x, at, updates],
            [((4, 3), "float32")],
            TWO,
            reduction="none",
        )
        expected = x.copy()
        expected[1] = updates[0]
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("data", "indices", "axis"), [((5,), (9,), 0), ((4, 5), (2, 9), 1), ((4, 5, 6), (7, 3, 6), 0)]
)
def test_gather_elements(data: tuple[int, ...], indices: tuple[int, ...], axis: int) -> None:
    x, size = draw(data, "float32"), data[axis]
    at = RNG.integers(-size, size, indices).astype(np.int32)
    [y] = run_family(
        gather.candidates, "gather_elements", [x, at], [(indices, "float32")], TWO, axis=axis
    )
    for place in np.ndindex(*indices):
        assert y[place] == x[(*place[:axis], at[place], *place[axis + 1 :])]


@pytest.mark.parametrize(
    ("data", "indices", "batch"),
    [
        ((8,), (4, 1), 0),
        ((4, 5), (6, 2), 0),
        ((2, 5, 6), (2, 3, 1), 1),
        ((2, 3, 5, 40), (2, 3, 4, 1), 2),
        ((2, 3, 5, 6), (2, 3, 2), 2),
    ],
)
def test_gather_nd(data: tuple[int, ...], indices: tuple[int, ...], batch: int) -> None:
    x, depth = draw(data, "int16"), indices[-1]
    at = np.zeros(indices, np.int64)
    for d in range(depth):
        at[..., d] = RNG.integers(-data[batch + d], data[batch + d], indices[:-1])
    expected = np.empty((*indices[:-1], *data[batch + depth :]), np.int16)
    for place in np.ndindex(*indices[:-1]):
        expected[place] = x[(*place[:batch], *at[place])]
    [y] = run_family(
        gather.candidates, "gather_nd", [x, at], [(expected.shape, "int16")], TWO, batch_dims=batch
    )
    np.testing.assert_array_equal(y, expected)


def test_gathers_never_read_outside() -> None:
    x = draw((4, 3), "float32")
    at = np.array([[2**40, -(2**40), 9]])
    [y] = run_family(
        gather.candidates, "gather_elements", [x, at], [((1, 3), "float32")], TWO, axis=0
    )
    np.testing.assert_array_equal(y, [[x[3, 0], x[0, 1], x[3, 2]]])
    [y] = run_family(
        gather.candidates, "gather_nd", [x, at.T], [((3, 3), "float32")], TWO, batch_dims=0
    )
    np.testing.assert_array_equal(y, x[[3, 0, 3]])


@pytest.mark.parametrize(("batch", "time"), [(1, 0), (0, 1), (2, 0)])
def test_reverse_sequence(batch: int, time: int) -> None:
    x = draw((4, 3, 5), "float32")
    lengths = RNG.integers(0, x.shape[time] + 1, x.shape[batch])
    [y] = run_family(
        gather.candidates,
        "reverse_sequence",
        [x, lengths],
        [(x.shape, "float32")],
        TWO,
        batch_axis=batch,
        time_axis=time,
    )
    for place in np.ndindex(*x.shape):
        source, length = list(place), lengths[place[batch]]
        if place[time] < length:
            source[time] = length - 1 - place[time]
        assert y[place] == x[tuple(source)]


@pytest.mark.parametrize("circular", [False, True])
def test_tensor_scatter(circular: bool) -> None:
    past, new = draw((3, 2, 7, 20), "float32"), draw((3, 2, 4, 20), "float32")
    starts = np.array([0, 3, 6 if circular else 2])
    [y] = run_family(
        gather.candidates,
        "tensor_scatter",
        [past, new, starts],
        [(past.shape, "float32")],
        TWO,
        axis=2,
        circular=circular,
    )
    expected = past.copy()
    for b in range(3):
        for s in range(4):
            expected[b, :, (starts[b] + s) % 7] = new[b, :, s]
    np.testing.assert_array_equal(y, expected)
