"""Many callers, forks, signals and exits: exact results, bounded threads, nothing hangs."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_program import toy_code, toy_expected, toy_inputs, toy_plan, toy_weights

from graphopt.errors import GraphoptError
from graphopt.runtime.library import open_module
from graphopt.runtime.session import Session

NewSession = Callable[..., Session]
_HERE = Path(__file__).parent
_PRELUDE = """
import numpy as np, os, signal, sys, threading, time
from toy_program import toy_code, toy_expected, toy_inputs, toy_plan, toy_weights
from graphopt.runtime.library import open_module
from graphopt.runtime.session import Session

# Made now: NumPy imports parts of itself late, which hangs in a child forked at that moment.
CASES = [(toy_inputs(seed), toy_expected(toy_inputs(seed))) for seed in range(20)]

def check(session, seed=1):
    inputs, expected = CASES[seed]
    for name, value in session.run(inputs).items():
        assert np.array_equal(value, expected[name]), name

def new(nap_us=0, threads=2):
    return Session(toy_plan(threads=threads), open_module(toy_code(1000, nap_us)), toy_weights())
"""


def script(body: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Run `body` in a fresh interpreter."""
    code = _PRELUDE + textwrap.dedent(body)
    path = os.pathsep.join([str(_HERE), str(_HERE.parent.parent)])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def os_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize("serial", [False, True])
