"""Who may run now: callers share a fixed number of workers, first come first served.

A lone run gets the whole team. As soon as callers queue, each gets one worker:
that keeps all workers busy without any barrier between them.
"""

from __future__ import annotations

import threading

from graphopt.errors import GraphoptError


class Ticket:
    """One caller's claim; `granted` workers belong to it until it is given back.

    Alone it takes `team` workers, else one.
    """

    __slots__ = ("granted", "team", "wake")

    def __init__(self, team: int) -> None:
        self.team = team
        self.granted = 0
        self.wake: threading.Lock | None = None


class Permits:
    """`limit` workers, of which a lone caller takes its team (one to all), each of several one.

    A KeyboardInterrupt can strike between any two calls, so every change of state is a few
    assignments (which no signal handler can interrupt) and `release` can be repeated.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy = 0
        self._queue: list[Ticket] = []
        self._mutex = threading.Lock()
        self._closed = False

    def acquire(self, ticket: Ticket) -> None:
        """Wait until `ticket.granted` is `ticket.team` or 1.

        Raises:
            GraphoptError: the session is closed. Call `release` all the same.
        """
        with self._mutex:
            if self._closed:
                raise _closed()
            if not self._busy and not self._queue:
                self._busy = ticket.granted = ticket.team
                return
            ticket.wake = threading.Lock()
            ticket.wake.acquire()
            self._queue.append(ticket)
            self._grant()
        ticket.wake.acquire()
        if not ticket.granted:
            raise _closed()

    def release(self, ticket: Ticket) -> bool:
        """Give back what `ticket` holds, or leave the queue; again has no further effect.

        Returns:
            whether this was the last run after `close`.
        """
        with self._mutex:
            self._busy -= ticket.granted
            ticket.granted = 0
            if self._queue:
                if ticket in self._queue:
                    self._queue.remove(ticket)
                self._grant()
            return self._closed and not self._busy

    def close(self) -> bool:
        """Refuse new runs and those that wait; True if none is running now."""
        with self._mutex:
            self._closed = True
            self._grant()
            return not self._busy

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def idle(self) -> bool:
        """Whether nobody holds a worker."""
        return not self._busy

    def _grant(self) -> None:
        """Serve the queue's head for as long as there are workers. The mutex is held."""
        while self._queue:
            head = self._queue[0]
            if not head.granted and not self._closed:
                if not self._busy and len(self._queue) == 1:
                    self._busy = head.granted = head.team
                elif self._busy < self._limit:
                    self._busy += 1
                    head.granted = 1
                else:
                    return
            if head.wake is not None and head.wake.locked():
                head.wake.release()
            del self._queue[0]


def _closed() -> GraphoptError:
    return GraphoptError("run", "The session is closed.", hint="Load or compile the model again.")
