"""Links a program's machine code into a shared library, with the C++ compiler's driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphopt.codegen.embedding import assembly
from graphopt.errors import CompileError
from graphopt.runtime.host import host_arch
from graphopt.toolchain import COMPILERS, VARIABLES
from graphopt.toolchain import find_compiler as find_native

_CROSS = {"C++": ("g++", "gcc"), "C": ("gcc",)}
"""Names of cross compilers, which have the architecture before them."""
_DEBIAN = {"aarch64": "arm64", "x86_64": "amd64"}  # the architecture in names of packages

# The program calls only libc and libm (and TVM's runtime, which the process has already opened), so
# no C++ runtime is linked. Nothing that differs between two links may enter the file: no build id,
# no symbols that carry temporary names.
_FLAGS = ("-shared", "-fPIC", "-nostdlib", "-s", "-Wl,--build-id=none", "-Wl,-z,noexecstack")
_LIBRARIES = ("-lm", "-lc")

# Kernels call one another by name, which no other library in the process may take for its own.
_VISIBLE = "{ global: __tvm_ffi_*; __TVM*; local: *; };\n"


@dataclass(frozen=True)
class Linker:
    """A command that links shared libraries for `arch`; its words, without arguments."""

    arch: str
    command: tuple[str, ...]

    def link(self, objects: tuple[Path, ...], visible: Path, output: Path) -> None:
        """Link object files into the shared library `output`; equal objects give equal bytes.

        Args:
            visible: a version script that names the symbols to export.
        Raises:
            CompileError: the linker failed; its last words are in the reason.
        """
        script = f"-Wl,--version-script={visible}"
        files = (*map(str, objects), "-o", str(output))
        command = [*self.command, *_FLAGS, script, *files, *_LIBRARIES]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise CompileError(
                "link", f"cannot start {self.command[0]}: {error.strerror}."
            ) from error
        if done.returncode != 0:
            said = " / ".join(done.stderr.strip().splitlines()[-3:]) or "nothing"
            raise CompileError(
                "link",
                f"{self.command[0]} failed with status {done.returncode} and said: {said}.",
                hint="saving needs a working C++ compiler with its C library's headers and files.",
            )


def find_linker(arch: str, environment: Mapping[str, str] | None = None) -> Linker:
    """The linker for programs of `arch`: the environment's CXX, else the first one on PATH.

    CXX counts only for this machine's architecture; other architectures need the usual cross
    compiler, such as aarch64-linux-gnu-g++.

    Args:
        environment: where CXX and PATH are looked up; the process's by default.
    Raises:
        CompileError: there is none; called before any work that would be lost.
    """
    return Linker(arch, find_compiler(arch, "C++", environment))


def find_compiler(
    arch: str, language: str, environment: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The words of the command that compiles and links "C" or "C++" for `arch`.

    Raises:
        CompileError: there is none.
    """
    env = os.environ if environment is None else environment
    variable, native, triple = VARIABLES[language], arch == host_arch(), f"{arch}-linux-gnu"
    names: tuple[str, ...] = COMPILERS[language]
    if native:
        command = find_native(env, language)
        if command is not None:
            return command
    else:
        names = tuple(f"{triple}-{name}" for name in _CROSS[language])
        for name in names:
            program = shutil.which(name, path=env.get("PATH", ""))
            if program is not None:
                return (program,)
    purpose = "a linker" if language == "C++" else "a C compiler"
    package = f"{_CROSS[language][0]}-{triple.replace('_', '-')}"
    headers = f"libc6-dev-{_DEBIAN.get(arch, arch)}-cross"
    raise CompileError(
        "link",
        f"saving a program for {arch} needs {purpose}, and none of {', '.join(names)} is on PATH.",
        hint=(
            f"install {' or '.join(names[1:])}, or name one in the environment variable "
            f"{variable}; compiling and running in memory need none."
            if native
            else f"install the cross compiler (Debian: apt-get install {package} {headers})."
        ),
    )


def shared_library(objects: Sequence[bytes], linker: Linker, section: bytes = b"") -> bytes:
    """The shared library of a program's object files, as bytes.

    Args:
        section: a device's code as embedding.library_section() gives it; empty for none.
    Raises:
        CompileError: the linker failed, or there is no room for temporary files.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            # The same names each time: a linker may write them into the file.
            paths = tuple(Path(folder, f"program{index}.o") for index in range(len(objects)))
            for path, code in zip(paths, objects, strict=True):
                path.write_bytes(code)
            if section:
                data, source = Path(folder, "device.bin"), Path(folder, "device.s")
                data.write_bytes(section)
                source.write_text(assembly(str(data)))
                paths = (*paths, source)
            visible = Path(folder, "program.map")
            visible.write_text(_VISIBLE)
            library = Path(folder, "program.so")
            linker.link(paths, visible, library)
            return library.read_bytes()
    except OSError as error:
        raise CompileError(
            "link",
            f"cannot write temporary files: {error.strerror or error}.",
            hint="name a folder with room in the environment variable TMPDIR.",
        ) from error
