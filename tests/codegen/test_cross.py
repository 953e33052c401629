"""Programs for other processors as C libraries: built here, run under emulation, disassembled."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from c_driver import build, drive, feeds, init_error, numbers
from networks import attention_block, quantized_network, small_network

import graphopt
from graphopt.runtime.host import host_arch

TOOLS = {
    "aarch64": "g++-aarch64-linux-gnu qemu-user",
    "riscv64": "g++-riscv64-linux-gnu libc6-dev-riscv64-cross qemu-user",
}


def need_tools(arch):
    tools = (f"{arch}-linux-gnu-gcc", f"qemu-{arch}")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {missing}: apt-get install {TOOLS[arch]}")


def disassembly(folder, arch):
    tool = "objdump" if arch == host_arch() else f"{arch}-linux-gnu-objdump"
    command = [tool, "-d", "--no-show-raw-insn", "libmodel.a"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def check(make, target, threads, how, instruction, folder):
    """The command that runs the library for `target`, whose results are right."""
    model = make()
    program = graphopt.compile(model, target, threads=threads)
    program.save_c_library(folder)
    arch = program.config.target.arch
    text = disassembly(folder, arch)
    assert re.search(instruction, text), f"no {instruction}"
    inputs = feeds(program)
    command = build(folder, "model", arch, sanitize=False)
    found = drive(command, folder, program, inputs, threads, how)["y"]
    expected = graphopt.compile(model, threads=1).run(inputs)["y"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    return command, text


@pytest.mark.parametrize(
    ("make", "target", "how", "instruction"),
    [
        (small_network, "aarch64:cortex-a76", "run", r"\tfmla\s+v\d+\.4s"),
        (quantized_network, "aarch64:cortex-a76", "once", r"\tsdot\s+v\d+\.4s"),
        (quantized_network, "aarch64:neoverse-v2", "once", r"\tusdot\s+v\d+\.4s"),
        (attention_block, "aarch64:neoverse-v2", "once", r"\tfmla\s+v\d+\.4s"),
    ],
)
def test_aarch64(make, target, how, instruction, tmp_path):
    need_tools("aarch64")
    command, _ = check(make, target, 2, how, instruction, tmp_path)
    # It has neither dot products nor what is later; nothing of them is executed.
    lesser = [command[0], "-cpu", "cortex-a57", *command[1:]]
    assert init_error(lesser, tmp_path) == numbers(tmp_path / "model.h").index("PROCESSOR")


@pytest.mark.parametrize(
    ("make", "target", "how", "instruction"),
    [
        (small_network, "riscv64", "run", r"\tfmadd\.s\s"),
        (quantized_network, "riscv64", "once", r"\tmulw?\s"),
        (attention_block, "riscv64:rv64gcv", "once", r"\tvfm(acc|add)\.v"),
        (quantized_network, "riscv64:rv64gcv", "once", r"\tvw?m(ul|acc|add)\w*\.v"),
    ],
)
def test_riscv64(make, target, how, instruction, tmp_path):
    need_tools("riscv64")
    _, text = check(make, target, 2, how, instruction, tmp_path)
    if target == "riscv64":
        assert not re.search(r"\tvsetvli|\tvsetivli", text)


@pytest.mark.skipif(host_arch() != "x86_64", reason="runs them here")
@pytest.mark.parametrize(
    ("target", "used", "unused"),
    [
        ("x86-64", r"%xmm", r"%ymm|%zmm|\tpshufb"),
        ("x86-64-v2", r"%xmm", r"%ymm|%zmm"),
        ("x86-64-v3", r"\tvfmadd\w+ps .*%ymm", r"%zmm"),
        ("x86-64-v4", r"\tvfmadd\w+ps .*%zmm", r"\tvpdpbusd"),
    ],
)
@pytest.mark.parametrize("make", [small_network, quantized_network])
def test_levels_of_x86_64(make, target, used, unused, tmp_path):
    if not graphopt.TargetSpec.parse(target).is_host_compatible():
        pytest.skip("this processor has less")
    if make is quantized_network:
        used = r"\tv?pmadd"
    _, text = check(make, target, 2, "once", used, tmp_path)
    assert not re.search(unused, text)
