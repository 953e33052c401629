"""The parent's end of a worker: start it, ask it, know when it is idle, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from graphopt.errors import GraphoptError


class EngineError(GraphoptError):
    """An engine failed, died or did not answer in time."""


class EngineProcess:
    """One engine in a process of its own. A context manager: leaving it ends the process."""

    def __init__(self, name: str, threads: int, spinning: bool = False) -> None:
        """spinning: whether OpenMP's threads spin for some milliseconds before they sleep."""
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        # Engines built on OpenMP take their threads from here, and must not spin when idle.
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",
            "PYTHONUNBUFFERED": "1",
        }
        if spinning:
            del environment["OMP_WAIT_POLICY"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "graphopt.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
        )

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, do: str, timeout: float = 600.0, **arguments: Any) -> dict[str, Any]:
        """Send one command and return its answer.

        Raises:
            EngineError: the engine raised, its process ended, or `timeout` seconds passed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not ready:
            self.close()
            raise EngineError(self.name, f"no answer to {do!r} within {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        reply: dict[str, Any] = json.loads(line)
        if not reply["ok"]:
            raise EngineError(self.name, reply["error"])
        return reply

    def _died(self) -> EngineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = f"process ended with status {self._process.returncode}"
        return EngineError(self.name, reason, hint=said[-1] if said else None)

    def cpu_seconds(self) -> float:
        """CPU time used so far by all threads, in seconds."""
        spent = 0
        with contextlib.suppress(OSError, ValueError):
            # Nanoseconds, where psutil's figure moves in ticks of 10 ms.
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                spent += int((task / "schedstat").read_text().split()[0])
        if spent:
            return spent / 1e9
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self.pid).cpu_times()
            return float(times.user + times.system)
        return 0.0

    def close(self) -> None:
        """End the process. Safe to call twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._stderr.close()


def wait_until_idle(processes: Iterable[EngineProcess], limit: float = 2.0) -> bool:
    """Wait until no process uses the CPU any more; False if one still does after `limit` s.

    Thread pools that spin go on for a while after a run, and would slow whoever comes next.
    """
    step = 0.015  # longer than a scheduler tick, at which running threads are accounted
    deadline = time.monotonic() + limit
    watched = list(processes)
    before = [process.cpu_seconds() for process in watched]
    while time.monotonic() < deadline:
        time.sleep(step)
        after = [process.cpu_seconds() for process in watched]
        # Below 5 % of one core: nobody spins.
        if all(b - a < 0.05 * step for a, b in zip(before, after, strict=True)):
            return True
        before = after
    return False
