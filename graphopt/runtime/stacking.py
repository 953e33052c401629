"""Puts the results of a loop's iterations side by side, as they come."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.codegen.plan import TensorSpec
from graphopt.errors import GraphoptError
from graphopt.runtime.memory import new_aligned, numpy_dtype

_FIRST_ROOM = 16
_MAX_FIRST_BYTES = 1 << 24


class Stack:
    """Arrays of one shape, copied side by side along a new first axis.

    Copying at once lets the kernels' own results be used again for the next iteration.
    """

    __slots__ = ("_buffer", "_count", "_expected", "_node", "_spec")

    def __init__(self, spec: TensorSpec, expected: int | None, node: str) -> None:
        """Args:
        spec: of an element, for when none comes.
        expected: how many will come, if that is known.
        """
        self._spec, self._node = spec, node
        self._expected = expected
        self._buffer: Any = None
        self._count = 0

    def add(self, value: Any) -> None:
        """Append a copy of `value`."""
        buffer, count = self._buffer, self._count
        if buffer is None or count == len(buffer) or value.shape != buffer.shape[1:]:
            buffer = self._room(value)
        buffer[count] = value
        self._count = count + 1

    def result(self) -> Any:
        """All values: [count, …]."""
        if self._buffer is None:
            shape = tuple(dim or 0 for dim in self._spec.shape)
            return np.zeros((0, *shape), numpy_dtype(self._spec.dtype))
        return self._buffer[: self._count]

    def _room(self, value: Any) -> Any:
        buffer = self._buffer
        if buffer is None:
            room = _FIRST_ROOM
            if self._expected is not None and self._expected * value.nbytes <= _MAX_FIRST_BYTES:
                room = max(self._expected, 1)
        elif value.shape != buffer.shape[1:]:
            raise GraphoptError(
                "run",
                f"iterations give tensors of different shapes: {buffer.shape[1:]} and "
                f"{value.shape}, which cannot be stacked.",
                node=self._node,
            )
        else:
            room = 2 * len(buffer)
        shape = (room, *value.shape)
        fresh, _ = new_aligned(shape, value.dtype, room * value.nbytes)
        if buffer is not None:
            fresh[: self._count] = buffer
        self._buffer = fresh
        return fresh
