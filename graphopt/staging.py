"""Opens programs: sessions for straight-line ones, and for host programs, with their segments."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from graphopt.codegen.host_program import bucket
from graphopt.errors import GraphoptError, InputError
from graphopt.programs import AnyProgram, Segment, Staged
from graphopt.runtime.device import open_device
from graphopt.runtime.device_memory import largest_piece
from graphopt.runtime.device_session import DeviceSession
from graphopt.runtime.host_session import HostSession
from graphopt.runtime.profiler import Meter
from graphopt.runtime.session import Session
from graphopt.runtime.workers import Workers
from graphopt.specialisations import MAX_SPECIALISATIONS, Key, OnceCache, describe, values_of

log = logging.getLogger(__name__)

AnySession: TypeAlias = Session | DeviceSession | HostSession


def open_session(program: AnyProgram, workers: Workers) -> AnySession:
    """Make a program ready to run; segments are opened when they are first called."""
    if isinstance(program, Staged):
        runners = [
            SegmentRunner(f"segment{index}", segment, workers)
            for index, segment in enumerate(program.segments)
        ]
        return HostSession(program.program, runners)
    if program.needs is not None:
        # Before the module, which is read by what this loads.
        device = open_device(program.needs, largest_piece(program.plan))
        return DeviceSession(program.plan, program.module(), program.weights(), device)
    return Session(program.plan, program.module(), program.weights(), workers=workers)


def complete(program: Staged) -> None:
    """Compile row-wise segments for all counts of rows there can be."""
    for segment in program.segments:
        spec, build = segment.spec, segment.build
        if build is not None and spec.row_limit:
            for size in sorted({bucket(1 << k, spec.row_limit) for k in range(48)}):
                shapes = (
                    tuple(size if i == axis else dim or 0 for i, dim in enumerate(each.shape))
                    for each, axis in zip(spec.inputs, spec.row_inputs, strict=True)
                )
                key = Key(tuple(shapes))
                segment.programs.get(key, partial(build, key), pin=True)
        for item in segment.items():
            if isinstance(item, Staged):
                complete(item)


class SegmentRunner:
    """Calls a segment's program for the shapes and values at hand, compiling where it must."""

    def __init__(self, name: str, segment: Segment, workers: Workers) -> None:
        self._name, self._segment, self._workers = name, segment, workers
        spec = segment.spec
        self._rows = bool(spec.row_inputs)
        self._names = tuple(each.name for each in spec.inputs)
        self._bound = [i for i, each in enumerate(spec.inputs) if each.name in spec.bound]
        self._free = tuple(name for name in self._names if name not in spec.bound)
        self._sessions: OnceCache[Key, AnySession] = OnceCache(MAX_SPECIALISATIONS)
        # What was used last is used next, most of the time; other threads may set it meanwhile.
        # Without values to look at, the session itself sees whether the arrays fit.
        self._last: Session | DeviceSession | None = None

    def __call__(self, arrays: Sequence[Any]) -> Iterable[Any]:
        """Outputs for inputs, both in the segment's order.

        Raises:
            InputError: there is no program for these shapes and values, and no compiler.
            GraphoptError: it does not compile.
        """
        last = self._last
        if self._rows:
            arrays, rows = self._filled(arrays)
            return self._cut(self._results(arrays, last), rows)
        return self._results(arrays, last)

    def _results(
        self, arrays: Sequence[Any], last: Session | DeviceSession | None
    ) -> Iterable[Any]:
        if last is not None:
            results = last.call(arrays)
            if results is not None:
                return results
        session, given = self._prepared(arrays)
        return session.run(given).values()

    def metered(self, arrays: Sequence[Any], meter: Meter) -> Iterable[Any]:
        """The same, and the time of its calls into `meter`."""
        rows = 0
        if self._rows:
            arrays, rows = self._filled(arrays)
        session, given = self._prepared(arrays)
        with meter.inside(self._name):
            results = session.metered(given, meter).values()
        return self._cut(results, rows) if self._rows else results

    def _filled(self, arrays: Sequence[Any]) -> tuple[list[Any], int]:
        """Inputs with rows of zeros up to a size that programs are compiled for, and the count."""
        spec = self._segment.spec
        counts = {a.shape[i] for a, i in zip(arrays, spec.row_inputs, strict=True) if i >= 0}
        if len(counts) != 1:
            raise GraphoptError("run", f"counts of rows differ: {counts}.", node=spec.nodes[0])
        (rows,) = counts
        size = bucket(rows, spec.row_limit)
        if rows == size:
            return list(arrays), rows
        filled = []
        for array, axis in zip(arrays, spec.row_inputs, strict=True):
            if axis < 0:
                filled.append(array)
                continue
            shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
            wide = np.zeros(shape, array.dtype)
            wide[(slice(None),) * axis + (slice(rows),)] = array
            filled.append(wide)
        return filled, rows

    def _cut(self, results: Iterable[Any], rows: int) -> list[Any]:
        return [
            result[(slice(None),) * axis + (slice(rows),)]
            for result, axis in zip(results, self._segment.spec.row_outputs, strict=True)
        ]

    def _prepared(self, arrays: Sequence[Any]) -> tuple[AnySession, dict[str, Any]]:
        key = Key(
            tuple(array.shape for array in arrays),
            tuple(values_of(arrays[i]) for i in self._bound),
        )
        session = self._sessions.get(key, lambda: self._open(key))
        given = dict(zip(self._names, arrays, strict=True))
        if self._bound:
            return session, {name: given[name] for name in self._free}
        if isinstance(session, (Session, DeviceSession)):
            self._last = session
        return session, given

    def _open(self, key: Key) -> AnySession:
        build = self._segment.build
        if build is None:
            known = dict(self._segment.programs.items())
            if key not in known:
                raise self._refusal(key, list(known))
            return open_session(known[key], self._workers)
        program = self._segment.programs.get(key, lambda: build(key))
        return open_session(program, self._workers)

    def _refusal(self, key: Key, known: list[Key]) -> InputError:
        spec = self._segment.spec
        nodes = ", ".join(spec.nodes[:3]) + (", …" if len(spec.nodes) > 3 else "")
        listed = "; ".join(describe(each, spec.inputs, spec.bound) for each in known) or "nothing"
        return InputError(
            "run",
            f"the part with the nodes {nodes} was not compiled for "
            f"{describe(key, spec.inputs, spec.bound)}, which these inputs lead to.",
            node=spec.nodes[0] if spec.nodes else None,
            hint=f"it has: {listed}. Run the model with such inputs before saving it.",
        )
