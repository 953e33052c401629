"""Packing of constants."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt.lowering.weights import WeightPool, blocked
from schedules.interface import PLAIN, Layout


@given(st.integers(1, 2), st.integers(1, 40), st.integers(1, 3), st.sampled_from([4, 8, 16]))
def test_blocking_keeps_every_element_and_pads_with_zeros(n, channels, width, block):
    array = np.arange(1, n * channels * width + 1, dtype=np.float32).reshape(n, channels, width)
    stored = blocked(array, Layout(block))
    assert stored.shape == Layout(block).physical(array.shape)
    for c in range(stored.shape[1] * block):
        lane = stored[:, c // block, :, c % block]
        assert np.array_equal(lane, array[:, c] if c < channels else np.zeros((n, width)))


def test_equal_constants_are_stored_once():
    pool = WeightPool()
    a = pool.add(np.ones((1, 32), np.float32), PLAIN, (1, 32))
    b = pool.add(np.ones((1, 32), np.float32), PLAIN, (1, 32))
    c = pool.add(np.zeros((1, 32), np.float32), PLAIN, (1, 32))
    assert a == b
    assert a != c
    assert pool.nbytes == 256
    block = pool.block()
    assert block.ctypes.data % 64 == 0
    assert np.array_equal(block[a[0] : a[0] + a[1]].view(np.float32), np.ones(32, np.float32))


def test_offsets_are_aligned_and_pieces_do_not_overlap():
    pool = WeightPool()
    rng = np.random.default_rng(0)
    arrays = [rng.random((1, size), dtype=np.float32) for size in (1, 17, 16, 33)]
    places = [pool.add(array, PLAIN, array.shape) for array in arrays]
    block = pool.block()
    for array, (offset, nbytes) in zip(arrays, places, strict=True):
        assert offset % 64 == 0
        assert np.array_equal(block[offset : offset + nbytes].view(np.float32), array[0])
