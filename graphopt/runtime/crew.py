"""One program's share of the workers: its workspaces, its claims, its turns with the team."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.codegen import abi
from graphopt.codegen.plan import Plan
from graphopt.errors import GraphoptError
from graphopt.runtime.native import Function
from graphopt.runtime.permits import Ticket
from graphopt.runtime.profiler import Stopwatch
from graphopt.runtime.workers import Workers
from graphopt.runtime.workspace import Context, Workspace

log = logging.getLogger(__name__)


class Program:
    """What runs of a session share and never change: plan, machine code and weights."""

    def __init__(self, plan: Plan, module: Any, weights: NDArray[np.uint8]) -> None:
        self.plan = plan
        self.module = module
        self.weights = weights
        self.run = Function(module["run"])
        self.serve = Function(module["serve"])
        # A program whose calls are all too small to share gains nothing from waking a team.
        self.shareable = any(not call.serial for call in plan.calls)

    def job(self, workspace: Workspace, tasks: int) -> Job:
        """A new context for `tasks` workers on `workspace`, and the call that runs it."""
        context = Context(self.plan, workspace, self.weights, tasks)
        return Job(context, self.run.prepare(context.address))


class Job:
    """A context with its call; used by one run at a time."""

    __slots__ = ("call", "context")

    def __init__(self, context: Context, call: Callable[[], int]) -> None:
        self.context = context
        self.call = call

    @property
    def workspace(self) -> Workspace:
        """The memory that runs of this job use."""
        return self.context.workspace

    def run(self, addresses: list[int], watch: Stopwatch | None = None) -> None:
        """Run the program once with these inputs and outputs.

        Raises:
            GraphoptError: the program refused its arguments; a defect of graphopt.
        """
        self.context.bind(addresses)
        # The call releases the GIL.
        failed = self.call() if watch is None else self._run_timed(watch)
        if failed:
            raise GraphoptError("run", "The compiled program refused its arguments.")

    def _run_timed(self, watch: Stopwatch) -> int:
        self.context.kept_stamps = watch
        try:
            self.context.set(abi.TIMESTAMPS, watch.address)
            return self.call()
        finally:
            self.context.set(abi.TIMESTAMPS, 0)


class Turn(Ticket):
    """One run's claim: its workers, and the job of a lone worker."""

    __slots__ = ("job",)

    def __init__(self, team: int) -> None:
        self.team = team
        self.granted = 0
        self.wake = None
        self.job: Job | None = None


class Crew:
    """Runs a program for any number of callers with workers that other programs may share.

    Memory is taken when it is first needed: a forked child gets a new crew, and most children
    never run anything.
    """

    def __init__(self, program: Program, workers: Workers) -> None:
        self._program = program
        self._workers = workers
        self._size = min(workers.limit, program.plan.threads) if program.shareable else 1
        # A team claims all workers, even those it has no use for: it runs with nobody beside it.
        self.claim = workers.limit if self._size > 1 else 1
        self._team_job: Job | None = None
        # Jobs of lone workers. Taken from the end: what was used last is likeliest in cache.
        self._free: list[Job] = []

    def enter(self, turn: Turn) -> Job:
        """Wait for workers; the job to run.

        Raises:
            GraphoptError: the crew is closed, or there is no memory. Call `leave` all the same.
        """
        self._workers.permits.acquire(turn)
        if turn.granted > 1:
            # Nobody else runs now, so the team may start, and share a lone worker's workspace.
            job = self._team_job
            if job is not None and job.context is self._workers.context:
                return job
            return self._assemble(turn)
        return self._solo(turn)

    def leave(self, turn: Turn) -> None:
        """Give everything back, whatever `enter` came to, and even if a signal interrupts this."""
        try:
            self._return(turn)
        except BaseException:
            self._return(turn)
            raise

    def _solo(self, turn: Turn) -> Job:
        try:
            turn.job = self._free.pop()
        except IndexError:
            turn.job = self._program.job(Workspace(self._program.plan), 1)
        return turn.job

    def _assemble(self, turn: Turn) -> Job:
        """The team's job, with its workers waiting; a lone worker's if none can be started."""
        solo = self._solo(turn)
        job = self._program.job(solo.workspace, self._size)
        try:
            self._workers.lead(job.context, self._size, self._program.serve)
        except RuntimeError as error:
            log.warning("no worker threads can be started, this run uses one thread: %s", error)
            return solo
        self._team_job = job
        return job

    def _return(self, turn: Turn) -> None:
        job = turn.job
        if job is not None:
            turn.job = None  # an interrupt from here on loses a workspace, not a worker
            self._free.append(job)
        if self._workers.permits.release(turn):
            self._workers.dismiss()
