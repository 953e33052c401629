"""Runs a function in a forked process of its own, with limits on time and memory."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FINISHED, _RAISED = b"+", b"!"


@dataclass(frozen=True)
class Outcome:
    """How an isolated call ended.

    value: what it returned, when `ended` is "returned". ended: "returned", "raised", "died" or
    "timeout". detail: the exception, or the signal's name.
    """

    ended: str
    value: Any = None
    detail: str = ""


@dataclass(frozen=True)
class Limits:
    """seconds: of wall time. gigabytes: of address space beyond what the parent has."""

    seconds: float = 60.0
    gigabytes: float = 8.0


@dataclass
class _Child:
    pid: int
    pipe: int
    deadline: float
    received: bytearray


def run_one(call: Callable[[], Any], limits: Limits) -> Outcome:
    """Run one call in a fork of this process."""
    ((_, outcome),) = run_all([call], limits, jobs=1)
    return outcome


def run_all(
    calls: Iterable[Callable[[], Any]], limits: Limits, jobs: int
) -> Iterator[tuple[int, Outcome]]:
    """Run each call in a fork of this process, `jobs` at a time; yields them as they end.

    The caller's memory is shared copy-on-write, so what it has imported costs the calls nothing.
    """
    waiting = enumerate(calls)
    running: dict[int, _Child] = {}
    exhausted = False
    try:
        while running or not exhausted:
            while not exhausted and len(running) < jobs:
                index, call = next(waiting, (-1, None))
                if call is None:
                    exhausted = True
                else:
                    running[index] = _start(call, limits)
            yield from _collect(running)
    finally:
        for child in running.values():
            _end(child)


def _start(call: Callable[[], Any], limits: Limits) -> _Child:
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(call, limits, writer)
    os.close(writer)
    return _Child(pid, reader, time.monotonic() + limits.seconds, bytearray())


def enter_child(limits: Limits) -> None:
    """What a fresh fork does first: a session of its own, no output, the limit on memory."""
    os.setsid()  # so that whatever it starts ends with it
    faulthandler.disable()  # it would write to the parent's stderr
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + int(limits.gigabytes * 2**30)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]  # within another call it is lower already
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(call: Callable[[], Any], limits: Limits, pipe: int) -> None:
    try:
        try:
            enter_child(limits)
            message = _FINISHED + pickle.dumps(call())
        except BaseException as error:
            message = _RAISED + pickle.dumps(f"{type(error).__name__}: {error}"[:2000])
        with os.fdopen(pipe, "wb") as stream:
            stream.write(message)
    finally:
        os._exit(0)


def _collect(running: dict[int, _Child]) -> Iterator[tuple[int, Outcome]]:
    now = time.monotonic()
    patience = max(0.0, min((child.deadline - now for child in running.values()), default=0.0))
    ready, _, _ = select.select([child.pipe for child in running.values()], [], [], patience)
    for index, child in list(running.items()):
        outcome = None
        if child.pipe in ready:
            chunk = os.read(child.pipe, 1 << 20)
            child.received += chunk
            if not chunk:
                _, status = os.waitpid(child.pid, 0)
                os.close(child.pipe)
                outcome = _outcome(bytes(child.received), status)
        elif time.monotonic() >= child.deadline:
            _end(child)
            outcome = Outcome("timeout")
        if outcome is not None:
            del running[index]
            yield index, outcome


def death(status: int) -> Outcome:
    """The outcome of a process that ended with this wait status before it had answered."""
    if os.WIFSIGNALED(status):
        return Outcome("died", detail=signal.Signals(os.WTERMSIG(status)).name)
    return Outcome("died", detail=f"exit status {os.WEXITSTATUS(status)}")


def kill_child(pid: int) -> None:
    """Kill a process that called enter_child, and all that it started; the caller waits for it."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _outcome(message: bytes, status: int) -> Outcome:
    if os.WIFSIGNALED(status) or not message:
        return death(status)
    content = pickle.loads(message[1:])
    if message[:1] == _RAISED:
        return Outcome("raised", detail=content)
    return Outcome("returned", content)


def _end(child: _Child) -> None:
    kill_child(child.pid)
    os.waitpid(child.pid, 0)
    os.close(child.pipe)
