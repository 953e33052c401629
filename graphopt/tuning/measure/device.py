"""A session with another machine, through TVM's RPC: programs are sent there, run and timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.codegen.abi import TIMESPEC_BYTES
from graphopt.codegen.remote import MEASURE, SPREAD, Footprint, flat_inputs
from graphopt.errors import last_line
from graphopt.tuning.measure.program import Array, Single, unblocked


class LostError(Exception):
    """The server ended, or the connection to it, while it worked for us."""


class OverdueError(Exception):
    """The server stopped a session that took too long."""


class Device:
    """A session with one server."""

    def __init__(self, session: Any) -> None:
        self._session, self._loaded = session, 0

    def load(self, library: bytes, footprint: Footprint, inputs: Any, weights: Any) -> Program:
        """A program.

        Args:
            library: see codegen/remote.py.
            inputs, weights: memory of the device; fewer weights than the program has are repeated.

        Raises:
            LostError, OverdueError: the session has ended.
        """
        name = f"program{self._loaded}.so"
        self._loaded += 1
        with self.calling():
            self._session.upload(bytearray(library), name)
            module = self._session.load_module(name)
            if weights.shape[0] < footprint.weight_bytes:
                piece, weights = weights, self.empty(footprint.weight_bytes)
                module[SPREAD](piece, weights)
        return Program(self, module, footprint, inputs, weights)

    def upload(self, array: Array) -> Any:
        """Memory of the device with the bytes of `array`."""
        with self.calling():
            memory = self.empty(array.nbytes)
            return memory.copyfrom(array if array.nbytes else np.zeros(1, np.uint8))

    def empty(self, nbytes: int) -> Any:
        """Memory of the device, at least a byte of it, with anything in it."""
        import tvm

        with self.calling():
            return tvm.runtime.empty((max(nbytes, 1),), "uint8", self._session.cpu(0))

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around calls that reach the server, to tell its end from an error that it reports."""
        try:
            yield
        except (LostError, OverdueError):
            raise
        except Exception as error:  # TVM raises many types
            if "SessionTimeout" in str(error):
                raise OverdueError("it took too long") from None
            try:
                self._session.get_function("runtime.NumThreads")
            except Exception:
                raise LostError(last_line(error)) from None
            raise


class Program:
    """A program on a device."""

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
        """Times of the calls: their means over the faster half of `repeats` runs, after one that
        is not counted."""
        runs = self.nanoseconds(repeats + 1)[1:]
        order = np.argsort(runs.sum(axis=1), kind="stable")
        kept = runs[order[: (repeats + 1) // 2]]
        return [float(value) for value in kept.mean(axis=0) / 1e9]

    def outputs(self) -> Array:
        """What the last run wrote: uint8 [output_bytes]."""
        with self._device.calling():
            found: Array = self._outputs.numpy()
        return found


def load_single(device: Device, single: Single, library: bytes) -> Remote:
    """Load a program of one kernel; its weights cross the network once."""
    inputs = device.upload(flat_inputs(single.plan, single.inputs))
    weights = device.upload(single.piece)
    return Remote(single, device.load(library, Footprint.of(single.plan), inputs, weights))


@dataclass(frozen=True)
class Remote:
    """A program of one kernel on a device, as program.Measured."""

    single: Single
    program: Program

    @property
    def copies(self) -> int:
        """Calls in one run."""
        return self.single.copies

    def run(self) -> Array:
        """The logical output of one run."""
        self.program.nanoseconds(1)
        spec = self.single.plan.outputs[0]
        shape = tuple(int(size or 0) for size in spec.shape)
        dtype = np.dtype(spec.dtype)
        data = self.program.outputs()[: int(np.prod(shape)) * dtype.itemsize]
        return unblocked(data.view(dtype).reshape(shape), self.single.layout, self.single.shape)

    def seconds(self, repeats: int) -> float:
        """Time of one call: the mean of the faster half of `repeats` runs."""
        return sum(self.program.seconds(repeats)) / self.copies
