"""A child of the measure server: it may crash, hang or fill its memory without harm to others."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from graphopt.errors import last_line
from graphopt.tuning.measure.protocol import ClosedError, receive, send

Wait: TypeAlias = "Callable[[], None]"
Job: TypeAlias = "Callable[[int, Wait], None]"
"""What a child does: it is given the pipe to report to, and how to wait for its turn."""


class Child:
    """A forked process that runs `job(pipe, go)` and reports over a pipe."""

    def __init__(self, job: Job, seconds: float, memory_bytes: int) -> None:
        """Fork.

        Args:
            seconds: how long it may take to its next report.
            memory_bytes: what it may take beyond what it inherits.
        """
        reports, their_reports = os.pipe()
        their_orders, orders = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reports)
            os.close(orders)
            _become_child(parent, memory_bytes)
            _do(job, their_reports, their_orders)
        os.close(their_reports)
        os.close(their_orders)
        self.reports, self._orders = reports, orders
        self.deadline = time.monotonic() + seconds
        self._status: int | None = None

    def allow(self, seconds: float) -> None:
        """Its next report may take so long from now."""
        self.deadline = time.monotonic() + seconds

    def go(self, seconds: float) -> None:
        """Let it go on, and report within `seconds`."""
        self.allow(seconds)
        with contextlib.suppress(OSError):
            os.write(self._orders, b"g")

    def report(self) -> dict[str, Any]:
        """Its next report; what became of it if there is none. Blocks until its deadline."""
        ready, _, _ = select.select(
            [self.reports], [], [], max(0, self.deadline - time.monotonic())
        )
        if not ready:
            return {"status": "timeout", "reason": "it took too long"}
        try:
            return receive(self.reports)
        except ClosedError:
            return _death(self.end())

    def end(self) -> int:
        """Kill it, with all that it started, unless that was done; its wait status."""
        if self._status is not None:
            return self._status
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        _, self._status = os.waitpid(self.pid, 0)
        os.close(self.reports)
        os.close(self._orders)
        return self._status


def ready(children: Mapping[int, Child]) -> list[int]:
    """Those that have reported, or should have; waits for the first."""
    patience = max(0.0, min(c.deadline for c in children.values()) - time.monotonic())
    found, _, _ = select.select([c.reports for c in children.values()], [], [], patience)
    now = time.monotonic()
    return [i for i, c in children.items() if c.reports in found or c.deadline <= now]


def _death(status: int) -> dict[str, Any]:
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return {"status": "crash", "reason": f"its process was ended by {name}"}
    return {"status": "crash", "reason": f"its process ended with {os.WEXITSTATUS(status)}"}


def _become_child(parent: int, memory_bytes: int) -> None:
    die_with_parent(parent)
    os.setsid()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)


def _do(job: Job, reports: int, orders: int) -> NoReturn:
    def wait() -> None:
        if not os.read(orders, 1):
            os._exit(0)

    try:
        job(reports, wait)
    except Exception as error:
        send(reports, failure(error))
    finally:
        os._exit(0)


def failure(error: Exception) -> dict[str, Any]:
    """The report of what raised `error`."""
    text = last_line(error)[:300]
    if isinstance(error, MemoryError):
        return {"status": "memory", "reason": "it ran out of memory"}
    status = "memory" if "bad_alloc" in text else "error"
    return {"status": status, "reason": f"{type(error).__name__}: {text}"}


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent ends, even if it is killed itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
