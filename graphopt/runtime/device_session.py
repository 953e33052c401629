"""DeviceSession: runs one program on a device; the counterpart of Session.

The module exports `run(table)` and `part(table, begin, end)`, see codegen/device_program.py; the
table's handles stand for memory that this side allocates. Weights are uploaded once.

Any number of threads may run it. At most CONCURRENT runs are under way at a time, each with inputs,
outputs and arena of its own: a device does one thing after the other, so two are enough to copy for
one run while another computes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.codegen.device_needs import OPENCL
from graphopt.codegen.plan import Plan, TensorSpec
from graphopt.errors import DeviceError, OptionError
from graphopt.runtime.binding import Arrays, InputBinder, OutputBinder, deliver
from graphopt.runtime.device import Device
from graphopt.runtime.device_memory import DeviceWeights, DeviceWorkspace
from graphopt.runtime.memory import address
from graphopt.runtime.native import Function
from graphopt.runtime.profiler import Meter, Profile, summarise

CONCURRENT = 2


class DeviceWatch:
    """The times of one run: the whole by the host's clock, each call by the device's if it can."""

    def __init__(self, total: int, calls: list[int]) -> None:
        self._total = total
        self._calls = np.array(calls, np.int64)

    @property
    def total(self) -> int:
        """The whole run, in nanoseconds."""
        return self._total

    @property
    def calls(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Nanoseconds of each call."""
        return self._calls


class DeviceSession:
    """A program on a device, ready to run."""

    def __init__(self, plan: Plan, module: Any, weights: NDArray[np.uint8], device: Device) -> None:
        """Prepare to run `plan`.

        Args:
            module: exports `run` and `part`.
            weights: uint8 [plan.weight_bytes]; not needed any more afterwards.

        Raises:
            DeviceError: the device has no memory for the weights.
        """
        self.plan = plan
        self.device = device
        self._inputs = InputBinder(plan.inputs)
        self._outputs = OutputBinder(plan.outputs)
        self._run, self._part = Function(module["run"]), Function(module["part"])
        self._weights = DeviceWeights(device, plan, weights)
        self._permits = threading.BoundedSemaphore(CONCURRENT)
        # Taken from the end, each by one run.
        self._free: list[DeviceWorkspace] = []
        self._process = os.getpid()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, element type and shape of each input."""
        return self.plan.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, element type and shape of each output."""
        return self.plan.outputs

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]] | NDArray[Any],
        out: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run the program once; arguments and results as Session.run().

        Raises:
            InputError: a name, shape, element type or byte order is wrong (all are listed).
            DeviceError: no memory is left, the device was lost, or this is a forked process.
        """
        arrays = self._inputs.check(inputs)
        mine = self._outputs.check(out) if out is not None else {}
        results, written = self._outputs.arrays(mine)
        with self._workspace() as workspace:
            self._upload(workspace, [arrays[spec.name] for spec in self.plan.inputs])
            self.device.check(workspace.run())
            self._download(workspace, written)
        return deliver(results, mine) if mine else results

    def call(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]] | None:
        """As `run`, in the order of inputs and outputs; None where the arrays do not fit."""
        if not self._inputs.fit(arrays):
            return None
        results, written = self._outputs.fresh()
        with self._workspace() as workspace:
            self._upload(workspace, arrays)
            self.device.check(workspace.run())
            self._download(workspace, written)
        return results

    def profile(
        self, inputs: Mapping[str, NDArray[Any]] | NDArray[Any], repeats: int = 20
    ) -> Profile:
        """Time every kernel call: by the device's clock for OpenCL, else by the host's.

        Args:
            inputs: as for `run`.
            repeats: runs to measure, after one that is not counted.

        Raises:
            InputError: the inputs do not fit.
            OptionError: repeats < 1.
            DeviceError: as for `run`.
        """
        if repeats < 1:
            raise OptionError("profile", f"repeats is {repeats}; at least 1 is needed.")
        arrays = self._inputs.check(inputs)
        watches = [self._timed(arrays)[1] for _ in range(repeats + 1)]
        return summarise(self.plan, watches[1:])

    def metered(self, inputs: Mapping[str, NDArray[Any]], meter: Meter) -> Arrays:
        """As `run`, with the times of the kernel calls noted in `meter`."""
        results, watch = self._timed(self._inputs.check(inputs))
        meter.add(self.plan, watch.calls)
        return results

    def _timed(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[Arrays, DeviceWatch]:
        begin = time.monotonic_ns()
        results, written = self._outputs.arrays({})
        with self._workspace() as workspace:
            self._upload(workspace, [arrays[spec.name] for spec in self.plan.inputs])
            events = self.device.kind == OPENCL
            calls = self._recorded(workspace) if events else self._stopped(workspace)
            self._download(workspace, written)
        return results, DeviceWatch(time.monotonic_ns() - begin, calls)

    def _recorded(self, workspace: DeviceWorkspace) -> list[int]:
        """Run all calls; nanoseconds of each by the device's clock."""
        parts = [self._part.prepare(workspace.table, i, i + 1) for i in range(self._count)]
        self.device.record()
        try:
            for part in parts:
                self.device.check(part())
                self.device.mark()
        finally:
            spent = self.device.recorded()
        return spent

    def _stopped(self, workspace: DeviceWorkspace) -> list[int]:
        """Run all calls, each when the one before has ended; nanoseconds by the host's clock."""
        parts = [self._part.prepare(workspace.table, i, i + 1) for i in range(self._count)]
        self.device.synchronise()
        stamps = [time.monotonic_ns()]
        for part in parts:
            self.device.check(part())
            self.device.synchronise()
            stamps.append(time.monotonic_ns())
        return [end - begin for begin, end in pairwise(stamps)]

    @property
    def _count(self) -> int:
        return len(self.plan.calls)

    @contextmanager
    def _workspace(self) -> Iterator[DeviceWorkspace]:
        """A workspace for this thread alone, on the device that its launches now go to."""
        if os.getpid() != self._process:
            raise DeviceError(
                "run",
                f"{self.device.name} cannot be used after a fork.",
                hint="load the program in the process that runs it.",
            )
        with self._permits:
            self.device.select()
            try:
                workspace = self._free.pop()
            except IndexError:
                workspace = DeviceWorkspace(self.device, self.plan, self._weights, self._run)
            try:
                yield workspace
            finally:
                self._free.append(workspace)

    def _upload(self, workspace: DeviceWorkspace, arrays: Sequence[NDArray[Any]]) -> None:
        for upload, array in zip(workspace.uploads, arrays, strict=True):
            whole = np.ascontiguousarray(array)
            self.device.check(upload(address(whole)))

    def _download(self, workspace: DeviceWorkspace, places: Sequence[int]) -> None:
        for download, place in zip(workspace.downloads, places, strict=True):
            self.device.check(download(place))
