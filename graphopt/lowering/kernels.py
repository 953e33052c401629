"""The kernels of a program: one for all groups that are computed the same way."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir

from graphopt.codegen.kernel import Kernel, lower, to_kernel
from graphopt.errors import CompileError, last_line
from schedules.interface import Candidate, Workload


class KernelSet:
    """Kernels by name, made when they are first needed; `target` is the tvm Target they run on."""

    def __init__(self, target: Any) -> None:
        self.kernels: dict[str, Kernel] = {}
        self._target = target
        self._names: dict[Any, str] = {}

    def name(self, candidate: Candidate, workload: Workload, nodes: tuple[str, ...]) -> str:
        """The name of the candidate's kernel; CompileError naming `nodes` if it cannot be made."""
        key = (candidate.name, workload, candidate.layouts, candidate.output)
        if key not in self._names:
            name = f"{workload.op.kind}_{len(self._names)}"
            try:
                schedule = s_tir.Schedule(tvm.IRModule({"main": candidate.compute()}))
                candidate.schedule(schedule)
                self.kernels[name] = to_kernel(lower(schedule.mod["main"], self._target))
            except Exception as error:
                raise CompileError(
                    "lowering",
                    f"the kernel {candidate.name} cannot be made: {last_line(error)}",
                    node=", ".join(nodes) or None,
                    hint="This is a defect of graphopt; please report it with the model.",
                ) from error
            self._names[key] = name
        return self._names[key]
