"""A session with another machine, through TVM's RPC: programs are sent there, run and timed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from graphopt.codegen.abi import TIMESPEC_BYTES
from graphopt.codegen.remote import MEASURE, SPREAD, Footprint, flat_inputs
from graphopt.errors import last_line
from graphopt.tuning.measure.parcel import DeviceForm, Parcel
from graphopt.tuning.measure.program import Array, Single, unblocked
from graphopt.tuning.measure.rpc_programs import DESCRIBE, OPEN, PROFILE, RUN


class LostError(Exception):
    """The server ended, or the connection to it, while it worked for us."""


class OverdueError(Exception):
    """The server stopped a session that took too long."""


class ForeignError(Exception):
    """The server is TVM's own, which lacks what we need."""


class Device:
    """A session with one server."""

    def __init__(self, session: Any) -> None:
        self._session, self._loaded = session, 0

    def describe(self, target: str) -> dict[str, Any]:
        """The server's machine and the device `target` there, see rpc_programs.register().

        Raises:
            LostError, OverdueError: the session has ended.
            ForeignError: the server runs no programs on devices.
        """
        with self.calling():
            found: dict[str, Any] = json.loads(self.function(DESCRIBE)(target))
        return found

    def function(self, name: str) -> Any:
        """What our servers offer under `name`.

        Raises:
            ForeignError: the server is none of ours.
        """
        with self.calling():
            try:
                return self._session.get_function(name)
            except AttributeError:
                raise ForeignError(
                    "a server runs no programs on devices: it was started by TVM's rpc_server, "
                    "which only runs kernels for processors; start `graphopt rpc-server` there."
                ) from None

    def load(self, parcel: Parcel, inputs: Any, weights: Any) -> Program:
        """A program.

        Args:
            inputs, weights: memory of the server; fewer weights than the program has are repeated.

        Raises:
            LostError, OverdueError: the session has ended.
        """
        if isinstance(parcel.form, DeviceForm):
            return DeviceProgram(self, parcel.library, parcel.form, inputs, weights)
        return self._processor_program(parcel.library, parcel.form, inputs, weights)

    def _processor_program(
        self, library: bytes, footprint: Footprint, inputs: Any, weights: Any
    ) -> ProcessorProgram:
        name = f"program{self._loaded}.so"
        self._loaded += 1
        with self.calling():
            self._session.upload(bytearray(library), name)
            module = self._session.load_module(name)
            if weights.shape[0] < footprint.weight_bytes:
                piece, weights = weights, self.empty(footprint.weight_bytes)
                module[SPREAD](piece, weights)
        return ProcessorProgram(self, module, footprint, inputs, weights)

    def upload(self, array: Array) -> Any:
        """Memory of the server with the bytes of `array`."""
        with self.calling():
            memory = self.empty(array.nbytes)
            return memory.copyfrom(array if array.nbytes else np.zeros(1, np.uint8))

    def empty(self, nbytes: int) -> Any:
        """Memory of the server, at least a byte of it, with anything in it."""
        import tvm

        with self.calling():
            return tvm.runtime.empty((max(nbytes, 1),), "uint8", self._session.cpu(0))

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around calls that reach the server, to tell its end from an error that it reports."""
        try:
            yield
        except (LostError, OverdueError, ForeignError):
            raise
        except Exception as error:  # TVM raises many types
            if "SessionTimeout" in str(error):
                raise OverdueError("it took too long") from None
            try:
                self._session.get_function("runtime.NumThreads")
            except Exception:
                raise LostError(last_line(error)) from None
            raise


class Program(Protocol):
    """A program on another machine."""

    def run(self) -> Array:
        """The outputs of one run: uint8 [at least as many as there are bytes]."""
        ...

    def seconds(self, repeats: int) -> list[float]:
        """Time of each call over `repeats` runs, after one that is not counted."""
        ...


class DeviceProgram:
    """A program on the device of a server."""

    def __init__(
        self, device: Device, library: bytes, form: DeviceForm, inputs: Any, weights: Any
    ) -> None:
        self._device = device
        self._run, self._profile = device.function(RUN), device.function(PROFILE)
        self._outputs = device.empty(form.output_bytes)
        self._seconds = device.empty(form.calls * np.dtype(np.float64).itemsize)
        code = device.upload(np.frombuffer(library, np.uint8))
        with device.calling():
            self._number = device.function(OPEN)(form.program, code, inputs, weights)

    def run(self) -> Array:
        """As Program."""
        with self._device.calling():
            self._run(self._number, self._outputs)
            found: Array = self._outputs.numpy()
        return found

    def seconds(self, repeats: int) -> list[float]:
        """As Program; by the device's clock where it has one."""
        with self._device.calling():
            self._profile(self._number, self._seconds, repeats)
            found = self._seconds.numpy().view(np.float64)
        return [float(value) for value in found]


class ProcessorProgram:
    """A program on the processor of a server."""

    def __init__(
        self, device: Device, module: Any, footprint: Footprint, inputs: Any, weights: Any
    ) -> None:
        self._device, self._footprint = device, footprint
        self._measure = module[MEASURE]
        self._outputs = device.empty(footprint.output_bytes)
        self._control = device.upload(np.zeros(footprint.control_bytes, np.uint8))
        arena = device.empty(footprint.arena_bytes)
        self._arguments = (inputs, self._outputs, weights, arena, self._control)

    def nanoseconds(self, runs: int) -> Array:
        """Times of the calls of so many runs: int64 [runs, calls]."""
        stamps = self._device.empty(runs * (self._footprint.calls + 1) * TIMESPEC_BYTES)
        with self._device.calling():
            self._measure(*self._arguments, stamps, runs)
            found = stamps.numpy().view(np.int64).reshape(runs, -1, 2)
        difference: Array = np.diff(found[..., 0] * 1_000_000_000 + found[..., 1], axis=1)
        return difference

    def seconds(self, repeats: int) -> list[float]:
        """As Program: means over the faster half of the runs."""
        runs = self.nanoseconds(repeats + 1)[1:]
        order = np.argsort(runs.sum(axis=1), kind="stable")
        kept = runs[order[: (repeats + 1) // 2]]
        return [float(value) for value in kept.mean(axis=0) / 1e9]

    def run(self) -> Array:
        """As Program."""
        self.nanoseconds(1)
        with self._device.calling():
            found: Array = self._outputs.numpy()
        return found


def load_single(device: Device, single: Single, parcel: Parcel) -> Remote:
    """Load a program of one kernel; its weights cross the network once."""
    inputs = device.upload(flat_inputs(single.plan, single.inputs))
    weights = device.upload(single.piece)
    return Remote(single, device.load(parcel, inputs, weights))


@dataclass(frozen=True)
class Remote:
    """A program of one kernel on another machine, as program.Measured."""

    single: Single
    program: Program

    @property
    def copies(self) -> int:
        """Calls in one run."""
        return self.single.copies

    def run(self) -> Array:
        """The logical output of one run."""
        spec = self.single.plan.outputs[0]
        shape = tuple(int(size or 0) for size in spec.shape)
        dtype = np.dtype(spec.dtype)
        data = self.program.run()[: int(np.prod(shape)) * dtype.itemsize]
        return unblocked(data.view(dtype).reshape(shape), self.single.layout, self.single.shape)

    def seconds(self, repeats: int) -> float:
        """Time of one call: the mean of the faster half of `repeats` runs."""
        return sum(self.program.seconds(repeats)) / self.copies
