"""The C compiler for an architecture, and the binary tools that belong to it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graphopt.codegen.linker import find_compiler
from graphopt.errors import CompileError


@dataclass(frozen=True)
class Toolchain:
    """A C compiler's driver; its words, without arguments."""

    command: tuple[str, ...]

    def compile(self, folder: Path, *arguments: str) -> None:
        """Call the driver in `folder`; CompileError if it fails."""
        _call(folder, (*self.command, *arguments))

    def tool(self, folder: Path, name: str, *arguments: str) -> None:
        """Call the `name` ("ar", "objcopy") that the driver would use; CompileError if it fails."""
        found = _call(folder, (*self.command, f"-print-prog-name={name}")).strip()
        _call(folder, (found or name, *arguments))


def find_toolchain(arch: str, environment: Mapping[str, str] | None = None) -> Toolchain:
    """The C compiler for `arch`: the environment's CC, else the first one on PATH.

    CC counts only for this machine's architecture; other architectures need the usual cross
    compiler, such as aarch64-linux-gnu-gcc.

    Raises:
        CompileError: there is none.
    """
    return Toolchain(find_compiler(arch, "C", environment))


def _call(folder: Path, command: tuple[str, ...]) -> str:
    program = Path(command[0]).name
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise CompileError(
            "link",
            f"cannot start {program}: {error.strerror}.",
            hint="a C library needs a C compiler and its binary tools (Debian: gcc, binutils).",
        ) from error
    if done.returncode != 0:
        said = " / ".join(done.stderr.strip().splitlines()[-3:]) or "nothing"
        raise CompileError(
            "link",
            f"{program} failed with status {done.returncode} and said: {said}.",
            hint="a C library needs a C compiler with its C library's headers and files.",
        )
    return done.stdout
