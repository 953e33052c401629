"""Several programs on the same workers: one bound for all, one set of threads, exact results."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_program import toy_code, toy_expected, toy_inputs, toy_plan, toy_weights

from graphopt.errors import GraphoptError
from graphopt.runtime.library import open_module
from graphopt.runtime.session import Session
from graphopt.runtime.workers import Workers

SIZES = (1000, 640, 96)
THREADS = 3


def new(
    n: int, workers: Workers, *, serial: bool = False, threads: int = THREADS, nap_us: int = 0
) -> Session:
    plan = toy_plan(n, threads, serial=serial)
    return Session(plan, open_module(toy_code(n, nap_us)), toy_weights(n), workers=workers)


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    workers = Workers(THREADS)
    made = [new(n, workers) for n in SIZES]
    yield made
    made[0].close()


def check(session: Session, seed: int) -> None:
    (n,) = session.inputs[0].shape
    assert n is not None
    inputs = toy_inputs(seed, n)
    for name, value in toy_expected(inputs, n).items():
        np.testing.assert_array_equal(session.run(inputs)[name], value)


def threads_of_the_team() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("graphopt-worker")]


def test_one_team_goes_from_program_to_program(sessions: list[Session]) -> None:
    before = len(threads_of_the_team())
    for seed in range(60):
        check(sessions[seed % 3], seed)
        check(sessions[0], seed)
        check(sessions[0], seed)
    assert len(threads_of_the_team()) == before + THREADS - 1


def test_every_program_gets_the_whole_team() -> None:
    workers = Workers(THREADS)
    made = [new(n, workers, nap_us=20000) for n in SIZES]
    for session in (*made, *made):
        check(session, 1)
    assert [session._program.module["peak"]() for session in made] == [THREADS] * 3


def test_concurrent_callers_stay_within_one_bound(sessions: list[Session]) -> None:
    before = len(list(Path("/proc/self/task").iterdir()))
    wrong: list[str] = []
    most = busy = 0

    def call(first: int) -> None:
        nonlocal most, busy
        try:
            for index in range(300):
                check(sessions[(first + index // 7) % 3], index % 16)
                most = max(most, len(list(Path("/proc/self/task").iterdir())))
                busy = max(busy, sessions[0]._workers.permits._busy)
        except BaseException as error:
            wrong.append(repr(error))

    callers = [threading.Thread(target=call, args=(first,)) for first in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert not wrong
    assert busy <= THREADS
    assert most <= before + len(callers) + THREADS - 1
    assert sessions[0]._workers.permits.idle


def test_programs_for_fewer_threads_share_too() -> None:
    workers = Workers(THREADS)
    made = [new(1000, workers), new(640, workers, threads=2), new(96, workers, serial=True)]
    assert [session.threads for session in made] == [3, 2, 3]
    for seed in range(12):
        check(made[seed % 3], seed)
    made[1].close()
    with pytest.raises(GraphoptError, match="closed"):
        check(made[0], 0)
    assert not threads_of_the_team()


def test_dropping_the_last_session_ends_the_team() -> None:
    workers = Workers(THREADS)
    made = [new(n, workers) for n in SIZES]
    del workers
    for session in made:
        check(session, 1)
    made.pop(2)  # the one that the team serves
    gc.collect()
    check(made[0], 2)
    made.clear()
    del session
    gc.collect()
    deadline = time.monotonic() + 30
    while threads_of_the_team():
        assert time.monotonic() < deadline, "workers are left"
        time.sleep(0.005)


def test_forked_children_share_among_themselves(sessions: list[Session]) -> None:
    check(sessions[0], 1)
    check(sessions[1], 1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for seed in range(9):
                check(sessions[seed % 3], seed)
            code = 0 if len(list(Path("/proc/self/task").iterdir())) <= THREADS else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    check(sessions[2], 3)