def test_eight_callers_get_exact_results_from_a_bounded_team(
    new_session: NewSession, serial: bool
) -> None:
    session = new_session(threads=3, serial=serial)
    before = os_threads()
    cases = [(toy_inputs(seed), toy_expected(toy_inputs(seed))) for seed in range(16)]
    wrong: list[str] = []
    most = 0

    def call(first: int) -> None:
        nonlocal most
        try:
            for index in range(1000):
                inputs, expected = cases[(first + index) % len(cases)]
                results = session.run(inputs)
                if any(not np.array_equal(results[name], expected[name]) for name in expected):
                    wrong.append(f"caller {first}, run {index}")
                if index % 100 == 0:
                    most = max(most, os_threads())
        except BaseException as error:
            wrong.append(repr(error))

    callers = [threading.Thread(target=call, args=(first,)) for first in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert not wrong
    assert most <= before + len(callers) + 2  # two workers beside the callers
    assert 1 <= session._program.module["peak"]() <= 3
    assert len(session._crew._free) <= 4


def test_a_team_really_runs_in_parallel(new_session: NewSession) -> None:
    session = new_session(threads=3, nap_us=20000)
    session.run(toy_inputs(0))
    assert session._program.module["peak"]() == 3


def test_queueing_callers_really_run_side_by_side(new_session: NewSession) -> None:
    session = new_session(threads=3, nap_us=20000, serial=True)
    callers = [threading.Thread(target=session.run, args=(toy_inputs(0),)) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert session._program.module["peak"]() == 3


def test_the_interpreter_runs_on_while_a_program_runs(new_session: NewSession) -> None:
    session = new_session(nap_us=300000)
    caller = threading.Thread(target=session.run, args=(toy_inputs(0),))
    caller.start()
    steps = 0
    while caller.is_alive():
        steps += 1
        time.sleep(0.001)
    assert steps > 20  # 1 or 2 if the GIL were held


def test_closing_waits_for_nobody_and_hurts_no_run(new_session: NewSession) -> None:
    session = new_session(nap_us=100000)
    results: list[dict[str, Any]] = []
    caller = threading.Thread(target=lambda: results.append(session.run(toy_inputs(1))))
    caller.start()
    while session._workers.permits.idle:
        time.sleep(0.001)
    session.close()
    with pytest.raises(GraphoptError, match="closed"):
        session.run(toy_inputs(1))
    caller.join(30)
    np.testing.assert_array_equal(results[0]["y"], toy_expected(toy_inputs(1))["y"])
    wait_for_no_workers()


def test_a_dropped_session_takes_its_workers_along() -> None:
    wait_for_no_workers()
    session = Session(toy_plan(threads=3), open_module(toy_code()), toy_weights())
    session.run(toy_inputs(0))
    assert len(workers()) == 2
    del session
    gc.collect()
    wait_for_no_workers()


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("graphopt-worker")]


def wait_for_no_workers() -> None:
    deadline = time.monotonic() + 30
    while workers():
        assert time.monotonic() < deadline, "workers are left"
        time.sleep(0.005)


def test_forked_children_run_and_so_does_the_parent(new_session: NewSession) -> None:
    session = new_session()
    session.run(toy_inputs(0))  # the team is up
    children = []
    for seed in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for index in range(50):
                    inputs = toy_inputs(seed + index)
                    expected = toy_expected(inputs)
                    results = session.run(inputs)
                    assert all(np.array_equal(results[name], expected[name]) for name in expected)
                assert session._program.module["peak"]() >= 1
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    for seed in range(50):
        np.testing.assert_array_equal(
            session.run(toy_inputs(seed))["y"], toy_expected(toy_inputs(seed))["y"]
        )
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4


def test_fork_while_other_threads_run() -> None:
    done = script("""
        session = new(nap_us=2000)
        stop = False
        def call():
            while not stop:
                check(session)
        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers: caller.start()
        for _ in range(8):
            time.sleep(0.01)
            child = os.fork()
            if child == 0:
                signal.alarm(10)  # ends a child that hangs
                code = 1
                try:
                    for seed in range(5): check(session, seed)
                    code = 0
                finally:
                    os._exit(code)
            failed = os.waitpid(child, 0)[1]
            if failed: break
        stop = True
        for caller in callers: caller.join()
        check(session)
        print("child failed" if failed else "fine")
    """)
    assert done.stdout == "fine\n", done.stderr
    assert done.returncode == 0


def test_a_child_of_a_pre_fork_server_that_exits_normally() -> None:
    done = script("""
        session = new()
        check(session)
        if os.fork() == 0:
            check(session)
            print("child", flush=True)
            sys.exit(0)
        pid, status = os.wait()
        assert status == 0, status
        check(session)
        print("parent")
    """)
    assert done.stdout == "child\nparent\n", done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    "ending", ["pass", "sys.exit(0)", "del session", "session.close()", "raise SystemExit"]
)
def test_the_interpreter_ends_cleanly(ending: str) -> None:
    done = script(f"""
        session = new(threads=4)
        for seed in range(20): check(session, seed)
        {ending}
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_exit_while_a_daemon_thread_runs_the_program() -> None:
    done = script("""
        session = new(nap_us=3000, threads=3)
        def call():
            while True: check(session)
        threading.Thread(target=call, daemon=True).start()
        time.sleep(0.05)
        print("end", flush=True)
    """)
    assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr


def test_interrupts_lose_no_worker() -> None:
    done = script(
        """
        session = new(nap_us=200)
        caught = 0
        def disturb():
            for _ in range(150):
                time.sleep(0.0037)
                os.kill(os.getpid(), signal.SIGINT)
        other = threading.Thread(target=disturb)
        # A second caller, so that the main thread is also interrupted while it waits.
        stop = False
        def call():
            while not stop: check(session)
        caller = threading.Thread(target=call)
        inputs = CASES[1][0]
        try:
            caller.start(); other.start()
        except KeyboardInterrupt:
            caught += 1
        while other.is_alive():
            try:
                while other.is_alive():
                    session.run(inputs)
            except KeyboardInterrupt:
                caught += 1
        stop = True
        caller.join()
        assert session._workers.permits.idle
        for seed in range(20): check(session, seed)
        print("fine", caught > 20)
        """,
        timeout=90,
    )
    assert done.stdout == "fine True\n", done.stderr


def test_workers_block_signals(new_session: NewSession) -> None:
    session = new_session(threads=2)
    session.run(toy_inputs(0))
    worker = workers()[-1]
    status = Path(f"/proc/self/task/{worker.native_id}/status").read_text()
    blocked = int(
        next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16
    )
    assert blocked >> (signal.SIGINT - 1) & 1
    assert not blocked >> (signal.SIGSEGV - 1) & 1


def test_without_threads_to_be_had_runs_use_one() -> None:
    done = script("""
        import resource
        session = new(threads=3)
        start, threading.Thread.start = threading.Thread.start, None
        def refuse(self): raise RuntimeError("can't start new thread")
        threading.Thread.start = refuse
        check(session)
        threading.Thread.start = start
        check(session)
        print("fine", session._program.module["peak"]())
    """)
    assert done.stdout.startswith("fine"), done.stderr
    assert "no worker threads can be started" in done.stderr
