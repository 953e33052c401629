"""Tuning as a whole: real kernels, real logs, and what compile() makes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from tuning_run import KEY

import graphopt
from graphopt.cli.main import main
from graphopt.tuning.database import read
from graphopt.tuning.outcome import Outcome, Progress


def tuned(model: onnx.ModelProto, log: Path, trials: int, **options) -> Outcome:
    return graphopt.tune(model, threads=1, log=log, trials=trials, fresh=True, **options)


@pytest.fixture(scope="module")
def log(tiny_cnn: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    seen: list[Progress] = []
    outcome = tuned(tiny_cnn, folder, 40, watch=seen.append)
    assert outcome.trials == 40
    assert outcome.ok + outcome.failed == outcome.trials
    assert outcome.ok >= 38
    assert outcome.reason == "all trials are spent"
    assert [each.phase for each in seen][-2:] == ["finals", "done"]
    assert seen[-1].tasks[0].trials > 0
    return folder


def test_every_trial_is_in_the_log(log: Path) -> None:
    records = read(log, KEY).records
    kernels = {(r.workload_key, r.trace_key) for r in records}
    assert len(kernels) == 40
    assert any(record.final for record in records)
    assert all(record.features for record in records if record.ok and not record.final)
    assert (log / KEY / "cost_model.bin").exists()


def test_compile_takes_the_records(tiny_cnn: onnx.ModelProto, log: Path) -> None:
    plain = graphopt.compile(tiny_cnn, threads=1, tuning_log=())
    found = graphopt.compile(tiny_cnn, threads=1, tuning_log=log)
    assert set(plain.report.origins()) == {"default"}
    assert found.report.origins()["tuned"] >= 2
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    for name, expected in plain.run({"x": x}).items():
        np.testing.assert_allclose(found.run({"x": x})[name], expected, rtol=1e-4, atol=1e-5)


def test_records_of_other_threads_are_borrowed(tiny_cnn: onnx.ModelProto, log: Path) -> None:
    found = graphopt.compile(tiny_cnn, threads=3, tuning_log=log)
    assert "borrowed" in found.report.origins()
    assert "tuned" not in found.report.origins()


def test_the_compile_cache_knows_the_records(tiny_cnn: onnx.ModelProto, log: Path) -> None:
    origins = [
        graphopt.compile(tiny_cnn, threads=1, tuning_log=each, cache=True).report.origins()
        for each in ((), log, (), log)
    ]
    assert origins[0] == origins[2] != origins[1] == origins[3]


def test_before_and_after_are_priced_alike(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    outcome = tuned(tiny_cnn, tmp_path, 24)
    assert outcome.after <= outcome.before * 1.0001
    again = graphopt.tune(tiny_cnn, threads=1, log=tmp_path, trials=1)
    # The same kernels, but its finals have timed them once more.
    assert 0.5 < again.before / outcome.after < 2
    # What was borrowed before the run takes part in its finals.
    borrowed = graphopt.tune(tiny_cnn, threads=2, log=tmp_path, trials=24)
    assert borrowed.after <= borrowed.before * 1.0001


def test_a_further_run_explores_further(
    tiny_cnn: onnx.ModelProto, log: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    (folder / KEY).mkdir(parents=True)
    for path in (log / KEY).iterdir():
        (folder / KEY / path.name).write_bytes(path.read_bytes())
    before = {(r.workload_key, r.trace_key) for r in read(folder, KEY).records}
    outcome = graphopt.tune(tiny_cnn, threads=1, log=folder, trials=8)
    assert outcome.trials == 8
    after = {(r.workload_key, r.trace_key) for r in read(folder, KEY).records}
    assert len(after) == len(before) + 8


def test_a_latency_that_is_reached_ends_the_run(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    outcome = tuned(tiny_cnn, tmp_path, 500, target_latency=1.0)
    assert outcome.reason == "the target latency is reached"
    assert outcome.trials < 64


def test_a_time_limit_ends_the_run(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = tuned(tiny_cnn, tmp_path, 100_000, time_limit=6.0)
    assert outcome.reason in ("the time is up", "no more gain is expected")
    assert time.monotonic() - started < 40


def test_a_model_without_tunable_kernels(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[4] x) => (float[4] y) { y = Relu(x) }'
    outcome = tuned(onnx.parser.parse_model(text), tmp_path, 10)
    assert (outcome.trials, outcome.reason) == (0, "there is nothing to tune")


def test_several_shapes_are_tuned_together(dynamic_mlp, tmp_path: Path) -> None:
    shapes = [{"x": (1, 6)}, {"x": (24, 6)}]
    outcome = tuned(dynamic_mlp, tmp_path, 24, shapes=shapes)
    rows = {record.workload.op.inputs[0].shape[-2] for record in read(tmp_path, KEY).records}
    assert rows == {1, 24}
    assert outcome.ok > 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_ended_run_loses_no_more_than_its_batch(
    how: signal.Signals, tiny_cnn: onnx.ModelProto, tmp_path: Path
) -> None:
    path, folder = tmp_path / "m.onnx", tmp_path / "log"
    onnx.save(tiny_cnn, path)
    command = [sys.executable, "-m", "graphopt.cli.main", "tune", str(path), "--log", str(folder)]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--fresh", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    file = folder / KEY / "records.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if file.exists() and file.read_bytes().count(b"\n") >= 20:
            break
        time.sleep(0.05)
    os.kill(process.pid, how)
    out, err = process.communicate(timeout=60)
    contents = read(folder, KEY)
    assert len(contents.records) >= 20
    assert len(contents.skipped) <= 1
    if how == signal.SIGINT:
        assert process.returncode == 0, err
        assert json.loads(out)["reason"].startswith("interrupted")


def test_the_command_reports_and_draws(
    tiny_cnn: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plot = tmp_path / "m.onnx", tmp_path / "latency.png"
    onnx.save(tiny_cnn, path)
    words = ["tune", str(path), "--log", str(tmp_path / "log"), "--threads", "1", "--fresh"]
    assert main([*words, "--trials", "4", "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "conv2d" in out
    assert "4 trials in" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_shapes_that_are_left_open(dynamic_mlp: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(graphopt.OptionError, match="unbound dimensions"):
        graphopt.tune(dynamic_mlp, log=tmp_path, trials=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 0}, "trials must be"),
        ({"trials": 1, "time_limit": -1}, "time_limit must be"),
        ({"trials": 1, "target_latency": 0}, "target_latency must be"),
        ({"trials": 1, "target": "aarch64:cortex-a76"}, "cannot run code for"),
        ({"trials": 1, "target": "nonsense"}, "unknown target"),
    ],
)
def test_wrong_options(tiny_cnn: onnx.ModelProto, tmp_path: Path, options, words) -> None:
    with pytest.raises(graphopt.OptionError, match=words):
        graphopt.tune(tiny_cnn, log=tmp_path, **options)


def test_a_log_that_cannot_be_written(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(graphopt.OptionError, match="cannot write to"):
        graphopt.tune(tiny_cnn, log=tmp_path / "file", trials=1)


def test_a_tuning_log_that_is_not_there(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(graphopt.OptionError, match="there is no folder"):
        graphopt.compile(tiny_cnn, tuning_log=tmp_path / "none")
