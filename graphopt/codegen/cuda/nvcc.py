"""Compiles CUDA source with nvcc, the compiler of NVIDIA's toolkit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphopt.errors import CompileError

# Division, square roots and subnormal numbers as IEEE says: that is nvcc's default, and
# --use_fast_math would change it. Warnings are about TVM's unused variables.
_FLAGS = ("-w", "-O3", "-std=c++17", "--fatbin")
_USUAL_HOME = "/usr/local/cuda"


@dataclass(frozen=True)
class Nvcc:
    """The program, and the environment that it runs in."""

    program: str
    environment: tuple[tuple[str, str], ...]

    def fat_binary(self, source: str, architectures: Sequence[str]) -> bytes:
        """As Toolchain says; `architectures` in ascending order."""
        try:
            with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
                # The same names each time, since files may carry them.
                Path(folder, "kernels.cu").write_text(source)
                command = [self.program, *_FLAGS, *_code_options(architectures)]
                done = subprocess.run(
                    [*command, "-o", "kernels.fatbin", "kernels.cu"],
                    cwd=folder,
                    env=dict(self.environment),
                    capture_output=True,
                    text=True,
                    errors="replace",
                )
                if done.returncode != 0:
                    raise _failure(self.program, done.returncode, done.stdout + done.stderr)
                return Path(folder, "kernels.fatbin").read_bytes()
        except OSError as error:
            raise CompileError(
                "codegen", f"nvcc cannot be run: {error.strerror or error} ({self.program})."
            ) from error


def find_nvcc(environment: Mapping[str, str]) -> Nvcc | None:
    """nvcc of the folder that CUDA_HOME or CUDA_PATH names, else on PATH, else where it usually is.

    Raises:
        CompileError: such a folder is named and has no nvcc.
    """
    variables = tuple(environment.items())
    for name in ("CUDA_HOME", "CUDA_PATH"):
        home = environment.get(name, "").strip()
        if home:
            program = Path(home, "bin", "nvcc")
            if not os.access(program, os.X_OK):
                raise CompileError(
                    "codegen",
                    f"{name} names '{home}', where there is no bin/nvcc.",
                    hint=f"correct the environment variable {name} or remove it.",
                )
            return Nvcc(str(program), variables)
    path = os.pathsep.join((environment.get("PATH", ""), f"{_USUAL_HOME}/bin"))
    found = shutil.which("nvcc", path=path)
    return Nvcc(found, variables) if found else None


def _code_options(architectures: Sequence[str]) -> list[str]:
    options = []
    for name in architectures:
        options += ["-gencode", f"arch={_virtual(name)},code={name}"]
    newest = _virtual(architectures[-1])
    return [*options, "-gencode", f"arch={newest},code={newest}"]


def _virtual(architecture: str) -> str:
    return architecture.replace("sm_", "compute_")


def _failure(program: str, status: int, said: str) -> CompileError:
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|fatal", line, re.IGNORECASE)] or lines
    unknown = re.search(r"unsupported gpu architecture '?compute_(\w+?)'?$", said, re.I | re.M)
    return CompileError(
        "codegen",
        f"{program} failed with status {status} and said: {' / '.join(errors[:3]) or 'nothing'}.",
        hint=f"this nvcc does not know sm_{unknown[1]}: use one that does, or leave it out."
        if unknown
        else None,
    )
