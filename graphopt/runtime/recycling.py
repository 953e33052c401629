"""Output arrays that callers have let go of, to be handed out again.

A new large array costs a page fault for every 4 KiB that a kernel writes, a small one a good part
of a small program's run. Whoever still refers to an array, or to any view of its memory, keeps it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.memory import room_for

GENERATIONS = 3
"""Results of that many runs are remembered: a caller usually still holds the previous ones."""

_getrefcount = sys.getrefcount


class Outputs(NamedTuple):
    """The outputs of one run: arrays, these and the memory they lie in, and their addresses."""

    arrays: tuple[NDArray[Any], ...]
    owners: tuple[NDArray[Any], ...]
    addresses: list[int]


class Recycler:
    """Makes the outputs of a program, from memory that is free again where there is any.

    Safe from several threads: whoever takes a set out of the queue has it alone.
    """

    def __init__(
        self, names: Sequence[str], ports: Sequence[tuple[tuple[int, ...], np.dtype[Any], int]]
    ) -> None:
        """Args:
        ports: shape, element type and size in bytes of each output.
        """
        self._names = tuple(names)
        self._ports = tuple(ports)
        self._queue: deque[Outputs] = deque(maxlen=GENERATIONS)
        # NumPy makes the owner of the memory the base of every view, so a view of an array counts
        # as a reference to one of these.
        sample = self._new()
        self._free = list(map(_getrefcount, sample.owners))

    def take(self) -> tuple[dict[str, NDArray[Any]], list[int]]:
        """Arrays that nobody else refers to, by name, and their addresses."""
        arrays, addresses = self.take_all()
        return dict(zip(self._names, arrays, strict=True)), addresses

    def take_all(self) -> tuple[list[NDArray[Any]], list[int]]:
        """Arrays that nobody else refers to, in order, and their addresses."""
        try:
            outputs = self._queue.popleft()
        except IndexError:
            outputs = self._new()
        else:
            if list(map(_getrefcount, outputs.owners)) != self._free:
                self._queue.append(outputs)
                outputs = self._new()
        arrays = list(outputs.arrays)
        self._queue.append(outputs)  # not before somebody refers to the arrays
        return arrays, outputs.addresses

    def _new(self) -> Outputs:
        made = [room_for(*port) for port in self._ports]
        arrays = tuple(array for array, _, _ in made)
        rooms = tuple(room for _, room, _ in made)
        return Outputs(arrays, arrays + rooms, [place for _, _, place in made])
