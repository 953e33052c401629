"""graphopt.hpp with the README's program, here and under emulation; files that it must refuse."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.artifact.digest import LEAF_BYTES
from graphopt.cli.main import main

README = Path(__file__).parents[2] / "README.md"
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
LINK = ["-rdynamic", "-pthread", "-ldl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Has example.cc from the README, graphopt.hpp and the built program with sanitizers."""
    place = tmp_path_factory.mktemp("cxx")
    code = re.search(r"<!-- example.cc -->\n```cpp\n(.*?)```", README.read_text(), re.DOTALL)[1]
    assert 30 <= len(code.splitlines()) <= 45
    (place / "example.cc").write_text(code)
    assert main(["cxx-header", "-o", str(place / "graphopt.hpp")]) == 0
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    command = ["g++", *FLAGS, *sanitizers, "example.cc", "-o", "example", *LINK]
    subprocess.run(command, cwd=place, check=True)
    return place


def image(folder):
    x = np.random.default_rng(1).standard_normal((1, 3, 12, 12)).astype(np.float32)
    (folder / "x.bin").write_bytes(x.tobytes())
    return x


def run(folder, *words):
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)


def answer(y):
    return f"y[{y.argmax()}] = {y.max():.9g}\n"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_readmes_program_gives_what_python_gives(threads, folder, tiny_cnn):
    program = graphopt.compile(tiny_cnn, threads=threads)
    program.save(folder / "cnn.gopt")
    expected = program.run({"x": image(folder)})["y"]
    done = run(folder, "./example", "cnn.gopt", "x.bin")
    assert done.stderr == ""
    assert done.stdout == answer(expected)


@pytest.mark.parametrize(
    ("target", "arch"), [("aarch64:cortex-a76", "aarch64"), ("riscv64", "riscv64")]
)
def test_a_file_for_another_processor_runs_under_emulation(target, arch, folder, tiny_cnn):
    tools = (f"{arch}-linux-gnu-g++", f"qemu-{arch}")
    if any(shutil.which(tool) is None for tool in tools):
        pytest.skip(f"needs {tools}")
    graphopt.compile(tiny_cnn, target, threads=2).save(folder / "there.gopt")
    expected = graphopt.compile(tiny_cnn).run({"x": image(folder)})["y"]
    subprocess.run([tools[0], *FLAGS, "example.cc", "-o", arch, *LINK], cwd=folder, check=True)
    command = [tools[1], "-L", f"/usr/{arch}-linux-gnu", f"./{arch}", "there.gopt", "x.bin"]
    done = run(folder, *command)
    assert done.stderr == ""
    index, value = re.fullmatch(r"y\[(\d+)\] = (\S+)\n", done.stdout).groups()
    assert int(index) == expected.argmax()
    assert float(value) == pytest.approx(expected.max(), rel=1e-5)
    refused = run(folder, "./example", "there.gopt", "x.bin")
    assert refused.returncode == 1
    assert f"the program is for {arch}" in refused.stderr


def large_product():
    """More weights than one leaf of the digest's tree holds."""
    info = helper.make_tensor_value_info
    weights = np.random.default_rng(2).standard_normal((1100, 1100)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [info("x", TensorProto.FLOAT, [1, 1100])],
        [info("y", TensorProto.FLOAT, [1, 1100])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_altered_truncated_and_foreign_files_are_refused_with_a_reason(folder):
    program = graphopt.compile(large_product(), threads=1)
    program.save(folder / "good.gopt")
    good = (folder / "good.gopt").read_bytes()
    assert len(good) > LEAF_BYTES
    x = np.linspace(-1, 1, 1100, dtype=np.float32)[None]
    (folder / "x.bin").write_bytes(x.tobytes())
    found = run(folder, "./example", "good.gopt", "x.bin").stdout
    assert found == answer(program.run({"x": x})["y"])

    def said(content: bytes) -> str:
        (folder / "bad.gopt").write_bytes(content)
        done = run(folder, "./example", "bad.gopt", "x.bin")
        assert done.returncode == 1
        assert done.stdout == ""
        return done.stderr

    for at in np.linspace(0, len(good) - 1, 12).astype(int):
        altered = bytearray(good)
        altered[at] ^= 0x10
        assert "the file is refused: " in said(bytes(altered)), at
    for content in (good[:-1], good[: len(good) // 2], good + b"\0", b"PK" * 200, good[:100]):
        assert "truncated, altered or not a .gopt" in said(content)
    assert "is empty" in said(b"")
    done = run(folder, "./example", "gone.gopt", "x.bin")
    assert "No such file" in done.stderr
    done = run(folder, "./example", ".", "x.bin")
    assert "no regular file" in done.stderr


def test_steps_and_a_lesser_processor_are_refused(folder, tiny_cnn):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"], "where")],
        "steps",
        [info("x", TensorProto.FLOAT, [4])],
        [info("y", TensorProto.INT64, [1, None])],
    )
    opset = [helper.make_opsetid("", 17)]
    program = graphopt.compile(helper.make_model(graph, opset_imports=opset, ir_version=9))
    program.run({"x": np.ones(4, np.float32)})
    program.save(folder / "steps.gopt")
    assert "need Python" in run(folder, "./example", "steps.gopt", "x.bin").stderr
    if graphopt.TargetSpec.parse("cpu").arch == "x86_64":
        graphopt.compile(tiny_cnn, "cpu:bdver4", threads=1).save(folder / "old.gopt")
        assert "this processor lacks" in run(folder, "./example", "old.gopt", "x.bin").stderr
