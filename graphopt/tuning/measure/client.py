"""The driver's side of the measure server: starts it, asks, and starts it again if it dies."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.errors import TuningError
from graphopt.target import TargetSpec
from graphopt.tuning.codec import workload_key, workload_to_json
from graphopt.tuning.measure.fleet import Fleet
from graphopt.tuning.measure.protocol import ClosedError, Limits, receive, send
from schedules.interface import Decisions, Workload

MAX_DEATHS = 3
"""A batch that the server does not survive so often is given up."""
MAX_LOSSES = 2
"""A kernel is blamed for the end of its machine's session when it has happened so often."""
MAX_UNFIT = 6
"""So many sessions in a row that end with the reference kernel are the fault of the target."""
SILENCE_SECONDS = 420.0
"""A server that says nothing for so long is taken for dead."""

# One thread in all libraries: the server forks, and forks only when it is alone.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TVM_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Trial:
    """A kernel to be measured; best: seconds of the fastest of its workload so far, or inf."""

    workload: Workload
    candidate: str
    decisions: Decisions
    best: float


@dataclass(frozen=True)
class Result:
    """What came of a trial: as in Record."""

    status: str
    seconds: float = 0.0
    ratio: float = 0.0
    error: float = 0.0
    reason: str = ""


class Server:
    """A measure server for one target and number of threads."""

    def __init__(
        self,
        target: TargetSpec,
        threads: int,
        limits: Limits | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        """Args:
        fleet: machines that run the kernels; None for this one.
        """
        self._target, self._threads, self._limits = target, threads, limits or Limits()
        self._fleet, self._losses = fleet, Losses()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._answers = -1
        self._known: dict[str, dict[str, Any]] = {}

    def measure(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Result]]:
        """Measure trials; (index, result) of each as soon as it is known.

        Raises:
            TuningError: the server cannot be started, or dies again and again; or there is no other
                machine to run kernels.
        """
        open_trials = dict(enumerate(trials))
        deaths = 0
        while open_trials:
            try:
                for index, reason in self._prepare(open_trials):
                    del open_trials[index]
                    yield index, Result("error", reason=reason)
                order = list(open_trials)
                if not order:
                    break
                plain = [_plain(trials[i]) for i in order]
                self._send({"op": "measure", "trials": plain})
                while "done" not in (answer := self._receive()):
                    index = order[answer.pop("trial")]
                    result = self._losses.judge(index, answer)
                    if result is not None:
                        del open_trials[index]
                        yield index, result
            except ClosedError:
                self.close()
                deaths += 1
                if deaths == MAX_DEATHS:
                    raise _died() from None
        self._losses.forget()

    def _prepare(self, trials: dict[int, Trial]) -> list[tuple[int, str]]:
        """Make the server know the workloads; those trials that it cannot prepare."""
        failed = []
        for index, trial in trials.items():
            key = workload_key(trial.workload)
            if key not in self._known:
                plain = workload_to_json(trial.workload)
                self._send({"op": "task", "task": key, "workload": plain})
                self._known[key] = self._receive()
            if self._known[key]["status"] != "ok":
                failed.append((index, f"no reference result: {self._known[key]['reason']}"))
        return failed

    def reference_seconds(self) -> float:
        """How long the reference kernel takes now, on this machine.

        Raises:
            TuningError: the server cannot be started, or dies again and again.
        """
        return float(self._ask({"op": "reference"})["seconds"])

    def profile(
        self, data: str, programs: Sequence[Mapping[str, Any]], **more: Any
    ) -> tuple[list[list[list[float]]], float]:
        """Run programs in turns on one machine of the fleet; see There.profile() for the arguments.

        Returns:
            seconds of each call, in each turn, of each program; those of the reference kernel.

        Raises:
            TuningError: as measure().
        """
        answer: dict[str, Any] = {}
        for _ in range(MAX_LOSSES + 1):
            message = {"op": "profile", "data": data, "programs": list(programs), **more}
            answer = self._ask(message)
            if answer["status"] == "ok":
                return answer["times"], answer["reference"]
        raise TuningError("measure", f"the finals failed on {self._fleet}: {answer['reason']}")

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        for _ in range(MAX_DEATHS):
            try:
                self._send(message)
                return self._receive()
            except ClosedError:
                self.close()
        raise _died()

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is None:
            self._start()
        send(self._requests, message)

    def _receive(self) -> dict[str, Any]:
        ready, _, _ = select.select([self._answers], [], [], SILENCE_SECONDS)
        if not ready:
            raise ClosedError
        answer = receive(self._answers)
        if "absent" in answer:
            raise TuningError(
                "measure", answer["absent"], hint="what was measured is in the log; tune again."
            )
        return answer

    def _start(self) -> None:
        their_requests, self._requests = os.pipe()
        self._answers, their_answers = os.pipe()
        given = {
            "input": their_requests,
            "output": their_answers,
            "target": self._target.name,
            "device": None if self._target.device is None else asdict(self._target.device),
            "arch": None if self._fleet is None else self._target.arch,
            "threads": self._threads,
            "driver": os.getpid(),
            "fleet": None if self._fleet is None else str(self._fleet),
            "limits": asdict(self._limits),
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "graphopt.tuning.measure.server", json.dumps(given)],
                env={**os.environ, **_ENVIRONMENT},
                pass_fds=(their_requests, their_answers),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C is for the driver alone
            )
        except OSError as error:
            raise TuningError(
                "measure", f"the measure server cannot be started: {error.strerror}."
            ) from error
        finally:
            os.close(their_requests)
            os.close(their_answers)
        try:
            self._receive()
        except ClosedError:
            said = self._process.communicate()[1].decode(errors="replace").strip().splitlines()
            self._process = None
            raise TuningError(
                "measure", f"the measure server did not start: {said[-1] if said else 'no reason'}"
            ) from None

    def close(self) -> None:
        """End the server and all that it started."""
        process, self._process = self._process, None
        self._known.clear()
        if process is None:
            return
        os.close(self._requests)
        os.close(self._answers)
        process.kill()
        process.communicate()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Losses:
    """Tells kernels that take machines down from machines that go by themselves."""

    def __init__(self) -> None:
        self._lost: Counter[int] = Counter()
        self._unfit = 0  # in a row

    def judge(self, index: int, answer: dict[str, Any]) -> Result | None:
        """What came of a trial; None if it has to be tried again, on another machine.

        Raises:
            TuningError: machine after machine ends with the reference kernel.
        """
        if answer["status"] == "unfit":
            self._unfit += 1
            if self._unfit == MAX_UNFIT:
                raise TuningError(
                    "measure",
                    f"sessions end while they run the reference kernel: {answer['reason']}",
                    hint="are the servers what the target says?",
                )
            return None
        self._unfit = 0
        if answer["status"] != "lost":
            return Result(**answer)
        self._lost[index] += 1
        if self._lost[index] < MAX_LOSSES:
            return None
        return Result("crash", reason=f"{MAX_LOSSES} machines were lost that ran it")

    def forget(self) -> None:
        """The batch is done; the next one has other trials."""
        self._lost.clear()


def _died() -> TuningError:
    return TuningError(
        "measure",
        f"the measure server died {MAX_DEATHS} times in one batch.",
        hint="is the machine out of memory? What was measured is in the log.",
    )


def _plain(trial: Trial) -> dict[str, Any]:
    return {
        "task": workload_key(trial.workload),
        "candidate": trial.candidate,
        "decisions": dict(trial.decisions),
        "best": min(trial.best, 1e9),
    }
