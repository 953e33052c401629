"""The kernels of a program: one for all groups that are computed the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import s_tir

from graphopt.codegen.kernel import HasWorkspaces, KernelMaker
from graphopt.errors import CompileError, DeviceError, last_line
from schedules.interface import Candidate, Workload


class KernelSet:
    """Kernels by name: scheduled when they are first needed, lowered meanwhile by `jobs`."""

    def __init__(self, jobs: KernelMaker) -> None:
        self._jobs = jobs
        self._names: dict[Any, str] = {}
        self._origins: dict[str, tuple[str, tuple[str, ...]]] = {}

    def name(self, candidate: Candidate, workload: Workload, nodes: tuple[str, ...]) -> str:
        """The name of the candidate's kernel.

        Raises, naming `nodes`:
            CompileError: it cannot be made.
            DeviceError: the device that it is for cannot run it.
        """
        key = (candidate, workload)
        if key not in self._names:
            name = f"{workload.op.kind}_{len(self._names)}"
            self._origins[name] = candidate.name, nodes
            self._explained(name, lambda: self._jobs.add(name, scheduled(candidate)))
            self._names[key] = name
        return self._names[key]

    def finished(self) -> dict[str, HasWorkspaces]:
        """All kernels, lowered; CompileError naming the nodes of one that failed."""
        return {
            name: self._explained(name, lambda name=name: self._jobs.kernel(name))  # type: ignore[misc]
            for name in self._origins
        }

    def _explained(self, name: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except Exception as error:
            candidate, nodes = self._origins[name]
            node = ", ".join(nodes) or None
            if isinstance(error, DeviceError):
                raise DeviceError(error.stage, error.reason, node=node, hint=error.hint) from error
            raise CompileError(
                "lowering",
                f"the kernel {candidate} cannot be made: {last_line(error)}",
                node=node,
                hint="This is a defect of graphopt; please report it with the model.",
            ) from error


def scheduled(candidate: Candidate) -> Any:
    """The candidate's function, scheduled."""
    schedule = s_tir.Schedule(tvm.IRModule({"main": candidate.compute()}))
    candidate.schedule(schedule)
    return schedule.mod["main"]
