"""Picks who compiles CUDA source: nvcc where it is installed, else the NVRTC library."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from graphopt.codegen.cuda.nvcc import find_nvcc
from graphopt.codegen.cuda.nvrtc import find_nvrtc
from graphopt.errors import CompileError, OptionError

FATBIN_MAGIC = b"\x50\xed\x55\xba"
"""How a fat binary begins: machine code for several architectures, and PTX, in one file."""


class Toolchain(Protocol):
    """A compiler of CUDA source."""

    def fat_binary(self, source: str, architectures: Sequence[str]) -> bytes:
        """Machine code for each architecture ("sm_80"), and PTX of the last for later ones.

        Raises:
            CompileError: the source does not compile, or not for one of the architectures.
        """
        ...


def find_toolchain(environment: Mapping[str, str] | None = None) -> Toolchain:
    """The compiler of this machine.

    Args:
        environment: where CUDA_HOME, CUDA_PATH and PATH are looked up; the process's by default.
    Raises:
        CompileError: there is none; the hint says what to install.
    """
    env = os.environ if environment is None else environment
    found: Toolchain | None = find_nvcc(env) or find_nvrtc(env)
    if found is None:
        raise CompileError(
            "codegen",
            "compiling for CUDA needs nvcc or the NVRTC library, and neither was found.",
            hint="pip install 'graphopt[cuda]', or install NVIDIA's CUDA toolkit and name its "
            "folder in the environment variable CUDA_HOME. No GPU and no driver are needed.",
        )
    return found


def machine_code(source: str, architectures: Sequence[str], toolchain: Toolchain) -> bytes:
    """A fat binary with real machine code for each architecture.

    Args:
        architectures: such as "sm_75" and "sm_80"; their order does not matter.
    Raises:
        OptionError: one is not named like an architecture.
        CompileError: it could not be made.
    """
    wanted = sorted(set(architectures), key=_generation)
    code = toolchain.fat_binary(source, wanted)
    if not code.startswith(FATBIN_MAGIC):
        raise CompileError("codegen", f"{type(toolchain).__name__} did not give a fat binary.")
    return code


def _generation(architecture: str) -> tuple[int, str]:
    match = re.fullmatch(r"sm_(\d{2,3})([af]?)", architecture)
    if match is None:
        raise OptionError(
            "target",
            f"'{architecture}' is not a CUDA architecture.",
            hint="write sm_75, sm_80, sm_90, …: the GPU's compute capability without the point.",
        )
    return int(match[1]), match[2]
