"""A program's memory on a device: the weights, uploaded once, and what one run at a time needs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.codegen.plan import Plan
from graphopt.runtime.binding import Port
from graphopt.runtime.device import Device, Memory, View
from graphopt.runtime.memory import address
from graphopt.runtime.native import Function


def largest_piece(plan: Plan) -> int:
    """Bytes of the largest single allocation that the program's memory takes."""
    pieces = [size for _, size in _pieces(plan)]
    tensors = [Port(spec).nbytes for spec in (*plan.inputs, *plan.outputs)]
    return max([plan.arena_bytes, *pieces, *tensors])


def _pieces(plan: Plan) -> list[tuple[int, int]]:
    """Offsets and sizes of the weights as they are allocated: what overlaps is one piece."""
    spans = {(b.offset, b.nbytes) for b in plan.buffers if b.space == "weight"}
    pieces: list[tuple[int, int]] = []
    for offset, nbytes in sorted(spans):
        if pieces and offset < sum(pieces[-1]):
            first, size = pieces[-1]
            pieces[-1] = (first, max(size, offset + nbytes - first))
        else:
            pieces.append((offset, nbytes))
    return pieces


class DeviceWeights:
    """A plan's weights on a device; read by any number of runs at the same time."""

    def __init__(self, device: Device, plan: Plan, weights: NDArray[np.uint8]) -> None:
        """Upload `weights`, uint8 [plan.weight_bytes].

        Raises:
            DeviceError: there is no memory for them.
        """
        whole: dict[tuple[int, int], Memory] = {}
        for offset, nbytes in _pieces(plan):
            memory = device.allocate(nbytes)
            piece = weights[offset : offset + nbytes]
            device.check(device.transfer(memory, upload=True)(address(piece)))
            whole[offset, nbytes] = memory
        device.synchronise()
        self.places: dict[tuple[int, int], Memory | View] = dict(whole)
        """What stands for each buffer of the plan, by offset and size."""
        for buffer in plan.buffers:
            key = (buffer.offset, buffer.nbytes)
            if buffer.space != "weight" or key in self.places:
                continue
            for (first, size), memory in whole.items():
                if first <= buffer.offset < first + size:
                    view = device.view(memory, buffer.offset - first, buffer.nbytes)
                    self.places[key] = view


class DeviceWorkspace:
    """Inputs, outputs and arena of one run at a time, and the program's calls on them."""

    def __init__(self, device: Device, plan: Plan, weights: DeviceWeights, run: Function) -> None:
        """Raises:
        DeviceError: there is no memory for it.
        """
        inputs = [device.allocate(Port(spec).nbytes) for spec in plan.inputs]
        outputs = [device.allocate(Port(spec).nbytes) for spec in plan.outputs]
        arena = device.allocate(plan.arena_bytes)
        places: dict[tuple[str, int, int], Memory | View] = {}
        for buffer in plan.buffers:
            key = (buffer.space, buffer.offset, buffer.nbytes)
            if buffer.space == "arena" and key not in places:
                places[key] = device.view(arena, buffer.offset, max(1, buffer.nbytes))

        def place(space: str, offset: int, nbytes: int) -> Memory | View:
            if space == "weight":
                return weights.places[offset, nbytes]
            if space == "arena":
                return places[space, offset, nbytes]
            return (inputs if space == "input" else outputs)[offset]

        handles = [place(b.space, b.offset, b.nbytes).handle for b in plan.buffers]
        self._kept: Any = (inputs, outputs, arena, places, weights)
        self._table = (ctypes.c_uint64 * max(1, len(handles)))(*handles)
        self.table = ctypes.addressof(self._table)
        """Address of the handles of all buffers, in the plan's order."""
        self.uploads = [device.transfer(memory, upload=True) for memory in inputs]
        self.downloads = [device.transfer(memory, upload=False) for memory in outputs]
        self.run: Callable[[], int] = run.prepare(self.table)
