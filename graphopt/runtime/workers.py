"""The workers that all programs of one model share in one process."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

from graphopt.runtime.native import Function
from graphopt.runtime.permits import Permits
from graphopt.runtime.team import Team
from graphopt.runtime.workspace import Context

_JOIN_SECONDS = 5.0


class Workers:
    """At most `limit` workers run at any time, the calling threads included.

    The team's threads are started when they are first needed, and go from program to program. A
    forked child has workers of its own.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.permits = Permits(limit)
        self._team: Team | None = None
        self._finalizer: weakref.finalize[..., Workers] | None = None
        _renew_after_fork(self)

    @property
    def context(self) -> Context | None:
        """The context that the team serves now."""
        return None if self._team is None else self._team.context

    def lead(self, context: Context, tasks: int, serve: Function) -> None:
        """Let the team serve `context`, a new one. The caller holds the permits of the team.

        Raises:
            RuntimeError: the system gives no more threads.
        """
        if self._team is not None and self._team.tasks == tasks:
            self._team.move(context, serve)
            return
        self.stop()
        self._team = Team(context, tasks, serve)
        self._finalizer = weakref.finalize(self, self._team.stop)
        # At exit the workers stay parked: a thread that wakes while the interpreter goes down is
        # ended inside native code, which may abort the process.
        self._finalizer.atexit = False

    def close(self) -> None:
        """End the workers; if a run is under way, the last one does it."""
        if self.permits.close():
            self.dismiss()

    def stop(self) -> None:
        """End the team without waiting for it; no run may be under way."""
        team, self._team = self._team, None
        if self._finalizer is not None:
            self._finalizer.detach()
        if team is not None:
            team.stop()

    def dismiss(self) -> None:
        """End the team and wait for its threads."""
        team = self._team
        self.stop()
        if team is not None:
            team.join(_JOIN_SECONDS)

    def _renew(self) -> None:
        """In a forked child: threads, locks and semaphores of the parent do not exist here."""
        closed = self.permits.closed
        if self._finalizer is not None:
            self._finalizer.detach()
        self._team = None
        self.permits = Permits(self.limit)
        if closed:
            self.permits.close()


def _renew_after_fork(workers: Workers) -> None:
    os.register_at_fork(after_in_child=call_if_alive(weakref.WeakMethod(workers._renew)))


def call_if_alive(method: weakref.WeakMethod[Callable[[], None]]) -> Callable[[], None]:
    """A function that calls `method` unless its object is gone; hooks for forks are for ever."""

    def call() -> None:
        alive = method()
        if alive is not None:
            alive()

    return call
