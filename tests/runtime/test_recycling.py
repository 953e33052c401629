"""Memory of outputs is used again only when nobody can see it any more."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from graphopt.runtime.recycling import GENERATIONS, Recycler

PORTS = [((3, 5), np.dtype(np.float32), 60), ((2,), np.dtype(np.int64), 16)]


def run(recycler):
    """What a caller gets from one run."""
    arrays, places = recycler.take()
    assert addresses(arrays.values()) == places
    return list(arrays.values())


def addresses(arrays):
    return [array.ctypes.data for array in arrays]


def test_memory_that_was_let_go_of_is_used_again():
    recycler = Recycler("ab", PORTS)
    seen = set()
    for _ in range(20):
        seen.add(tuple(addresses(run(recycler))))
    assert len(seen) <= GENERATIONS


def test_results_that_are_held_are_never_touched():
    recycler = Recycler("ab", PORTS)
    held = []
    for value in range(20):
        arrays = run(recycler)
        arrays[0][...] = value
        held.append(arrays)
    assert len({a for arrays in held for a in addresses(arrays)}) == 40
    assert all((arrays[0] == value).all() for value, arrays in enumerate(held))


def keep_slice(array):
    return array[1:]


def keep_transpose(array):
    return array.T


def keep_memoryview(array):
    return memoryview(array)


def keep_buffer(array):
    return (ctypes.c_char * 60).from_buffer(array)


def keep_dlpack(array):
    return array.__dlpack__()


def keep_base(array):
    return array.base


def keep_from_dlpack(array):
    return np.from_dlpack(array)


@pytest.mark.parametrize(
    "keep",
    [
        keep_slice,
        keep_transpose,
        keep_memoryview,
        keep_buffer,
        keep_dlpack,
        keep_base,
        keep_from_dlpack,
    ],
)
def test_any_view_of_the_memory_keeps_it(keep):
    recycler = Recycler("ab", PORTS)
    arrays = run(recycler)
    place = arrays[0].ctypes.data
    view = keep(arrays[0])
    del arrays
    later = [addresses(run(recycler))[0] for _ in range(4 * GENERATIONS)]
    assert place not in later
    del view
    # Forgotten or free again, but never handed out while it was visible.
    assert len(set(later)) <= GENERATIONS
