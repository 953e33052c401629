"""The measure server's process: python -m graphopt.tuning.measure.server JSON (see main()).

It imports TVM and what makes kernels, and starts no thread, so that it can be forked. Each trial is
a child: it builds its kernel while others build theirs, waits for its turn, and is alone with the
machine when it is checked and timed. A child may crash, hang or fill its memory without harm. The
server ends with its driver, the children with the server.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from graphopt.target import TargetSpec
from graphopt.tuning.codec import workload_from_json
from graphopt.tuning.measure.child import Child, Job, Wait, die_with_parent
from graphopt.tuning.measure.program import Array, Measured, make_program
from graphopt.tuning.measure.protocol import ClosedError, Limits, receive, send
from graphopt.tuning.measure.reference import make_inputs, offers, reference
from graphopt.tuning.measure.timing import find_candidate, timed
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
RECENT = 7
"""So many times of the reference kernel, of some seconds, say how fast the machine is now."""
ATTEMPTS = 3
"""What every trial needs is tried so often, in case somebody kills the child that does it."""
YARDSTICK_RUNS = 16
"""Of about a millisecond each: the first ones after a pause wait for the workers to wake up."""


@dataclass(frozen=True)
class Machine:
    """What kernels are built for."""

    spec: TargetSpec
    threads: int

    @property
    def traits(self) -> TargetTraits:
        """What schedules need to know of it."""
        return self.spec.traits(self.threads)

    def program(self, workload: Workload, candidate: Candidate, arrays: list[Array]) -> Measured:
        """A program of the candidate's kernel."""
        target = self.spec.tvm_target(self.threads)
        return make_program(workload, candidate, arrays, self.traits, target, self.spec.arch)

    def reference(self, workload: Workload, arrays: list[Array]) -> Array:
        """See reference.reference()."""
        target = self.spec.tvm_target(self.threads)
        return reference(workload, arrays, self.traits, target, self.spec.arch)


@dataclass(frozen=True)
class Task:
    """A workload with inputs and the right result, which lies in memory shared with children."""

    workload: Workload
    arrays: list[Array]
    expected: Array


class Server:
    """Answers the driver's requests until it closes its end."""

    def __init__(self, machine: Machine, limits: Limits, output: int) -> None:
        self._machine, self._limits, self._output = machine, limits, output
        self._tasks: dict[str, Task] = {}
        self._builders = len(os.sched_getaffinity(0))
        self._yardstick: Child | None = None
        self._reference: deque[float] = deque(maxlen=RECENT)

    def answer(self, message: dict[str, Any]) -> None:
        """Do what one message asks for."""
        if message["op"] == "task":
            send(self._output, self._add_task(message))
        elif message["op"] == "reference":
            self._reference.clear()
            for _ in range(RECENT):
                self._time_reference()
            send(self._output, {"seconds": median(self._reference)})
        else:
            self._measure(message["trials"])
            send(self._output, {"done": True})

    def _child(self, job: Job, seconds: float) -> Child:
        return Child(job, seconds, self._limits.memory_bytes)

    def _add_task(self, message: dict[str, Any]) -> dict[str, Any]:
        workload = workload_from_json(message["workload"])
        try:
            arrays = make_inputs(workload)
            shared = mmap.mmap(-1, max(workload.output.nbytes, 1))
        except (ValueError, TypeError, MemoryError, OSError) as error:
            return {"status": "error", "reason": f"{type(error).__name__}: {error}"}
        dtype, shape = np.dtype(workload.output.dtype), workload.output.shape
        expected = np.frombuffer(shared, dtype, workload.output.elements).reshape(shape)

        def job(reports: int, _wait: Wait) -> None:
            expected[...] = self._machine.reference(workload, arrays)
            send(reports, {"status": "ok"})

        for _ in range(ATTEMPTS):
            child = self._child(job, self._limits.reference_seconds)
            report = child.report()
            child.end()
            if report["status"] not in ("crash", "timeout"):
                break
        if report["status"] == "ok":
            self._tasks[message["task"]] = Task(workload, arrays, expected)
        return report

    def _measure(self, trials: list[dict[str, Any]]) -> None:
        """Build all trials, then time them one by one."""
        waiting = list(enumerate(trials))
        building: dict[int, Child] = {}
        built: dict[int, Child] = {}
        try:
            while waiting or building:
                while waiting and len(building) < self._builders:
                    index, trial = waiting.pop(0)
                    building[index] = self._child(self._job(trial), self._limits.build_seconds)
                for index in self._first(building):
                    child = building.pop(index)
                    report = child.report()
                    if report["status"] == "built":
                        built[index] = child
                    else:
                        child.end()
                        send(self._output, {"trial": index, **report})
            for index in list(built):
                self._time(index, built.pop(index))
        finally:
            for child in (*building.values(), *built.values()):
                child.end()

    def _first(self, building: dict[int, Child]) -> list[int]:
        """Those that have reported, or should have."""
        patience = max(0.0, min(c.deadline for c in building.values()) - time.monotonic())
        ready, _, _ = select.select([c.reports for c in building.values()], [], [], patience)
        now = time.monotonic()
        return [i for i, c in building.items() if c.reports in ready or c.deadline <= now]

    def _time(self, index: int, child: Child) -> None:
        """Time a trial that is built, and end it."""
        try:
            self._time_reference()
            child.go(self._limits.run_seconds)
            report = child.report()
        finally:
            child.end()
        if report["status"] == "ok":
            self._time_reference()
            report["ratio"] = report["seconds"] / median(self._reference)
        send(self._output, {"trial": index, **report})

    def _time_reference(self) -> None:
        """Note how long the reference kernel takes now."""
        for _ in range(ATTEMPTS):
            if self._yardstick is None:
                self._yardstick = self._child(self._time_yardstick, self._limits.build_seconds)
            self._yardstick.go(self._limits.build_seconds)
            report = self._yardstick.report()
            if report["status"] == "ok":
                self._reference.append(float(report["seconds"]))
                return
            self._yardstick.end()
            self._yardstick = None
        raise RuntimeError(f"the reference kernel cannot be timed: {report}")

    def _time_yardstick(self, reports: int, wait: Wait) -> None:
        found = offers(YARDSTICK, self._machine.traits)
        candidate = next(each for each in found if each.name == "matmul.gemm")
        program = self._machine.program(YARDSTICK, candidate, make_inputs(YARDSTICK))
        while True:
            wait()
            send(reports, {"status": "ok", "seconds": program.seconds(YARDSTICK_RUNS)})

    def _job(self, trial: dict[str, Any]) -> Job:
        def job(reports: int, wait: Wait) -> None:
            task = self._tasks[trial["task"]]
            name, decisions = trial["candidate"], trial["decisions"]
            candidate = find_candidate(task.workload, name, decisions, self._machine.traits)
            program = self._machine.program(task.workload, candidate, task.arrays)
            send(reports, {"status": "built"})
            wait()
            send(reports, timed(program, task.expected, trial["best"]))

        return job


def main() -> None:
    """Serve until the driver closes its end.

    The argument is an object: input and output (descriptors), target, threads, driver (its process)
    and limits.
    """
    given = json.loads(sys.argv[1])
    die_with_parent(given["driver"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what a Ctrl-C means
    machine = Machine(TargetSpec.parse(given["target"]), given["threads"])
    server = Server(machine, Limits(**given["limits"]), given["output"])
    with contextlib.suppress(ClosedError):
        send(given["output"], {"ready": True})
        while True:
            server.answer(receive(given["input"]))


if __name__ == "__main__":
    main()
