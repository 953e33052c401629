"""Compiles driver.c with a C library and runs it, here or under emulation."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

from graphopt.runtime.host import host_arch
from graphopt.runtime.memory import numpy_dtype

DRIVER = Path(__file__).with_name("driver.c")
STRICT = ("-std=c99", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")

EMULATOR = {"aarch64": ("qemu-aarch64",), "riscv64": ("qemu-riscv64", "-cpu", "rv64,v=true")}


def build(folder: Path, name: str, arch: str | None = None, sanitize: bool = True) -> list[str]:
    """The command that runs the driver: linked statically for another architecture.

    With `sanitize` the library's own source is compiled with the sanitizers, too.
    """
    native = arch in (None, host_arch())
    sources = [str(DRIVER)]
    flags = list(STRICT)
    if sanitize and native:
        sources.append(f"{name}.c")
        flags += SANITIZE
    if not native:
        flags.append("-static")
    if (folder / f"{name}.weights").exists():
        flags.append("-DWEIGHTS_IN_FILE")
    macros = [f"-DLOWER_NAME={name}", f"-DUPPER_NAME={name.upper()}", f'-DHEADER="{name}.h"']
    compiler = "gcc" if native else f"{arch}-linux-gnu-gcc"
    command = [compiler, *flags, *macros, "-I.", *sources, f"lib{name}.a", "-lm", "-lpthread"]
    subprocess.run([*command, "-o", "driver"], cwd=folder, check=True)
    return ["./driver"] if native else [*EMULATOR[arch], "./driver"]


def drive(command, folder: Path, program, inputs, threads, how="run", weights=()):
    """The outputs of the driver by name; AssertionError with what it said if it found a fault."""
    for index, spec in enumerate(program.inputs):
        array = np.ascontiguousarray(inputs[spec.name], numpy_dtype(spec.dtype))
        (folder / f"in{index}").write_bytes(array.tobytes())
    done = subprocess.run(
        [*command, how, ".", str(threads), *weights],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    outputs = {}
    for index, spec in enumerate(program.outputs):
        flat = np.frombuffer((folder / f"out{index}").read_bytes(), numpy_dtype(spec.dtype))
        outputs[spec.name] = flat.reshape([-1 if dim is None else dim for dim in spec.shape])
    return outputs


def init_error(command, folder: Path, *weights: str) -> int:
    """The number of the error that init gives."""
    done = subprocess.run(
        [*command, "init", *weights], cwd=folder, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def feeds(program, seed=3):
    """Random inputs of a program."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: np.asarray(3 * rng.standard_normal(spec.shape)).astype(spec.dtype)
        for spec in program.inputs
    }


def numbers(header: Path) -> list[str]:
    """Names of the errors in the order of their numbers."""
    return ["OK", *re.findall(r"ERROR_(\w+)", header.read_text())]
