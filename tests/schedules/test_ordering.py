"""Kernels along one axis against NumPy: the k largest, where the largest is, running sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_harness import run_family

from schedules import arg_extremum, scan, topk
from schedules.interface import TargetTraits

Array = np.ndarray[Any, Any]
TWO = replace(AVX512, threads=2)
DTYPES = ["float32", "float16", "float64", "int8", "uint8", "uint16", "int32", "uint32", "uint64"]


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0, small: bool = True) -> Array:
    """Values of all of a type's range, or a few with many equal ones; floats with NaN and zeros."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind != "f":
        info = np.iinfo(dtype)
        low, high = (0, 5) if small else (info.min, info.max)
        return rng.integers(low, high, shape, dtype=dtype, endpoint=True)
    x = (rng.integers(-3, 4, shape) if small else rng.standard_normal(shape) * 1e4).astype(dtype)
    special = [np.nan, np.inf, -np.inf, -0.0, 0.0, -np.nan]
    flat = x.reshape(-1)
    for value in special[: flat.size // 4]:
        flat[rng.integers(flat.size)] = value
    return x


def best(x: Array, axis: int, largest: bool) -> Array:
    """All positions in the order of the values; NaN is the largest value."""
    if not largest:
        return np.argsort(x, axis=axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return np.flip(x.shape[axis] - 1 - backwards, axis)


def check_topk(x: Array, k: int, axis: int, largest: bool, traits: TargetTraits = TWO) -> None:
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    values, positions = run_family(
        topk.candidates,
        "topk",
        [x],
        [(shape, x.dtype.name), (shape, "int64")],
        traits,
        axis=axis,
        largest=largest,
    )
    expected = np.take(best(x, axis, largest), np.arange(k), axis)
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, axis))


@pytest.mark.parametrize("dtype", DTYPES)
def test_topk_orders_every_type(dtype: str) -> None:
    check_topk(draw((3, 70), dtype, small=False), 70, 1, True)
    check_topk(draw((2, 90), dtype), 5, 1, False)


@pytest.mark.parametrize(
    ("shape", "k", "axis"),
    [
        ((1,), 1, 0),
        ((2, 7, 5), 3, 1),
        ((3000,), 2500, 0),  # by digits
        ((70000,), 10, 0),  # in pieces
        ((2, 500, 3), 20, 1),  # a heap off the last axis
        ((4, 200), 1, 1),
    ],
)
def test_topk_of_any_shape(shape: tuple[int, ...], k: int, axis: int) -> None:
    check_topk(draw(shape, "float32", small=False), k, axis, True)
    check_topk(draw(shape, "int64"), k, axis, False)


@settings(max_examples=3, deadline=None)
@given(st.integers(1, 130), st.data())
def test_topk_of_any_length(length: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, length))
    check_topk(draw((2, length), "float32", length), k, 1, data.draw(st.booleans()))


def test_topk_on_narrower_vectors() -> None:
    for traits in ALL_TRAITS[1:]:
        check_topk(draw((3, 333), "float32", small=False), 4, 1, True, traits)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 1, 50), 2), ((4, 301), 1), ((2, 16, 40), 1), ((1,), 0)]
)
@pytest.mark.parametrize(("function", "last"), [("max", False), ("max", True), ("min", False)])
def test_arg_extremum(
    shape: tuple[int, ...], axis: int, dtype: str, function: str, last: bool
) -> None:
    x = draw(shape, dtype)
    out = (*shape[:axis], 1, *shape[axis + 1 :])
    [found] = run_family(
        arg_extremum.candidates,
        "arg_extremum",
        [x],
        [(out, "int64")],
        TWO,
        axis=axis,
        function=function,
        last=last,
    )
    find = np.argmax if function == "max" else np.argmin
    expected = find(np.flip(x, axis), axis) if last else find(x, axis)
    expected = shape[axis] - 1 - expected if last else expected
    np.testing.assert_array_equal(found, np.expand_dims(expected, axis))


def reference_scan(x: Array, axis: int, function: str, exclusive: bool, reverse: bool) -> Array:
    wide = "float64" if x.dtype.kind == "f" else x.dtype
    y = np.flip(x, axis) if reverse else x
    y = (np.cumsum if function == "sum" else np.cumprod)(y, axis=axis, dtype=wide)
    if exclusive:
        first = np.full_like(np.take(y, [0], axis), 0 if function == "sum" else 1)
        y = np.concatenate([first, np.delete(y, -1, axis)], axis)
    return np.flip(y, axis) if reverse else y


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis", "dtype", "function", "limit"),
    [
        ((7,), 0, "float32", "sum", 1e-6),
        ((3, 1, 500), 2, "float32", "sum", 1e-5),
        ((3, 9, 5), 1, "float64", "prod", 1e-14),
        ((4, 300), 0, "int32", "sum", 0),
        ((2, 3, 4, 5), 1, "uint8", "prod", 0),
        ((2, 70, 3), 1, "float16", "sum", 1e-3),
    ],
)
def test_scan(
    shape: tuple[int, ...],
    axis: int,
    dtype: str,
    function: str,
    limit: float,
    exclusive: bool,
    reverse: bool,
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape) if "float" in dtype else rng.integers(0, 9, shape)
    x = x.astype(dtype)
    attrs = {"exclusive": exclusive, "reverse": reverse, "function": function, "axis": axis}
    [y] = run_family(scan.candidates, "scan", [x], [(shape, dtype)], TWO, **attrs)
    expected = reference_scan(x, **attrs)
    if limit == 0:
        np.testing.assert_array_equal(y, expected)
    else:
        error = np.abs(y.astype(np.float64) - expected).max()
        assert error <= limit * np.abs(expected).max()
