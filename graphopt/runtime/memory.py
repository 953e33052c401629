"""Aligned memory for kernels, and the addresses of arrays."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Alignment in bytes that kernels assume of every buffer: a cache line, and the widest vector."""

_from_buffer: Any = ctypes.c_char.from_buffer
_addressof = ctypes.addressof
_UINT8 = np.dtype(np.uint8)


def address(array: NDArray[Any]) -> int:
    """Address of the first element."""
    try:
        return _addressof(_from_buffer(array))  # a fourth of the time that .ctypes.data takes
    except (TypeError, ValueError):  # read-only, empty, or a type unknown to the buffer protocol
        return int(array.ctypes.data)


def contiguous_address(array: NDArray[Any]) -> int:
    """Address of a C-contiguous writable array's first element, -1 for any other array."""
    try:
        return _addressof(_from_buffer(array))  # refuses what is not contiguous
    except (TypeError, ValueError):
        return -1


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> NDArray[Any]:
    """A new C-contiguous array of `nbytes` in all, uninitialised, at a multiple of ALIGNMENT."""
    return new_aligned(shape, dtype, nbytes)[0]


def new_aligned(
    shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int
) -> tuple[NDArray[Any], int]:
    """As `aligned_empty`, with the array's address."""
    array, _, place = room_for(shape, dtype, nbytes)
    return array, place


def room_for(
    shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int
) -> tuple[NDArray[Any], NDArray[np.uint8], int]:
    """As `aligned_empty`, with the memory that the array is a view of, and its address."""
    room = np.empty(nbytes + ALIGNMENT, _UINT8)
    start = _addressof(_from_buffer(room))
    offset = -start % ALIGNMENT
    return np.ndarray(shape, dtype, room, offset), room, start + offset


def aligned_zeros(nbytes: int) -> NDArray[np.uint8]:
    """`nbytes` zeros (uint8) at a multiple of ALIGNMENT."""
    array = aligned_empty((nbytes,), _UINT8, nbytes)
    array[:] = 0
    return array


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's type for an element type by name; bfloat16 comes from ml_dtypes.

    Raises:
        TypeError: there is none.
    """
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        if not hasattr(ml_dtypes, name):
            raise
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
