"""Times kernels on other machines, as many at once as there are.

A child builds its kernel here, waits to be given a server, sends it there and times it between two
of the reference kernel. What goes wrong with a machine is told apart from what goes wrong with a
kernel: the driver tries elsewhere before it blames the kernel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.targets.devices import Device as Known
from graphopt.tuning.measure.child import Child, Job, Wait, failure, ready
from graphopt.tuning.measure.device import (
    Device,
    ForeignError,
    LostError,
    OverdueError,
    Remote,
    load_single,
)
from graphopt.tuning.measure.fleet import AbsentError, Fleet
from graphopt.tuning.measure.machine import YARDSTICK_RUNS, Machine, Task
from graphopt.tuning.measure.parcel import Parcel, form_of
from graphopt.tuning.measure.program import Array
from graphopt.tuning.measure.protocol import Limits, send
from graphopt.tuning.measure.timing import take_turns, timed

GRACE = 10.0
"""Seconds that a session may take to end by itself before its child is killed."""


class There:
    """Where kernels run: the servers of a fleet."""

    def __init__(self, machine: Machine, limits: Limits, fleet: Fleet) -> None:
        self._machine, self._limits, self._fleet = machine, limits, fleet
        self._single = machine.yardstick()
        self._parcel = machine.parcel(self._single)

    def job(self, task: Task, trial: dict[str, Any]) -> Job:
        """What a child does for a trial."""

        def job(reports: int, wait: Wait) -> None:
            single = self._machine.trial(task, trial)
            parcel = self._machine.parcel(single)
            send(reports, {"status": "built"})
            wait()

            def run(device: Device, yardstick: Remote) -> dict[str, Any]:
                before = yardstick.seconds(YARDSTICK_RUNS)
                program = load_single(device, single, parcel)
                report = timed(program, task.expected, trial["best"])
                if report["status"] == "ok":
                    after = yardstick.seconds(YARDSTICK_RUNS)
                    report["ratio"] = report["seconds"] / (0.5 * (before + after))
                return report

            self._on_a_device(reports, run, self._limits.session_seconds)

        return job

    def time(self, built: dict[int, Child], answer: Callable[[int, dict[str, Any]], None]) -> None:
        """Time all trials that are built, and end them.

        Raises:
            AbsentError: there is nobody to run them.
        """
        width = self._servers() if built else 0
        waiting = deque(built)
        running: dict[int, Child] = {}
        started: set[int] = set()
        while waiting or running:
            while waiting and len(running) < width:
                index = waiting.popleft()
                running[index] = built[index]
                running[index].go(self._limits.device_seconds)
            for index in ready(running):
                report = running[index].report()
                if report["status"] == "started":
                    started.add(index)
                    running[index].allow(self._limits.session_seconds + GRACE)
                    continue
                running.pop(index)
                built.pop(index).end()
                self._require_present(report, index in started)
                answer(index, report)

    def profile(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run programs in turns on one server.

        Args:
            message: data: a file, of which [begin, end] are programs' library, inputs and weights;
                form of each program.

        Raises:
            AbsentError: there is no server.
        """

        def job(reports: int, _wait: Wait) -> None:
            self._on_a_device(reports, run, self._limits.final_seconds)

        def run(device: Device, yardstick: Remote) -> dict[str, Any]:
            before = yardstick.seconds(YARDSTICK_RUNS)
            times = _seconds(device, message)
            after = yardstick.seconds(YARDSTICK_RUNS)
            return {"status": "ok", "times": times, "reference": 0.5 * (before + after)}

        child = self._child(job, self._limits.device_seconds)
        report = child.report()
        started = report["status"] == "started"
        if started:
            child.allow(self._limits.final_seconds + GRACE)
            report = child.report()
        child.end()
        self._require_present(report, started)
        return report

    def _servers(self) -> int:
        """How many servers there are now."""

        def job(reports: int, _wait: Wait) -> None:
            try:
                send(reports, {"status": "ok", "servers": self._fleet.servers()})
            except AbsentError as error:
                send(reports, {"status": "absent", "reason": str(error)})

        child = self._child(job, self._limits.device_seconds)
        report = child.report()
        child.end()
        if report["status"] != "ok":
            raise AbsentError(report["reason"])
        return int(report["servers"])

    def _child(self, job: Job, seconds: float) -> Child:
        return Child(job, seconds, self._limits.memory_bytes)

    def _require_present(self, report: dict[str, Any], started: bool) -> None:
        if report["status"] == "absent":
            raise AbsentError(report["reason"])
        if report["status"] == "timeout" and not started:
            seconds = self._limits.device_seconds
            raise AbsentError(f"no server of {self._fleet} was free for {seconds:.0f} s.")

    def _on_a_device(
        self, reports: int, run: Callable[[Device, Remote], dict[str, Any]], seconds: float
    ) -> None:
        """Report what `run` gives, or what kept it from that.

        The session is closed before, because the driver ends whoever has reported: TVM's own
        server never listens again when the other side of a session goes without a word.
        """
        send(reports, self._outcome(reports, run, seconds))

    def _outcome(
        self, reports: int, run: Callable[[Device, Remote], dict[str, Any]], seconds: float
    ) -> dict[str, Any]:
        proven = False
        try:
            device = self._fleet.open(seconds)
            send(reports, {"status": "started"})
            self._require_same(device)
            yardstick = load_single(device, self._single, self._parcel)
            yardstick.run()
            proven = True
            return run(device, yardstick)
        except (AbsentError, ForeignError) as error:
            return {"status": "absent", "reason": str(error)}
        except (LostError, OverdueError) as error:
            if not proven:
                return {"status": "unfit", "reason": str(error)}
            if isinstance(error, OverdueError):
                return {"status": "timeout", "reason": str(error)}
            return {"status": "lost", "reason": str(error)}
        except Exception as error:  # whatever a server reports, as TVM raises it
            report = failure(error)
            return report if proven else {"status": "unfit", "reason": report["reason"]}

    def _require_same(self, device: Device) -> None:
        """The device that kernels are made for must be the server's.

        Raises:
            AbsentError: it is another one, or there is none.
            ForeignError: the server is none of ours.
        """
        spec = self._machine.spec
        if spec.device is None:
            return
        found = device.describe(spec.name)
        where = f"the server {found['machine']} of {self._fleet}"
        if "error" in found:
            raise AbsentError(f"{where} cannot run '{spec.name}': {found['error']}")
        theirs = Known.from_dict(found["device"])
        if (found["arch"], replace(theirs, index=0)) != (spec.arch, replace(spec.device, index=0)):
            raise AbsentError(
                f"{where} has {theirs.key()} on {found['arch']}, where another one has "
                f"{spec.device.key()} on {spec.arch}; servers of a key must be alike."
            )


def _seconds(device: Device, message: dict[str, Any]) -> list[list[list[float]]]:
    """Seconds of each call, in each turn, of each program."""
    data = np.memmap(message["data"], np.uint8, "r")

    def piece(span: list[int]) -> Array:
        return np.asarray(data[span[0] : span[1]])

    inputs = device.upload(piece(message["inputs"]))
    weights = device.upload(piece(message["weights"]))
    programs = [
        device.load(
            Parcel(piece(each["library"]).tobytes(), form_of(each["form"])), inputs, weights
        )
        for each in message["programs"]
    ]
    return take_turns([program.seconds for program in programs])
