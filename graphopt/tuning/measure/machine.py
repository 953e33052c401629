"""What kernels are built for, and the reference kernel that says how fast it is at the moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphopt.target import TargetSpec
from graphopt.tuning.measure.parcel import Parcel, parcel
from graphopt.tuning.measure.program import Array, Loaded, Single, load, make_single
from graphopt.tuning.measure.reference import make_inputs, offers, reference
from graphopt.tuning.measure.timing import find_candidate
from schedules.interface import Candidate, Op, TargetTraits, TensorSig, Workload

YARDSTICK = Workload(
    Op(
        "matmul",
        (TensorSig((256, 256)), TensorSig((256, 256))),
        TensorSig((256, 256)),
        (("transpose_b", False),),
        (False, True),
    )
)
"""What the reference kernel computes."""
YARDSTICK_RUNS = 16
"""Of about a millisecond each: the first ones after a pause wait for the workers to wake up."""


@dataclass(frozen=True)
class Task:
    """A workload with inputs and the right result, which lies in memory shared with children."""

    workload: Workload
    arrays: list[Array]
    expected: Array


@dataclass(frozen=True)
class Machine:
    """A processor and how many threads a program has there."""

    spec: TargetSpec
    threads: int

    @property
    def traits(self) -> TargetTraits:
        """What schedules need to know of it."""
        return self.spec.traits(self.threads)

    def trial(self, task: Task, trial: dict[str, Any]) -> Single:
        """The program that a trial asks for.

        Raises:
            LookupError: there is no such kernel.
        """
        name, decisions = trial["candidate"], trial["decisions"]
        candidate = find_candidate(task.workload, name, decisions, self.traits)
        return self._single(task.workload, candidate, task.arrays)

    def yardstick(self) -> Single:
        """The program of the reference kernel."""
        found = offers(YARDSTICK, self.traits)
        candidate = next((each for each in found if each.name == "matmul.gemm"), found[0])
        return self._single(YARDSTICK, candidate, make_inputs(YARDSTICK))

    def load(self, single: Single) -> Loaded:
        """The program in this process."""
        return load(single, self._target, self.spec.arch)

    def parcel(self, single: Single) -> Parcel:
        """The program for another machine."""
        return parcel(single.plan, {"kernel": single.kernel}, self.spec, self.threads)

    def reference(self, workload: Workload, arrays: list[Array]) -> Array:
        """See reference.reference()."""
        return reference(workload, arrays, self.traits, self._target, self.spec.arch)

    @property
    def _target(self) -> Any:
        if self.spec.device is not None:
            return self.spec.device_target()
        return self.spec.tvm_target(self.threads)

    def _single(self, workload: Workload, candidate: Candidate, arrays: list[Array]) -> Single:
        return make_single(workload, candidate, arrays, self.traits, self._target)
