"""Non-linear weights: tables of values, and which entry stands for each weight."""

from __future__ import annotations

import numpy as np

from graphopt.compression.quantization.scheme import Array

_ITERATIONS = 60


def kmeans(values: Array, count: int) -> Array:
    """The table of `count` float32 values with the least squared error that Lloyd's method finds.

    S. Lloyd, "Least squares quantization in PCM", 1982. One dimension, so the values are sorted
    once and each step costs one search per table entry. Starts at evenly spaced quantiles and
    the extremes; deterministic.
    """
    data = np.sort(values.astype(np.float64), axis=None)
    total = np.concatenate(([0.0], np.cumsum(data)))
    spread = np.linspace(0, 1, count)
    even = data[0] + (data[-1] - data[0]) * spread
    table = 0.5 * (np.quantile(data, spread) + even)
    for _ in range(_ITERATIONS):
        edges = np.searchsorted(data, 0.5 * (table[1:] + table[:-1]))
        bounds = np.concatenate(([0], edges, [data.size]))
        sizes = np.diff(bounds)
        means = np.diff(total[bounds]) / np.maximum(sizes, 1)
        moved = np.where(sizes > 0, means, table)
        if np.array_equal(moved, table):
            break
        table = np.sort(moved)
    return np.asarray(table, np.float32)


def powers_of_two(values: Array, count: int) -> Array:
    """The table of 0 and ±2^e for the (count − 1) // 2 exponents that give the least error.

    A. Zhou et al., "Incremental Network Quantization", ICLR 2017; the largest exponent is chosen
    by squared error instead of their bound on the largest weight.
    """
    per_sign = (count - 1) // 2
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest == 0:
        return np.zeros(1, np.float32)
    top = int(np.ceil(np.log2(largest)))
    best, error = None, np.inf
    for highest in (top, top - 1, top - 2):
        sizes = 2.0 ** np.arange(highest - per_sign + 1, highest + 1)
        table = np.concatenate((-sizes[::-1], [0.0], sizes)).astype(np.float32)
        found = float(np.mean((values - table[nearest(values, table)]) ** 2))
        if found < error:
            best, error = table, found
    assert best is not None
    return best


def nearest(values: Array, table: Array) -> Array:
    """Index of the entry of a sorted table that is nearest to each value, in values' shape."""
    edges = 0.5 * (table[1:].astype(np.float64) + table[:-1].astype(np.float64))
    return np.searchsorted(edges, values.astype(np.float64)).astype(np.int32)
