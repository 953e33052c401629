"""Permits: who runs, how many at once, and that nothing is lost."""

from __future__ import annotations

import threading
import time

import pytest

from graphopt.errors import GraphoptError
from graphopt.runtime.permits import Permits, Ticket


def test_a_lone_caller_gets_the_team() -> None:
    permits = Permits(4)
    for _ in range(3):
        ticket = Ticket(4)
        permits.acquire(ticket)
        assert ticket.granted == 4
        permits.release(ticket)
        assert permits.idle


def test_without_a_team_callers_run_side_by_side() -> None:
    permits = Permits(2)
    first, second = Ticket(1), Ticket(1)
    permits.acquire(first)
    permits.acquire(second)  # would wait for ever if there were only one
    assert (first.granted, second.granted) == (1, 1)


def test_callers_in_a_queue_get_one_worker_each() -> None:
    permits = Permits(3)
    lone = Ticket(3)
    permits.acquire(lone)
    tickets = [Ticket(3) for _ in range(5)]
    go_on = [threading.Event() for _ in tickets]

    def work(ticket: Ticket, go: threading.Event) -> None:
        permits.acquire(ticket)
        go.wait(30)
        permits.release(ticket)

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(tickets, go_on, strict=True)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(permits._queue) == 5)
    assert not any(ticket.granted for ticket in tickets)
    permits.release(lone)
    wait_until(lambda: [ticket.granted for ticket in permits_first(tickets)] == [1, 1, 1])
    assert len(permits._queue) == 2
    for go in go_on:
        go.set()
    for thread in threads:
        thread.join(30)
    assert permits.idle


def permits_first(tickets: list[Ticket]) -> list[Ticket]:
    """Those that were let in."""
    return [ticket for ticket in tickets if ticket.granted]


def test_release_can_be_repeated_and_needs_no_grant() -> None:
    permits = Permits(2)
    permits.release(Ticket(2))
    ticket = Ticket(2)
    permits.acquire(ticket)
    permits.release(ticket)
    permits.release(ticket)
    assert permits.idle
    permits.acquire(ticket)
    assert ticket.granted == 2


def test_a_caller_who_leaves_the_queue_lets_the_next_one_in() -> None:
    permits = Permits(1)
    lone, quitter, last = Ticket(1), Ticket(1), Ticket(1)
    permits.acquire(lone)
    threads = []
    for ticket in (quitter, last):
        threads.append(threading.Thread(target=permits.acquire, args=(ticket,), daemon=True))
        threads[-1].start()
        wait_until(lambda: len(permits._queue) == len(threads))
    permits.release(quitter)  # as after a KeyboardInterrupt while it waits
    permits.release(lone)
    threads[1].join(10)
    assert last.granted == 1
    assert quitter.granted == 0


def test_closing_turns_waiting_callers_away() -> None:
    permits = Permits(1)
    lone = Ticket(1)
    permits.acquire(lone)
    refused = []

    def wait() -> None:
        ticket = Ticket(1)
        try:
            permits.acquire(ticket)
        except GraphoptError as error:
            refused.append(error)
        finally:
            permits.release(ticket)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(permits._queue) == 3)
    assert not permits.close()
    for thread in threads:
        thread.join(10)
    assert len(refused) == 3
    permits.release(lone)
    assert permits.close()
    with pytest.raises(GraphoptError, match="closed"):
        permits.acquire(Ticket(1))


@pytest.mark.parametrize("team", [1, 3])
def test_never_more_workers_than_the_limit(team: int) -> None:
    permits, lock = Permits(3), threading.Lock()
    busy, highest = 0, 0

    def work() -> None:
        nonlocal busy, highest
        for _ in range(300):
            ticket = Ticket(team)
            permits.acquire(ticket)
            taken = ticket.granted
            with lock:
                busy += taken
                highest = max(highest, busy)
            with lock:
                busy -= taken
            permits.release(ticket)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert highest <= 3
    assert permits.idle


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.001)
