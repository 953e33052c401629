"""What one run needs in memory: the arena, and the context that tells the compiled code of it."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.codegen import abi
from graphopt.codegen.plan import Plan
from graphopt.errors import GraphoptError
from graphopt.runtime.memory import address, aligned_empty, aligned_zeros

_LINE = 64
_VALUE = struct.Struct("=q")
_LIBC = ctypes.CDLL(None, use_errno=True)


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Workspace:
    """The arena of one run at a time, and staging buffers for inputs that cannot be borrowed.

    Contexts may share a workspace as long as their runs do not overlap.
    """

    def __init__(self, plan: Plan) -> None:
        try:
            # The system would promise more than there is, and end the process when it is touched.
            if plan.arena_bytes > _physical_bytes():
                raise MemoryError
            # Not cleared: the system maps pages as kernels touch them.
            self.arena = aligned_empty((plan.arena_bytes,), np.dtype(np.uint8), plan.arena_bytes)
        except MemoryError as error:
            raise GraphoptError(
                "run",
                f"There is no memory for a workspace of {plan.arena_bytes / 2**20:.0f} MiB.",
                hint="Use smaller shapes, or fewer threads.",
            ) from error
        self.staging: list[tuple[NDArray[Any], int] | None] = [None] * len(plan.inputs)


class Context:
    """The slots of codegen/abi.py for `tasks` workers on one workspace."""

    def __init__(
        self, plan: Plan, workspace: Workspace, weights: NDArray[np.uint8], tasks: int
    ) -> None:
        tensors = len(plan.inputs) + len(plan.outputs)
        slots = (abi.FIRST_IO + tensors) * abi.SLOT_BYTES
        # One piece of memory: the slots, two barriers in lines of their own, the semaphores.
        barriers = -(-slots // _LINE) * _LINE
        semaphores = barriers + 2 * _LINE
        self._memory = aligned_zeros(semaphores + tasks * abi.SEMAPHORE_STRIDE)
        # The compiled code holds addresses of all these: they live as long as this.
        self.workspace = workspace
        self.kept_stamps: object = None
        self._weights = weights
        self._slots = memoryview(self._memory.data)
        base = address(self._memory)
        self.address = base
        self._semaphores = base + semaphores
        self._bind = struct.Struct("=" + "8xq" * tensors)
        for task in range(tasks):
            semaphore = ctypes.c_void_p(self._semaphores + task * abi.SEMAPHORE_STRIDE)
            if _LIBC.sem_init(semaphore, 0, 0):
                raise OSError(ctypes.get_errno(), "sem_init failed")
        self.set(abi.NUM_TASKS, tasks)
        self.set(abi.BARRIER, base + barriers)
        self.set(abi.SOLO_BARRIER, base + barriers + _LINE)
        self.set(abi.SEMAPHORES, self._semaphores)
        self.set(abi.ARENA, address(workspace.arena))
        self.set(abi.WEIGHTS, address(weights))

    def set(self, slot: int, value: int) -> None:
        """Write an integer or an address into a slot."""
        _VALUE.pack_into(self._slots, slot * abi.SLOT_BYTES + abi.VALUE_OFFSET, value)

    def bind(self, addresses: Iterable[int]) -> None:
        """Set the addresses of all inputs, then of all outputs."""
        self._bind.pack_into(self._slots, abi.FIRST_IO * abi.SLOT_BYTES, *addresses)

    def wake(self, task: int) -> None:
        """Let worker `task` go on from its semaphore."""
        _LIBC.sem_post(ctypes.c_void_p(self._semaphores + task * abi.SEMAPHORE_STRIDE))
