"""graphopt quantize and compile --quantize from a shell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import graphopt
from graphopt.cli.main import main

OK, WRONG = 0, 2

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


@pytest.fixture
def model(tmp_path: Path, tiny_cnn: onnx.ModelProto) -> Path:
    """cnn.onnx beside data.npz."""
    onnx.save(tiny_cnn, tmp_path / "cnn.onnx")
    x = np.random.default_rng(0).standard_normal((6, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    return tmp_path / "cnn.onnx"


def test_quantize_writes_the_model_and_the_report(cli: Run, model: Path) -> None:
    out, data = model.with_name("q.onnx"), model.with_name("data.npz")
    page = model.with_name("r.html")
    code, shown, _ = cli(
        "quantize", model, "-o", out, "--calibration", data, "--report", page, "--threads", 1,
        "--method", "entropy", "--exclude", "stem", "--weight-bits", "7",
    )  # fmt: skip
    assert code == OK
    assert "Most accuracy is lost in" in shown.splitlines()[0]
    assert "method=entropy" in shown
    assert "left in float by option exclude" in shown
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert {node.op_type for node in onnx.load(out).graph.node} >= {"QuantizeLinear"}


def test_json_is_the_report(cli: Run, model: Path) -> None:
    out = model.with_name("q.onnx")
    code, shown, _ = cli("quantize", model, "-o", out, "--calibration", "random", "--json")
    assert code == OK
    found = json.loads(shown)
    assert found["output"] == str(out)
    assert found["headline"]
    assert {row["node"] for row in found["layers"]} >= {"stem", "mix", "head"}
    assert any("random" in warning for warning in found["warnings"])


def test_presets_and_images(cli: Run, model: Path) -> None:
    out = model.with_name("q.onnx")
    assert cli("quantize", model, "-o", out, "--preset", "int4-weights")[0] == OK
    types = {tensor.data_type for tensor in onnx.load(out).graph.initializer}
    assert onnx.TensorProto.INT4 in types
    folder = model.with_name("photos")
    folder.mkdir()
    Image.new("RGB", (20, 20), (90, 10, 200)).save(folder / "a.png")
    code, _, err = cli("quantize", model, "-o", out, "--calibration", folder)
    assert code == WRONG
    assert "--image-mean" in err
    code, _, _ = cli(
        "quantize", model, "-o", out, "--calibration", folder, "--image-mean", "0.5,0.4,0.3",
        "--image-std", "0.2", "--image-color", "bgr", "--image-crop",
    )  # fmt: skip
    assert code == OK


def test_compile_quantizes(cli: Run, model: Path) -> None:
    out, data = model.with_name("q.gopt"), model.with_name("data.npz")
    code, shown, _ = cli(
        "compile", model, "-o", out, "--quantize", "int8", "--calibration", data, "--threads", 1
    )
    assert code == OK
    assert "Most accuracy is lost in" in shown
    x = np.load(data)["x"][:1]
    assert graphopt.load(out).run({"x": x})["y"].shape == (1, 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--calibration", "none.npz"], "there is no calibration data at 'none.npz'"),
        ([], "there is no calibration data"),
        (["--calibration", "random", "--method", "magic"], "invalid choice: 'magic'"),
        (["--calibration", "random", "--weight-bits", "11"], "from 2 to 8"),
        (["--calibration", "random", "--exclude", "stm"], "no node or operator"),
        (["--calibration", "random", "--report", "r.pdf"], "neither .html nor .json"),
        (["--calibration", "random", "--image-mean", "a"], "is not like 0.5"),
    ],
)
def test_mistakes_exit_with_2_and_write_nothing(
    cli: Run, model: Path, words: list[str], message: str
) -> None:
    out = model.with_name("q.onnx")
    code, _, err = cli("quantize", model, "-o", out, *words)
    assert code == WRONG
    assert message in err
    assert not out.exists()


def test_the_model_itself_is_not_overwritten(cli: Run, model: Path) -> None:
    code, _, err = cli("quantize", model, "-o", model, "--calibration", "random")
    assert code == WRONG
    assert "is the model itself" in err


def test_interrupting_leaves_no_files(model: Path) -> None:
    # So many samples that the signal comes in the middle of calibrating; the file has holes.
    shape = (1 << 19, 3, 12, 12)
    np.lib.format.open_memmap(model.with_name("long.npy"), "w+", np.float32, shape)
    before = {path.name for path in model.parent.iterdir()}
    words = ["quantize", "--verbose", str(model), "--calibration", str(model.with_name("long.npy"))]
    process = subprocess.Popen(
        [sys.executable, "-m", "graphopt.cli.main", *words, "-o", str(model.with_name("q.onnx")),
         "--report", str(model.with_name("q.html"))],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if re.search(r"calibrating: \d+ batches", line):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 130, said + rest
    assert rest.strip().splitlines()[-1] == "interrupted"
    assert {path.name for path in model.parent.iterdir()} == before
