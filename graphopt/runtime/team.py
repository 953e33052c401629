"""The team: threads that are parked in native code until a run wakes them."""

from __future__ import annotations

import logging
import signal
import threading

from graphopt.codegen import abi
from graphopt.runtime.native import Function
from graphopt.runtime.workspace import Context

log = logging.getLogger(__name__)

# A worker must die of its own crash, so the signals that the processor raises stay deliverable.
_SYNCHRONOUS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}


class Team:
    """Workers 1 … tasks−1 of one context at a time; the caller of a run is worker 0.

    The threads are daemons and are never joined by the interpreter's exit: parked in native code
    they hold no lock and touch no Python object. What they use stays alive through their frames.
    """

    def __init__(self, context: Context, tasks: int, serve: Function) -> None:
        """Start the workers.

        Raises:
            RuntimeError: the system gives no more threads; none is left running.
        """
        self.tasks = tasks
        self.context: Context | None = None
        """Where all workers are, or are going without anything more to be done."""
        self._post = _Post(context, serve)
        self._leaving: list[Context] = []
        self._threads: list[threading.Thread] = []
        try:
            for task in range(1, tasks):
                thread = threading.Thread(
                    target=_park,
                    args=(self._post, task),
                    name=f"graphopt-worker-{task}",
                    daemon=True,
                )
                self._threads.append(thread)
                thread.start()
        except BaseException:
            self.stop()
            raise
        self.context = context

    def move(self, context: Context, serve: Function) -> None:
        """Send the workers to another context, new and for as many tasks. Only between runs.

        Returns at once: a run may begin, since each worker finds its semaphore posted when it
        arrives. A context that was left is not used again, because a late worker may still have
        to see there that it should leave. An interrupt in here is made good by the next move.
        """
        self.context = None
        self._leaving.append(self._post.order[0])
        self._post.order = (context, serve)
        self._call_away()
        self._leaving.clear()
        self.context = context

    def stop(self) -> None:
        """Tell the workers to end; returns at once. Call it between runs only."""
        self.context = None
        self._post.over = True
        self._leaving.append(self._post.order[0])
        self._call_away()

    def join(self, seconds: float) -> None:
        """Wait for workers that were told to end, `seconds` for each at most."""
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(seconds)

    def _call_away(self) -> None:
        for context in self._leaving:
            context.set(abi.STOP, 1)
            for task in range(1, self.tasks):
                context.wake(task)


class _Post:
    """Where a team's workers go next; what their threads know of the team."""

    def __init__(self, context: Context, serve: Function) -> None:
        self.order = (context, serve)
        self.over = False


def _park(post: _Post, task: int) -> None:
    # Signals belong to the caller's threads; here one would only interrupt a wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _SYNCHRONOUS)
    while not post.over:
        context, serve = post.order
        serve.prepare(context.address, task)()
