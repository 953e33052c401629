"""Fits the user's arrays to a program's inputs and outputs, or says everything that is wrong."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.codegen.plan import TensorSpec
from graphopt.errors import GraphoptError, InputError
from graphopt.runtime.memory import (
    ALIGNMENT,
    address,
    contiguous_address,
    new_aligned,
    numpy_dtype,
)
from graphopt.runtime.recycling import Recycler
from graphopt.runtime.workspace import Workspace

Arrays = dict[str, NDArray[Any]]


class Port:
    """One input or output with everything that does not change between runs."""

    __slots__ = ("dtype", "name", "nbytes", "shape")

    def __init__(self, spec: TensorSpec) -> None:
        if None in spec.shape:
            raise GraphoptError("run", f"{spec.name} has an unbound dimension: {spec.shape}.")
        self.name = spec.name
        self.dtype = numpy_dtype(spec.dtype)
        self.shape = tuple(size for size in spec.shape if size is not None)
        self.nbytes = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def fits(self, array: Any) -> bool:
        """Whether `array` has exactly this element type (in native byte order) and shape."""
        return (
            isinstance(array, np.ndarray)
            and array.dtype == self.dtype
            and array.shape == self.shape
            and not _masked(array)
        )


class InputBinder:
    """Turns arrays into addresses: aligned contiguous arrays are borrowed, others are copied."""

    def __init__(self, specs: tuple[TensorSpec, ...]) -> None:
        self._ports = tuple(Port(spec) for spec in specs)
        self._names = tuple(spec.name for spec in specs)
        self._count = len(specs)

    def check(self, inputs: Any) -> Mapping[str, NDArray[Any]]:
        """`inputs` by name, all of them right.

        Raises:
            InputError: with every mistake at once.
        """
        if type(inputs) is not dict and not isinstance(inputs, Mapping):
            if self._count != 1:
                raise InputError(
                    "run",
                    f"one {type(inputs).__name__} is given, but there are {self._count} inputs.",
                    hint=f"Give a dict: {_names(self._ports)}.",
                )
            inputs = {self._ports[0].name: inputs}
        arrays: Mapping[str, NDArray[Any]] = inputs
        if len(inputs) == self._count:
            for port in self._ports:
                array = arrays.get(port.name)
                if (
                    type(array) is not np.ndarray
                    or array.dtype != port.dtype
                    or array.shape != port.shape
                ):
                    break
            else:
                return arrays
        problems = _problems(inputs, self._ports, "input", need_all=True)
        if problems:
            raise _input_error(problems)
        return arrays

    def addresses(
        self, arrays: Mapping[str, NDArray[Any]], workspace: Workspace, written: Arrays
    ) -> list[int]:
        """Addresses of the inputs for one run on `workspace`.

        Args:
            written: the caller's own output arrays: an input that overlaps one is copied.
        """
        result: list[int] = []
        for name in self._names:
            place = contiguous_address(arrays[name])
            if place & (ALIGNMENT - 1) or written:
                place = self._place(len(result), arrays[name], place, workspace, written)
            result.append(place)
        return result

    def fit(self, arrays: Sequence[Any]) -> bool:
        """Whether these, in the order of the inputs, have the right types and shapes."""
        for port, array in zip(self._ports, arrays, strict=True):
            if (
                type(array) is not np.ndarray
                or array.dtype != port.dtype
                or array.shape != port.shape
            ):
                return False
        return True

    def places(self, arrays: Sequence[NDArray[Any]], workspace: Workspace) -> list[int]:
        """As `addresses`, of arrays in the order of the inputs, where outputs are new."""
        result: list[int] = []
        for array in arrays:
            place = contiguous_address(array)
            if place & (ALIGNMENT - 1):
                place = self._place(len(result), array, place, workspace, {})
            result.append(place)
        return result

    def _place(
        self,
        index: int,
        array: NDArray[Any],
        place: int,
        workspace: Workspace,
        written: Arrays,
    ) -> int:
        """Address of an input, or of its copy where it cannot be borrowed."""
        if place == -1 and array.flags.c_contiguous:  # it is read-only, or empty
            place = address(array)
        if not place & (ALIGNMENT - 1) and not any(
            np.may_share_memory(array, out) for out in written.values()
        ):
            return place
        staged = workspace.staging[index]
        if staged is None:
            port = self._ports[index]
            staged = new_aligned(port.shape, port.dtype, port.nbytes)
            workspace.staging[index] = staged
        staged[0][...] = array
        return staged[1]


class OutputBinder:
    """Provides the arrays that a run writes: fresh ones, or the caller's."""

    def __init__(self, specs: tuple[TensorSpec, ...]) -> None:
        self._ports = tuple(Port(spec) for spec in specs)
        self._recycler = Recycler(
            [port.name for port in self._ports],
            [(port.shape, port.dtype, port.nbytes) for port in self._ports],
        )

    def check(self, out: Any) -> Arrays:
        """The caller's arrays by output name; some outputs may be left out.

        Raises:
            InputError: with every mistake at once.
        """
        if not isinstance(out, Mapping):
            raise InputError(
                "run",
                f"out is a {type(out).__name__}.",
                hint=f"Give a dict of arrays: {_names(self._ports)}.",
            )
        problems = _problems(out, self._ports, "output", need_all=False)
        if not problems:
            problems = [
                f"out {name!r} is read-only" for name in out if not out[name].flags.writeable
            ]
            given = list(out)
            problems += [
                f"out {first!r} and {second!r} share memory"
                for position, first in enumerate(given)
                for second in given[position + 1 :]
                if np.may_share_memory(out[first], out[second])
            ]
        if problems:
            raise _input_error(problems)
        return dict(out)

    def fresh(self) -> tuple[list[NDArray[Any]], list[int]]:
        """New arrays for all outputs, in order, with addresses."""
        return self._recycler.take_all()

    def arrays(self, out: Arrays) -> tuple[Arrays, list[int]]:
        """What the kernels write into, with addresses: the caller's arrays where they can be."""
        if not out:  # the usual case, and one where every microsecond shows
            return self._recycler.take()
        arrays: Arrays = {}
        addresses: list[int] = []
        for port in self._ports:
            array = out.get(port.name)
            if array is not None and array.flags.c_contiguous:
                place = address(array)
                if not place % ALIGNMENT:
                    arrays[port.name] = array
                    addresses.append(place)
                    continue
            arrays[port.name], place = new_aligned(port.shape, port.dtype, port.nbytes)
            addresses.append(place)
        return arrays, addresses


