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
import signal
import sys
from typing import Any

import numpy as np

from graphopt.target import TargetSpec
from graphopt.targets.devices import Device
from graphopt.tuning.codec import workload_from_json
from graphopt.tuning.measure.child import Child, Job, Wait, die_with_parent, ready
from graphopt.tuning.measure.fleet import AbsentError, Fleet
from graphopt.tuning.measure.here import ATTEMPTS, Here
from graphopt.tuning.measure.machine import Machine, Task
from graphopt.tuning.measure.protocol import ClosedError, Limits, receive, send
from graphopt.tuning.measure.reference import make_inputs
from graphopt.tuning.measure.there import There


class Server:
    """Answers the driver's requests until it closes its end."""

    def __init__(self, place: Here | There, host: Machine, limits: Limits, output: int) -> None:
        """Args:
        place: where kernels run.
        host: this machine, which computes what they must give.
        output: the descriptor that answers are written to.
        """
        self._place, self._host, self._limits, self._output = place, host, limits, output
        self._tasks: dict[str, Task] = {}
        self._builders = len(os.sched_getaffinity(0))

    def answer(self, message: dict[str, Any]) -> None:
        """Do what one message asks for."""
        try:
            send(self._output, self._result(message))
        except AbsentError as error:
            send(self._output, {"absent": str(error)})

    def _result(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["op"] == "task":
            return self._add_task(message)
        if message["op"] == "measure":
            self._measure(message["trials"])
            return {"done": True}
        if isinstance(self._place, There):
            return self._place.profile(message)
        return {"seconds": self._place.reference_seconds()}

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
            expected[...] = self._host.reference(workload, arrays)
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
                for index in ready(building):
                    child = building.pop(index)
                    report = child.report()
                    if report["status"] == "built":
                        built[index] = child
                    else:
                        child.end()
                        self._tell(index, report)
            self._place.time(built, self._tell)
        finally:
            for child in (*building.values(), *built.values()):
                child.end()

    def _tell(self, index: int, report: dict[str, Any]) -> None:
        send(self._output, {"trial": index, **report})

    def _job(self, trial: dict[str, Any]) -> Job:
        return self._place.job(self._tasks[trial["task"]], trial)


def _target(given: dict[str, Any]) -> TargetSpec:
    """The target, without a look for its device: drivers start threads, which no child has."""
    if given["device"] is None:
        return TargetSpec.parse(given["target"])
    device = Device.from_dict(given["device"])
    return TargetSpec.for_device(given["target"], device, given["arch"])


def main() -> None:
    """Serve until the driver closes its end.

    The argument is an object: input and output (descriptors), target, device (null for a
    processor), arch (of what launches a fleet's devices, else null), threads, driver (its process),
    fleet (null where kernels run here) and limits.
    """
    given = json.loads(sys.argv[1])
    die_with_parent(given["driver"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what a Ctrl-C means
    machine = Machine(_target(given), given["threads"])
    limits = Limits(**given["limits"])
    place: Here | There = Here(machine, limits)
    host = machine
    if given["fleet"] is not None:
        place = There(machine, limits, Fleet.parse(given["fleet"]))
    if given["fleet"] is not None or given["device"] is not None:
        host = Machine(TargetSpec.parse("cpu"), len(os.sched_getaffinity(0)))
    server = Server(place, host, limits, given["output"])
    with contextlib.suppress(ClosedError):
        send(given["output"], {"ready": True})
        while True:
            server.answer(receive(given["input"]))


if __name__ == "__main__":
    main()
