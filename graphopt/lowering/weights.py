"""The constants of a program as its kernels read them: packed once, equal ones stored once."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from graphopt.lowering.dataflow import Array
from graphopt.lowering.memory import align
from schedules.interface import Layout, Packing


def blocked(array: Array, layout: Layout) -> Array:
    """`array` in `layout`; lanes past the last channel are zero."""
    if not layout.block:
        return np.ascontiguousarray(array)
    channels, block = array.shape[1], layout.block
    blocks = -(-channels // block)
    padded = np.zeros((array.shape[0], blocks * block, *array.shape[2:]), array.dtype)
    padded[:, :channels] = array
    split = padded.reshape(array.shape[0], blocks, block, *array.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


class WeightPool:
    """Packed constants in one block of memory, in the order of their first use.

    A pool may serve several programs of one model, which then share what they have in common.
    """

    def __init__(self) -> None:
        self._offsets: dict[tuple[bytes, int], int] = {}
        self._packed: dict[tuple[int, Layout | Packing, tuple[int, ...]], tuple[int, int]] = {}
        self._pieces: list[tuple[int, Array]] = []
        self._kept: list[Array] = []  # so that no id() in _packed is reused
        self.nbytes = 0

    def add(
        self, array: Array, layout: Layout | Packing, shape: tuple[int, ...]
    ) -> tuple[int, int]:
        """Offset and size in bytes of `array`, read as `shape`, in `layout`."""
        key = (id(array), layout, shape)
        if key not in self._packed:
            logical = array.reshape(shape)
            packed = (
                blocked(logical, layout)
                if isinstance(layout, Layout)
                else np.ascontiguousarray(layout.pack(logical))
            )
            self._packed[key] = (self._store(packed), packed.nbytes)
            self._kept.append(array)
        return self._packed[key]

    def _store(self, packed: Array) -> int:
        raw: Any = packed.reshape(-1).view(np.uint8)
        digest = hashlib.blake2b(raw).digest()
        key = (digest, packed.nbytes)
        if key not in self._offsets:
            self._offsets[key] = self.nbytes
            self._pieces.append((self.nbytes, packed))
            self.nbytes += align(packed.nbytes)
        return self._offsets[key]

    def block(self) -> Array:
        """All packed constants as uint8, at a 64-byte aligned address."""
        memory = aligned_empty(self.nbytes)
        memory[:] = 0
        for offset, packed in self._pieces:
            raw: Any = packed.reshape(-1).view(np.uint8)
            memory[offset : offset + packed.nbytes] = raw
        return memory


def aligned_empty(nbytes: int) -> Array:
    """`nbytes` uninitialised bytes at a 64-byte aligned address."""
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes]
