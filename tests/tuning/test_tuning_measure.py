"""The measure server: right times for right kernels, and no harm from the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from tuning_run import TARGET, conv

from graphopt.tuning.measure.client import Result, Server, Trial
from graphopt.tuning.measure.program import load, make_single, unblocked
from graphopt.tuning.measure.protocol import ClosedError, Limits, receive, send
from graphopt.tuning.measure.reference import LIMIT, make_inputs, offers, reference
from graphopt.tuning.measure.timing import find_candidate, relative_error, timed
from schedules.interface import Layout, Op, TensorSig, Workload

THREADS = 1


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(TARGET, THREADS) as found:
        yield found


def default_trials(workload: Workload) -> list[Trial]:
    candidates = offers(workload, TARGET.traits(THREADS))
    return [Trial(workload, c.name, c.decisions, float("inf")) for c in candidates]


def measured(server: Server, trials: list[Trial]) -> list[Result]:
    return [result for _, result in sorted(server.measure(trials))]


def children(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if child.is_running()]


def server_process() -> psutil.Process:
    found = [
        child
        for child in psutil.Process().children()
        if "graphopt.tuning.measure.server" in " ".join(child.cmdline())
    ]
    return found[0]


@contextmanager
def next_child_killed(process: psutil.Process) -> Iterator[None]:
    """Meanwhile, the first new child is killed."""
    before = {child.pid for child in children(process)}
    done = threading.Event()

    def kill() -> None:
        while not done.is_set():
            for child in children(process):
                if child.pid not in before:
                    child.kill()
                    return

    killer = threading.Thread(target=kill)
    killer.start()
    yield
    done.set()
    killer.join()


def test_every_candidate_of_a_workload_is_right_and_timed(server: Server) -> None:
    trials = default_trials(conv())
    assert {t.candidate for t in trials} >= {"conv2d.direct[blocked]", "conv2d.winograd4"}
    for result in measured(server, trials):
        assert result.status == "ok", result
        assert 0 < result.seconds < 1
        assert 0 < result.ratio < 1000
        assert result.error <= LIMIT


def test_the_server_imports_no_driver_and_starts_no_thread(server: Server) -> None:
    measured(server, default_trials(conv())[:1])
    process = server_process()
    assert process.num_threads() == 1
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libtvm_compiler" in maps
    for absent in ("xgboost", "onnxruntime", "/scipy/", "/onnx/"):
        assert absent not in maps


def test_a_kernel_that_there_is_not_fails_alone(server: Server) -> None:
    good = default_trials(conv())[0]
    wrong = [
        Trial(conv(), "conv2d.nothing", (), 1.0),
        Trial(conv(), "conv2d.lines", (("filters", 999), ("vectors", 9)), 1.0),
        Trial(conv(), "conv2d.lines", (("unknown", 1),), 1.0),
    ]
    results = measured(server, [wrong[0], good, *wrong[1:]])
    assert [result.status for result in results] == ["error", "ok", "error", "error"]
    assert "no candidate is called conv2d.nothing" in results[0].reason
    assert "has no kernel with" in results[2].reason


def test_a_workload_without_a_reference_fails_alone(server: Server) -> None:
    nonsense = Workload(Op("unheard_of", (TensorSig((2,)),), TensorSig((2,))))
    trials = [Trial(nonsense, "x", (), 1.0), default_trials(conv())[0]]
    results = measured(server, trials)
    assert [result.status for result in results] == ["error", "ok"]
    assert "no reference result" in results[0].reason


def test_a_reference_whose_child_is_killed_is_computed_again(server: Server) -> None:
    measured(server, default_trials(conv())[:1])
    with next_child_killed(server_process()):
        results = measured(server, default_trials(conv(channels=20))[:2])  # a new workload
    assert [result.status for result in results] == ["ok", "ok"]


def test_a_child_that_is_killed_fails_alone(server: Server) -> None:
    trials = default_trials(conv()) * 3
    measured(server, trials[:1])  # the server and its reference kernel are up
    with next_child_killed(server_process()):
        results = measured(server, trials)
    statuses = [result.status for result in results]
    assert statuses.count("crash") == 1, results
    assert statuses.count("ok") == len(trials) - 1
    assert "SIGKILL" in next(r.reason for r in results if r.status == "crash")


def test_the_reference_kernel_is_replaced_when_it_is_killed(server: Server) -> None:
    trial = default_trials(conv())[:1]
    measured(server, trial)
    for child in children(server_process()):
        child.kill()
    assert measured(server, trial)[0].status == "ok"


def test_a_server_that_is_killed_is_started_again(server: Server) -> None:
    trials = default_trials(conv())
    found = server.measure(trials)
    next(found)
    server_process().kill()
    rest = list(found)
    assert len(rest) == len(trials) - 1
    assert all(result.status == "ok" for _, result in rest)


def test_a_child_that_hangs_is_ended() -> None:
    with Server(TARGET, THREADS, Limits(build_seconds=0.001)) as server:
        (result,) = measured(server, default_trials(conv())[:1])
    assert result.status == "timeout"


def test_a_child_that_wants_too_much_memory_is_ended() -> None:
    workload = conv(channels=64, size=112, filters=64)
    with Server(TARGET, THREADS, Limits(memory_bytes=16 << 20)) as server:
        (result,) = measured(server, default_trials(workload)[:1])
    assert result.status != "ok"


def test_nothing_outlives_the_driver(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_tuning_measure import *\n"
        "server = Server(TARGET, THREADS)\n"
        "results = server.measure(default_trials(conv()) * 50)\n"
        "next(results)\n"
        "print(server_process().pid, *(c.pid for c in children(server_process())), flush=True)\n"
        "list(results)\n".replace("\\\n", "\n")
    )
    driver = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    started = [int(word) for word in driver.stdout.readline().split()]
    assert len(started) >= 2
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in started)


# --- the parts -----------------------------------------------------------------------------------


def test_reference_is_numpys_in_float64() -> None:
    workload = conv(after=False)
    x, w = make_inputs(workload)
    traits, target = TARGET.traits(1), TARGET.tvm_target(1)
    found = reference(workload, [x, w], traits, target, TARGET.arch)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, w.astype(np.float64))
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_reference_has_the_epilogue() -> None:
    workload = conv()
    arrays = make_inputs(workload)
    traits, target = TARGET.traits(1), TARGET.tvm_target(1)
    bare = reference(conv(after=False), arrays[:2], traits, target, TARGET.arch)
    found = reference(workload, arrays, traits, target, TARGET.arch)
    np.testing.assert_allclose(found, np.maximum(bare + arrays[2], 0), rtol=1e-5, atol=1e-6)


def test_a_wrong_result_is_found() -> None:
    workload = conv()
    traits, target = TARGET.traits(1), TARGET.tvm_target(1)
    arrays = make_inputs(workload)
    candidate = find_candidate(workload, "conv2d.lines", {"filters": 3, "vectors": 1}, traits)
    single = make_single(workload, candidate, arrays, traits, target)
    program = load(single, target, TARGET.arch)
    expected = program.run()
    assert timed(program, expected, float("inf"))["status"] == "ok"
    spoilt = expected.copy()
    spoilt.flat[7] += 0.01
    assert timed(program, spoilt, float("inf"))["status"] == "wrong"


def test_errors() -> None:
    x = np.float32([1, 2, 4])
    assert relative_error(x, x) == 0
    assert relative_error(x + np.float32([0, 0, 1]), x) == 0.25
    assert relative_error(x[:2], x) == np.inf
    assert np.isnan(relative_error(x * np.nan, x))
    assert relative_error(np.int32([1]), np.int32([2])) == np.inf


def test_blocked_outputs_become_logical() -> None:
    array = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
    found = unblocked(array, Layout(4), (2, 7, 3))
    assert found.shape == (2, 7, 3)
    assert found[1, 5, 2] == array[1, 1, 2, 1]


def test_messages_cross_a_pipe_whole() -> None:
    out, into = os.pipe()
    message = {"text": "é" * 100_000}
    writer = threading.Thread(target=send, args=(into, message))
    writer.start()
    assert receive(out) == message
    writer.join()
    os.close(into)
    with pytest.raises(ClosedError):
        receive(out)
    os.close(out)
