"""HostSession: runs one host program, from any number of threads; the counterpart of Session."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.codegen.host_program import OPTIONAL, OPTIONAL_SEQUENCE, TENSOR, HostProgram
from graphopt.codegen.plan import TensorSpec
from graphopt.errors import InputError, OptionError
from graphopt.runtime.interpreter import Interpreter, Runner
from graphopt.runtime.memory import numpy_dtype
from graphopt.runtime.profiler import Meter, Profile, summarise_meters

Values = dict[str, Any]


class HostSession:
    """A host program that is ready to run. Its segments bring their own sessions and workers."""

    def __init__(self, program: HostProgram, runners: Sequence[Runner]) -> None:
        """Args:
        runners: one for each segment of the program.
        """
        self.program = program
        self._interpreter = Interpreter(program, runners)
        self._names = tuple(spec.name for spec in program.inputs)
        self._outputs = tuple(spec.name for spec in program.outputs)
        self._fixed = [_owner(array) for array in self._interpreter.constants]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, kind, element type and shape of each input."""
        return self.program.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, kind, element type and shape of each output."""
        return self.program.outputs

    def run(self, inputs: Any, out: Mapping[str, Any] | None = None) -> Values:
        """Run the program once: outputs by name, which nothing else refers to.

        Args:
            inputs: by name, or the only one: arrays; lists of arrays for sequences; None, or what
                is inside, for optionals.
            out: arrays to write results into, by output name; any subset of the outputs.

        Raises:
            InputError: a name, shape or element type is wrong.
            GraphoptError: a step cannot be done with these values.
        """
        given = self._check(inputs)
        return self._deliver(given, self._interpreter.run(given), out)

    def metered(self, inputs: Any, meter: Meter) -> Values:
        """As `run`, with the times of the kernel calls noted in `meter`."""
        given = self._check(inputs)
        return self._deliver(given, self._interpreter.run(given, meter), None)

    def profile(self, inputs: Any, repeats: int = 20) -> Profile:
        """Time every kernel call of the program; the calls of one site in a run are summed up.

        Raises:
            InputError: the inputs do not fit.
            OptionError: repeats < 1.
        """
        if repeats < 1:
            raise OptionError("profile", f"repeats is {repeats}; at least 1 is needed.")
        meters = []
        for _ in range(repeats + 1):
            meter = Meter()
            begin = time.monotonic_ns()
            self.metered(inputs, meter)
            meters.append((time.monotonic_ns() - begin, meter))
        return summarise_meters(meters[1:])

    def _check(self, inputs: Any) -> list[Any]:
        """The inputs in order.

        Raises:
            InputError: with every mistake at once.
        """
        if not isinstance(inputs, Mapping):
            if len(self._names) != 1:
                raise InputError(
                    "run",
                    f"one {type(inputs).__name__} is given, but there are {len(self._names)} "
                    f"inputs.",
                    hint=f"Give a dict: {', '.join(map(repr, self._names))}.",
                )
            inputs = {self._names[0]: inputs}
        problems = []
        for name in inputs:
            if name not in self._names:
                close = difflib.get_close_matches(str(name), self._names, n=1)
                guess = f" (did you mean {close[0]!r}?)" if close else ""
                problems.append(f"there is no input {name!r}{guess}")
        for spec in self.program.inputs:
            if spec.name not in inputs:
                problems.append(f"input {spec.name!r} is missing")
                continue
            problem = _problem(inputs[spec.name], spec)
            if problem:
                problems.append(f"input {spec.name!r} {problem}")
        if problems:
            raise InputError("run", "; ".join(problems) + ".")
        given = (inputs[name] for name in self._names)
        return [list(value) if isinstance(value, tuple) else value for value in given]

    def _deliver(
        self, given: Sequence[Any], results: Sequence[Any], out: Mapping[str, Any] | None
    ) -> Values:
        """The results by name, copied where their memory belongs to something else as well."""
        taken = [*self._fixed]
        for value in given:
            taken += [_owner(array) for array in _arrays(value)]
        ids = {id(owner) for owner in taken}
        kept = []  # an object's id is its own only as long as it lives

        def own(array: Any) -> Any:
            owner = _owner(array)
            shared = id(owner) in ids or not array.flags.writeable
            if not shared and isinstance(owner, np.ndarray):
                # Rooms of outputs are as large as their array, and a little for alignment.
                shared = owner.nbytes > 2 * array.nbytes + 64 or not array.flags.c_contiguous
            if shared:
                return np.array(array, order="C")
            ids.add(id(owner))
            kept.append(owner)
            return array

        found: Values = {}
        for name, value in zip(self._outputs, results, strict=True):
            found[name] = [own(item) for item in value] if isinstance(value, list) else value
            if isinstance(value, np.ndarray):
                found[name] = own(value)
        for name, array in (out or {}).items():
            if name not in found:
                raise InputError("run", f"there is no output {name!r}.")
            value = found[name]
            if not isinstance(value, np.ndarray) or not isinstance(array, np.ndarray):
                raise InputError("run", f"out {name!r}: only arrays can be written into.")
            if (value.shape, value.dtype) != (array.shape, array.dtype):
                raise InputError(
                    "run",
                    f"out {name!r} is {array.dtype}{list(array.shape)}, the output "
                    f"{value.dtype}{list(value.shape)}.",
                )
            array[...] = value
            found[name] = array
        return found


def _arrays(value: Any) -> list[Any]:
    return [value] if isinstance(value, np.ndarray) else list(value or ())


def _owner(array: Any) -> Any:
    """The object that a view's memory belongs to."""
    base = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return base


def _problem(value: Any, spec: TensorSpec) -> str | None:
    if value is None and spec.kind in (OPTIONAL, OPTIONAL_SEQUENCE):
        return None
    if spec.kind in (TENSOR, OPTIONAL):
        return _tensor_problem(value, spec)
    if not isinstance(value, (list, tuple)):
        return f"is a {type(value).__name__}; expected a list of arrays"
    for index, item in enumerate(value):
        problem = _tensor_problem(item, spec)
        if problem:
            return f"[{index}] {problem}"
    return None


def _tensor_problem(value: Any, spec: TensorSpec) -> str | None:
    dims = ", ".join("?" if dim is None else str(dim) for dim in spec.shape)
    wanted = f"expected {spec.dtype}[{dims}]"
    if type(value) is not np.ndarray and not isinstance(value, np.ndarray):
        return f"is a {type(value).__name__}, not an array; {wanted}: use numpy.asarray"
    if hasattr(value, "mask"):
        return f"is a masked array, whose mask would be lost; {wanted}: fill it first"
    if value.dtype != numpy_dtype(spec.dtype):
        return f"has the wrong type; {wanted}, got {value.dtype}{list(value.shape)}"
    fits = not spec.shape or (
        len(value.shape) == len(spec.shape)
        and all(dim in (None, size) for dim, size in zip(spec.shape, value.shape, strict=True))
    )
    return None if fits else f"has the wrong shape; {wanted}, got {value.dtype}{list(value.shape)}"
