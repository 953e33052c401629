"""The command line: verbs, JSON, exit codes, and what a user's mistakes look like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt.cli.main import main

OK, FAILED, WRONG = 0, 1, 2

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stopped:  # argparse
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_cnn: onnx.ModelProto,
    dynamic_mlp: onnx.ModelProto,
) -> Path:
    """A folder with cnn.onnx, mlp.onnx, cnn.gopt, in.npz; other.onnx is cnn with other weights."""
    folder = tmp_path_factory.mktemp("files")
    onnx.save(tiny_cnn, folder / "cnn.onnx")
    onnx.save(dynamic_mlp, folder / "mlp.onnx")
    other = onnx.ModelProto()
    other.CopyFrom(tiny_cnn)
    tensor = other.graph.initializer[0]
    tensor.raw_data = bytes(len(tensor.raw_data))
    onnx.save(other, folder / "other.onnx")
    graphopt.compile(tiny_cnn, threads=2).save(folder / "cnn.gopt")
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12), np.float32)
    np.savez(folder / "in.npz", x=x)
    return folder


VERBS = (
    *("inspect", "compile", "run", "verify", "profile", "bench", "cache", "tune", "logs"),
    *("rpc-server", "devices"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(cli: Run, verb: str) -> None:
    code, out, _ = cli(verb, "--help")
    assert code == OK
    assert f"graphopt {verb} " in out.split("examples:")[1] + " "
    assert "--json" in out


def test_help_and_version(cli: Run) -> None:
    code, out, _ = cli("--help")
    assert code == OK
    assert all(verb in out for verb in VERBS)
    assert "exit codes" in out
    assert cli("--version")[1] == f"graphopt {graphopt.__version__}\n"


def test_help_needs_no_compiler() -> None:
    script = (
        "import sys\nfrom graphopt.cli.main import main\n"
        "try:\n    main(['compile', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(sys.modules.keys() & {'tvm', 'onnx', 'tvm_ffi'}), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


def test_compile_run_verify_profile(cli: Run, files: Path, tmp_path: Path) -> None:
    program, outputs = tmp_path / "m.gopt", tmp_path / "out.npz"
    code, out, _ = cli("compile", files / "cnn.onnx", "-o", program, "--threads", 2)
    assert code == OK
    assert "kernels" in out
    assert program.is_file()
    # Through the cache or not, the file is the one that the API saves.
    assert program.read_bytes() == (files / "cnn.gopt").read_bytes()

    code, out, _ = cli("run", program, "--input", files / "in.npz", "--output", outputs)
    assert code == OK
    with np.load(files / "in.npz") as inputs, np.load(outputs) as stored:
        expected = graphopt.load(program).run(dict(inputs))["y"]
        np.testing.assert_array_equal(stored["y"], expected)

    code, out, _ = cli("verify", program, "--against", files / "cnn.onnx")
    assert (code, "all outputs agree" in out) == (OK, True)
    code, out, _ = cli("profile", program, "--repeats", 3)
    assert (code, "outside kernels" in out) == (OK, True)


def test_json_forms(cli: Run, files: Path, tmp_path: Path) -> None:
    def result(*words: object) -> Any:
        code, out, _ = cli(*words, "--json")
        assert code == OK
        assert out.count("\n") == 1
        return json.loads(out)

    found = result("inspect", files / "mlp.onnx")
    assert (found["compiles"], found["unbound"]) == (True, ["x", "gain"])
    found = result("compile", files / "cnn.onnx", "-o", tmp_path / "m.gopt", "--no-cache")
    assert found["bytes"] == (tmp_path / "m.gopt").stat().st_size
    assert found["programs"][0]["shapes"] == {"x": [1, 3, 12, 12]}
    found = result("run", files / "cnn.gopt", "--input", files / "in.npz")
    assert found["outputs"] == [{"name": "y", "dtype": "float32", "shape": [1, 5]}]
    found = result("verify", files / "cnn.onnx", "--input", files / "in.npz")
    assert found["ok"] is True
    assert found["outputs"][0]["name"] == "y"
    assert found["inputs"] == "the given values"
    found = result("profile", files / "cnn.gopt", "--input", files / "in.npz", "--repeats", 2)
    assert found["rows"][0]["nodes"]
    assert found["total_seconds"] > 0
    assert {"folder", "limit", "entries"} <= result("cache").keys()


def test_several_specialisations(cli: Run, files: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gopt"
    flags = ("--shape", "x=1,6", "--shape", "x=4,6")
    assert cli("compile", files / "mlp.onnx", "-o", path, *flags)[0] == OK
    assert [shapes["x"] for shapes in graphopt.load(path).shapes] == [(1, 6), (4, 6)]
    assert cli("profile", path, "--shape", "x=4,6", "--repeats", 2)[0] == OK
    code, _, err = cli("profile", path, "--shape", "x=3,6")
    assert (code, "no specialisation" in err) == (WRONG, True)


def test_mismatches_and_unsupported_nodes_exit_with_1(
    cli: Run, files: Path, tmp_path: Path
) -> None:
    code, out, _ = cli("verify", files / "cnn.gopt", "--against", files / "other.onnx")
    assert code == FAILED
    assert "WRONG" in out
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], "odd", domain="com.example")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), tmp_path / "odd.onnx")
    code, out, _ = cli("inspect", tmp_path / "odd.onnx")
    assert code == FAILED
    assert "odd" in out
    assert "NoSuchOperator" in out
    code, _, err = cli("compile", tmp_path / "odd.onnx", "-o", tmp_path / "odd.gopt")
    assert (code, "odd" in err) == (WRONG, True)
    assert not (tmp_path / "odd.gopt").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "VERB"),
        ("frobnicate", "invalid choice"),
        ("compile {f}/cnn.onnx", "-o"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --thread 2", "unrecognized"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --threads 0", "whole number above 0"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --threads 5000", "from 1 to 1024"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --shape x:1,2", "NAME=1,3"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --shape x=1,-3", "NAME=1,3"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --shape z=1,3", "no input of the model"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --shape x=1,3,8,8", "dimension 2 is 12"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --target cpu:cascadlake", "'cascadelake'"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --target cuda:volta", "no architecture"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --target toaster", "unknown target"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --tuning-log {t}/none", "there is no folder"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --numerics exact", "invalid choice"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --max-weight-growth 0.1", "at least 1"),
        ("compile {f}/mlp.onnx -o {t}/a.gopt", "--shape"),
        ("compile {f}/gone.onnx -o {t}/a.gopt", "no file"),
        ("compile {f}/in.npz -o {t}/a.gopt", "not an ONNX"),
        ("compile {f} -o {t}/a.gopt", "directory"),
        ("compile {f}/cnn.onnx -o {t}", "is a directory"),
        ("compile {f}/cnn.onnx -o {f}/cnn.onnx", "is the model itself"),
        ("compile {f}/cnn.onnx -o {t}/none/a.gopt", "no directory"),
        ("compile {f}/cnn.onnx -o {t}/pipe", "no regular file"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --dump-ir {t}/garbage", "cannot create"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --constant x", "NAME=VALUE"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --constant x=1,y", "NAME=VALUE"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --constant x=1", "has 4 dimensions, its value has 0"),
        ("compile {f}/cnn.onnx -o {t}/a.gopt --constant z=1", "no input of the model"),
        ("compile {t}/garbage -o {t}/a.gopt", "not an ONNX model"),
        ("run {t}/garbage --input {f}/in.npz", "not a .gopt"),
        ("run {t} --input {f}/in.npz", "not a regular file"),
        ("run {f}/cnn.gopt --input {t}/type.npz", "use array.astype('float32')"),
        ("run {f}/cnn.gopt --input {t}/shape.npz", "wrong shape"),
        ("run {f}/gone.gopt --input {f}/in.npz", "gone.gopt"),
        ("run {f}/cnn.onnx --input {f}/in.npz", "compile it first"),
        ("run {f}/cnn.gopt", "--input"),
        ("run {f}/cnn.gopt --input {f}/gone.npz", "cannot read"),
        ("run {f}/cnn.gopt --input {f}/cnn.onnx", "npz"),
        ("run {f}/cnn.gopt --input {t}/one.npy", "single array"),
        ("run {f}/cnn.gopt --input {t}/wrong.npz", "x"),
        ("run {f}/cnn.gopt --input {t}/pickle.npz", "npz"),
        ("run {f}/cnn.gopt --input {f}/in.npz --output {t}/none/o.npz", "no directory"),
        ("verify {f}/cnn.gopt", "--against"),
        ("verify {f}/cnn.onnx --tolerance 2", "tolerance"),
        ("verify {f}/mlp.onnx", "--shape"),
        ("verify {f}/cnn.onnx --input {t}/wrong.npz", "no input"),
        ("profile {f}/cnn.gopt --repeats 0", "whole number above 0"),
        ("bench {f}/cnn.gopt", "--against"),
        ("bench {f}/cnn.onnx --vs tvm7", "tvm7"),
        ("cache drop", "invalid choice"),
        ("inspect {f}/gone.onnx", "no file"),
        ("inspect {f}/cnn.onnx --target cpu:none", "LLVM knows no"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_do(
    cli: Run, files: Path, tmp_path: Path, words: str, says: str
) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "garbage").write_bytes(b"garbage" * 100)
    x = np.zeros((1, 3, 12, 12), np.float32)
    np.savez(tmp_path / "type.npz", x=x.astype(np.float64))
    np.savez(tmp_path / "shape.npz", x=x[:, :, 1:])
    np.savez(tmp_path / "wrong.npz", z=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", x=np.array([object()], dtype=object))
    before = sorted(tmp_path.iterdir())
    code, _, err = cli(*words.format(f=files, t=tmp_path).split())
    assert code == WRONG
    assert says in err
    assert sorted(tmp_path.iterdir()) == before


def test_errors_are_json_too(cli: Run, tmp_path: Path) -> None:
    code, out, _ = cli("inspect", tmp_path / "gone.onnx", "--json")
    assert code == WRONG
    error = json.loads(out)["error"]
    assert error["stage"] == "load"
    assert "gone.onnx" in error["reason"]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "graphopt.cli.main", "inspect", str(tmp_path / "x"), "--debug"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == WRONG
    assert "Traceback" in done.stderr


def test_without_a_linker_compile_fails_before_any_work(
    cli: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    code, _, err = cli("compile", files / "gone.onnx", "-o", tmp_path / "a.gopt")
    assert (code, "needs a linker" in err) == (WRONG, True)


def test_altered_programs_are_refused(cli: Run, files: Path, tmp_path: Path) -> None:
    data = bytearray((files / "cnn.gopt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.gopt").write_bytes(data)
    code, _, err = cli("run", tmp_path / "bad.gopt", "--input", files / "in.npz")
    assert (code, "refused" in err) == (WRONG, True)


def test_cache_is_used_shown_and_cleared(
    cli: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        code, _, err = cli("compile", files / "cnn.onnx", "-o", tmp_path / name, "--verbose")
        assert code == OK
        assert ("found in the compile cache" in err) == (name == "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(json.loads(cli("cache", "--json")[1])["entries"]) == 1
    code, out, _ = cli("cache", "clear")
    assert (code, "removed 1 entries" in out) == (OK, True)
    assert json.loads(cli("cache", "--json")[1])["entries"] == []
    cli("compile", files / "cnn.onnx", "-o", tmp_path / "c", "--no-cache")
    assert json.loads(cli("cache", "--json")[1])["entries"] == []


def test_an_old_file_survives_a_failing_compile(cli: Run, files: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gopt").write_bytes(b"old")
    assert cli("compile", files / "mlp.onnx", "-o", tmp_path / "m.gopt")[0] == WRONG
    assert (tmp_path / "m.gopt").read_bytes() == b"old"


def test_interrupting_leaves_no_files(files: Path, tmp_path: Path) -> None:
    # The linker is what takes time: a script that waits, so the signal comes in the middle.
    started = tmp_path / "started"
    linker = tmp_path / "slow-c++"
    linker.write_text(f"#!/bin/sh\ntouch {started}\nexec sleep 60\n")
    linker.chmod(0o755)
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "graphopt.cli.main", "compile", str(files / "cnn.onnx")]
    process = subprocess.Popen(
        [*command, "-o", str(folder / "m.gopt"), "--no-cache"],
        env={**os.environ, "CXX": str(linker), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started.exists(), process.communicate(timeout=30)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "interrupted"
    assert list(folder.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"out", "slow-c++", "started"}


def test_bench_compares_with_a_peer(cli: Run, files: Path) -> None:
    words = ("bench", files / "cnn.gopt", "--against", files / "cnn.onnx", "--rounds", 1)
    code, out, _ = cli(*words, "--threads", 1, "--json")
    row = json.loads(out)["rows"][0]
    assert row["peers"][0]["name"] == "onnxruntime"
    assert (code == OK) == row["ok"]
    assert row["subject"]["errors"]["y"] <= 1e-4


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("where", ["output", "temporary"])
def test_a_full_disk_keeps_the_old_file(files: Path, tmp_path: Path, where: str) -> None:
    small, folder = tmp_path / "small", tmp_path / "folder"
    small.mkdir()
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        output = (small if where == "output" else folder) / "m.gopt"
        output.write_bytes(b"old")
        command = [sys.executable, "-m", "graphopt.cli.main", "compile", str(files / "cnn.onnx")]
        done = subprocess.run(
            [*command, "-o", str(output), "--no-cache", "--json"],
            env={**os.environ, "TMPDIR": str(small if where == "temporary" else folder)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == WRONG, done.stderr
        assert "No space left" in json.loads(done.stdout)["error"]["message"]
        assert output.read_bytes() == b"old"
        assert {path.name for path in (*small.iterdir(), *folder.iterdir())} == {"m.gopt"}
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_dump_ir_writes_the_ir_and_json_stays_alone(files: Path, tmp_path: Path) -> None:
    """In a process of its own: what native code prints counts too."""
    command = [sys.executable, "-m", "graphopt.cli.main", "compile", str(files / "cnn.onnx")]
    flags = ["-o", str(tmp_path / "m.gopt"), "--dump-ir", str(tmp_path / "ir"), "--verbose"]
    done = subprocess.run([*command, *flags, "--json"], capture_output=True, text=True)
    assert done.returncode == OK, done.stderr
    assert json.loads(done.stdout)["output"] == str(tmp_path / "m.gopt")
    assert "info: compiling: lowering" in done.stderr
    assert "00_input.py" in {path.name for path in (tmp_path / "ir").iterdir()}
