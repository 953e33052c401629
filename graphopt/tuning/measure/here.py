"""Times kernels on this machine, one at a time, each between two of the reference kernel."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

from graphopt.tuning.measure.child import Child, Job, Wait
from graphopt.tuning.measure.machine import YARDSTICK_RUNS, Machine, Task
from graphopt.tuning.measure.protocol import Limits, send
from graphopt.tuning.measure.timing import timed

ATTEMPTS = 3
"""What every trial needs is tried so often, in case somebody kills the child that does it."""
RECENT = 7
"""So many times of the reference kernel, of some seconds, say how fast the machine is now."""


class Here:
    """Where kernels run: children of this process."""

    def __init__(self, machine: Machine, limits: Limits) -> None:
        self._machine, self._limits = machine, limits
        self._yardstick: Child | None = None
        self._reference: deque[float] = deque(maxlen=RECENT)

    def job(self, task: Task, trial: dict[str, Any]) -> Job:
        """What a child does for a trial: build, wait for its turn, check and time."""

        def job(reports: int, wait: Wait) -> None:
            program = self._machine.load(self._machine.trial(task, trial))
            send(reports, {"status": "built"})
            wait()
            send(reports, timed(program, task.expected, trial["best"]))

        return job

    def time(self, built: dict[int, Child], answer: Callable[[int, dict[str, Any]], None]) -> None:
        """Time all trials that are built, and end them."""
        for index in list(built):
            child = built[index]
            self._time_reference()
            child.go(self._limits.run_seconds)
            report = child.report()
            built.pop(index).end()
            if report["status"] == "ok":
                self._time_reference()
                report["ratio"] = report["seconds"] / median(self._reference)
            answer(index, report)

    def reference_seconds(self) -> float:
        """What the reference kernel takes now."""
        self._reference.clear()
        for _ in range(RECENT):
            self._time_reference()
        return median(self._reference)

    def _time_reference(self) -> None:
        """Note how long the reference kernel takes now."""
        for _ in range(ATTEMPTS):
            if self._yardstick is None:
                seconds, memory = self._limits.build_seconds, self._limits.memory_bytes
                self._yardstick = Child(self._time_yardstick, seconds, memory)
            self._yardstick.go(self._limits.build_seconds)
            report = self._yardstick.report()
            if report["status"] == "ok":
                self._reference.append(float(report["seconds"]))
                return
            self._yardstick.end()
            self._yardstick = None
        raise RuntimeError(f"the reference kernel cannot be timed: {report}")

    def _time_yardstick(self, reports: int, wait: Wait) -> None:
        program = self._machine.load(self._machine.yardstick())
        while True:
            wait()
            send(reports, {"status": "ok", "seconds": program.seconds(YARDSTICK_RUNS)})