def deliver(results: Arrays, mine: Arrays) -> Arrays:
    """Copy results into the caller's arrays that could not be written directly."""
    for name, array in mine.items():
        if results[name] is not array:
            array[...] = results[name]
            results[name] = array
    return results


def _problems(
    given: Mapping[Any, Any], ports: tuple[Port, ...], kind: str, *, need_all: bool
) -> list[str]:
    expected = {port.name: port for port in ports}
    problems = []
    for name in given:
        if name not in expected:
            close = difflib.get_close_matches(str(name), list(expected), n=1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            problems.append(f"there is no {kind} {name!r}{guess}; {kind}s: {_names(ports)}")
    for name, port in expected.items():
        if name in given:
            problem = _problem(given[name], port)
            if problem:
                problems.append(f"{kind} {name!r} {problem}")
        elif need_all:
            problems.append(f"{kind} {name!r} ({port.dtype}{list(port.shape)}) is missing")
    return problems


def _problem(value: Any, port: Port) -> str | None:
    if port.fits(value):
        return None
    wanted = f"expected {port.dtype}{list(port.shape)}"
    if _masked(value):
        return f"is a masked array, whose mask would be lost; {wanted}: fill it first"
    if not isinstance(value, np.ndarray):
        return f"is a {type(value).__name__}, not an array; {wanted}: use numpy.asarray"
    got = f"{wanted}, got {value.dtype}{list(value.shape)}"
    if value.dtype == object:
        return f"holds Python objects; {got}"
    if value.dtype != port.dtype and value.dtype.newbyteorder("=") == port.dtype:
        return (
            f"is not in this machine's byte order ({sys.byteorder}-endian); {got}: "
            "use array.astype(array.dtype.newbyteorder('='))"
        )
    if value.dtype != port.dtype:
        return f"has the wrong type; {got}: use array.astype({str(port.dtype)!r})"
    return f"has the wrong shape; {got}"


def _masked(value: Any) -> bool:
    # numpy.ma is imported when it is first named, and an import may hang in a forked child.
    return type(value) is not np.ndarray and hasattr(value, "mask")


def _names(ports: tuple[Port, ...]) -> str:
    return ", ".join(repr(port.name) for port in ports) or "none"


def _input_error(problems: list[str]) -> InputError:
    return InputError("run", "; ".join(problems) + ".")
