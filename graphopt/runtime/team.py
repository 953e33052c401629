"""The workers of a session: threads that are parked in native code until a run wakes them."""

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
    """Workers 1 … n−1 of one context; the caller of a run is worker 0.

    The threads are daemons and are never joined by the interpreter's exit: parked in native code
    they hold no lock and touch no Python object. What they use stays alive through their frames.
    """

    def __init__(self, context: Context, tasks: int, serve: Function) -> None:
        """Start the workers.

        Raises:
            RuntimeError: the system gives no more threads; none is left running.
        """
        self._context = context
        self._threads: list[threading.Thread] = []
        for task in range(1, tasks):
            thread = threading.Thread(
                target=_park,
                args=(serve, context, task),
                name=f"graphopt-worker-{task}",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError:
                self.stop()
                raise
            self._threads.append(thread)

    def stop(self) -> None:
        """Tell the workers to end; returns at once. Call it between runs only."""
        self._context.set(abi.STOP, 1)
        for task in range(1, len(self._threads) + 1):
            self._context.wake(task)

    def join(self, seconds: float) -> None:
        """Wait for workers that were told to end, `seconds` for each at most."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(seconds)


def _park(serve: Function, context: Context, task: int) -> None:
    # Signals belong to the caller's threads; here one would only interrupt a wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _SYNCHRONOUS)
    serve.prepare(context.address, task)()
