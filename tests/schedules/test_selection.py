"""Kernels whose results are as long as their data says, and pooling by position, against NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import AVX512
from plain_harness import run_family

from schedules import nms, pool_indices, selection, unique

Array = np.ndarray[Any, Any]
TWO = replace(AVX512, threads=2)
RNG = np.random.default_rng(2)
COUNT = ((1,), "int64")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((5,), "float32"),
        ((3, 4, 5), "bool"),
        ((100, 121), "int64"),  # several chunks
        ((1,), "uint8"),
        ((), "float32"),
        ((0, 3), "float32"),
    ],
)
def test_nonzero(shape: tuple[int, ...], dtype: str) -> None:
    x = np.asarray(RNG.integers(0, 2, shape), dtype)
    if dtype == "float32" and x.size > 4:
        x.reshape(-1)[:4] = np.nan, -0.0, 1e-45, -np.inf
    rank = max(1, x.ndim)
    y, [count] = run_family(
        selection.candidates, "nonzero", [x], [((rank, x.size), "int64"), COUNT], TWO
    )
    expected = np.array(np.nonzero(np.atleast_1d(x)))
    assert count == expected.shape[1]
    np.testing.assert_array_equal(y[:, :count], expected)
    assert not y[:, count:].any()


@pytest.mark.parametrize(
    ("shape", "axis", "conditions"),
    [((5,), 0, 5), ((3, 4, 50), 1, 3), ((3, 4, 5), 2, 5), ((10, 900), 0, 10), ((9000,), 0, 9000)],
)
def test_compress(shape: tuple[int, ...], axis: int, conditions: int) -> None:
    x, condition = RNG.standard_normal(shape), RNG.integers(0, 2, conditions).astype(bool)
    out = (*shape[:axis], conditions, *shape[axis + 1 :])
    y, [count] = run_family(
        selection.candidates, "compress", [x, condition], [(out, "float64"), COUNT], TWO, axis=axis
    )
    expected = np.compress(condition, x, axis)
    assert count == expected.shape[axis]
    np.testing.assert_array_equal(np.take(y, range(count), axis), expected)
    assert not np.take(y, range(count, conditions), axis).any()


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis", "dtype"),
    [
        ((7,), 0, "float32"),
        ((300,), 0, "int64"),
        ((6000,), 0, "uint8"),
        ((6, 4), 0, "int32"),
        ((6, 4), 1, "float16"),
        ((4, 30, 2), 1, "int8"),
        ((1, 3), 0, "float64"),
    ],
)
def test_unique(shape: tuple[int, ...], axis: int, dtype: str, in_order: bool) -> None:
    x = RNG.integers(0, 3 if len(shape) > 1 else 9, shape).astype(dtype)
    if dtype == "float32":
        x[[1, 4]] = np.nan
    size = shape[axis]
    y, first, inverse, counts, [count] = run_family(
        unique.candidates,
        "unique",
        [x],
        [(shape, dtype), *[((size,), "int64")] * 3, COUNT],
        TWO,
        axis=axis,
        sorted=in_order,
    )
    values, where, which, often = np.unique(
        x, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    which = which.reshape(-1)
    if not in_order:
        order = np.argsort(where, kind="stable")
        values, where, often = np.take(values, order, axis), where[order], often[order]
        which = np.argsort(order)[which]
    assert count == len(where)
    np.testing.assert_array_equal(np.take(y, range(count), axis), values)
    np.testing.assert_array_equal(first[:count], where)
    np.testing.assert_array_equal(inverse, which)
    np.testing.assert_array_equal(counts[:count], often)
    assert not np.take(y, range(count, size), axis).any()
    assert not first[count:].any()
    assert not counts[count:].any()


def corners(box: Array, center: bool) -> list[np.float32]:
    if center:
        half = box[2:] * np.float32(0.5)
        return [*(box[:2] - half), *(box[:2] + half)]
    return [*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:])]


def overlap(a: list[np.float32], b: list[np.float32]) -> np.float32:
    zero = np.float32(0)
    shared = max(zero, min(a[2], b[2]) - max(a[0], b[0])) * max(
        zero, min(a[3], b[3]) - max(a[1], b[1])
    )
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if shared > 0 else zero


def greedy(
    boxes: Array, scores: Array, most: int, limit: float, least: float | None, center: bool
) -> Array:
    rows = []
    for b, c in np.ndindex(*scores.shape[:2]):
        score = scores[b, c]
        order = [i for i in range(len(score)) if least is None or score[i] > np.float32(least)]
        order.sort(key=lambda i: (-score[i], i))
        kept: list[int] = []
        for i in order:
            box = corners(boxes[b, i], center)
            if len(kept) < most and all(
                overlap(box, corners(boxes[b, j], center)) <= np.float32(limit) for j in kept
            ):
                kept.append(i)
        rows += [(b, c, i) for i in kept]
    return np.array(rows, np.int64).reshape(-1, 3)


@pytest.mark.parametrize(
    ("batches", "classes", "boxes", "most", "limit", "least", "center"),
    [
        (1, 1, 1, 3, 0.5, 0.0, False),
        (1, 2, 5, 1, 0.5, 0.0, False),
        (2, 3, 40, 1000, 0.3, 0.2, True),
        (1, 2, 300, 10, 0.5, None, False),
        (1, 1, 5, 0, 0.5, None, False),
        (2, 1, 30, 7, 0.0, 2.0, False),  # nothing scores as high
    ],
)
def test_non_max_suppression(
    batches: int,
    classes: int,
    boxes: int,
    most: int,
    limit: float,
    least: float | None,
    center: bool,
) -> None:
    places = RNG.random((batches, boxes, 4)).astype(np.float32)
    scores = RNG.random((batches, classes, boxes)).round(2).astype(np.float32)
    y, [count] = run_family(
        nms.candidates,
        "non_max_suppression",
        [
            places,
            scores,
            np.array([most]),
            np.array([limit], np.float32),
            np.array([least or 0], np.float32),
        ],
        [((batches * classes * min(boxes, most), 3), "int64"), COUNT],
        TWO,
        most=most,
        center=center,
        has_score=least is not None,
    )
    expected = greedy(places, scores, most, limit, least, center)
    assert count == len(expected)
    np.testing.assert_array_equal(y[:count], expected)
    assert not y[count:].any()


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "before", "dilation", "out", "dtype"),
    [
        ((2, 3, 9), (3,), (2,), (1,), (1,), (5,), "float32"),
        ((1, 2, 7, 6), (3, 2), (2, 1), (1, 0), (1, 2), (4, 4), "int8"),
        ((1, 1, 4, 5, 3), (2, 2, 2), (1, 2, 1), (0, 1, 1), (1, 1, 1), (3, 3, 4), "float64"),
    ],
)
def test_max_pool_indices(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    before: tuple[int, ...],
    dilation: tuple[int, ...],
    out: tuple[int, ...],
    dtype: str,
    column_major: bool,
) -> None:
    x = RNG.integers(-9, 9, shape).astype(dtype)
    result = (*shape[:2], *out)
    values, positions = run_family(
        pool_indices.candidates,
        "max_pool_indices",
        [x],
        [(result, dtype), (result, "int64")],
        TWO,
        kernel=kernel,
        strides=strides,
        before=before,
        dilation=dilation,
        column_major=column_major,
    )
    for place in np.ndindex(*result):
        taps: list[tuple[Any, int]] = []
        for tap in np.ndindex(*kernel):
            at = [
                place[2 + d] * strides[d] + tap[d] * dilation[d] - before[d]
                for d in range(len(kernel))
            ]
            if all(0 <= a < s for a, s in zip(at, shape[2:], strict=True)):
                order = list(zip(at, shape[2:], strict=True))
                flat = place[0] * shape[1] + place[1]
                for a, s in reversed(order) if column_major else order:
                    flat = flat * s + a
                taps.append((x[(*place[:2], *at)], flat))
        largest = max(value for value, _ in taps)
        assert values[place] == largest
        assert positions[place] == next(flat for value, flat in taps if value == largest)
