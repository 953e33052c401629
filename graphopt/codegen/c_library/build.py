"""Makes the files of a C library out of a plan and the object files of its kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from graphopt.codegen.c_library.cmake import config
from graphopt.codegen.c_library.header import header
from graphopt.codegen.c_library.interface import Interface
from graphopt.codegen.c_library.source import source
from graphopt.codegen.c_library.toolchain import Toolchain
from graphopt.errors import CompileError

FUNCTIONS = ("init", "run", "free", "strerror", "input", "output")
"""What the library offers; each has the library's name before it."""

_FLAGS = ("-std=c99", "-O2", "-fPIC", "-Wall", "-Wextra", "-c")
_WEIGHTS = """\
.section .rodata.weights, "a", %progbits
.balign 64
.globl {symbol}
{symbol}:
.incbin "weights.bin"
.section .note.GNU-stack, "", %progbits
"""


@dataclass(frozen=True)
class Machine:
    """What the machine code is for: the target's name, LLVM's name of the architecture, and those
    of the instruction sets that it may use."""

    target: str
    arch: str
    features: tuple[str, ...]


def symbols(name: str, threads: int) -> dict[str, str]:
    """Control function → its symbol, as library.c calls it."""
    needed = ("run", "serve") if threads > 1 else ("run",)
    return {function: f"{name}_program_{function}" for function in needed}


def library_files(
    interface: Interface,
    machine: Machine,
    objects: Sequence[bytes],
    weights: memoryview,
    weights_in_file: bool,
    title: str,
    version: str,
    toolchain: Toolchain,
) -> dict[str, bytes]:
    """File name → contents.

    Args:
        objects: the control flow with the symbols of symbols(), and the kernels.
        weights: uint8 [interface.weight_bytes].
        weights_in_file: put them into a file of their own, not into the library.
        title, version: see header().

    Raises:
        CompileError: a tool failed, or there is no room for temporary files.
    """
    name = interface.name
    in_file = weights_in_file and interface.weight_bytes > 0
    digest = blake2b(weights, digest_size=32).digest() if in_file else None
    texts = {
        f"{name}.h": header(interface, title, machine.target, version, in_file),
        f"{name}.c": source(interface, machine.arch, machine.features, digest),
        f"{name}Config.cmake": config(name, interface.threads),
    }
    try:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as place:
            folder = Path(place)
            for file, text in texts.items():
                (folder / file).write_text(text, "utf-8")
            embedded = weights if not in_file and weights.nbytes else None
            _program(folder, interface, objects, embedded, toolchain)
            toolchain.compile(folder, *_FLAGS, f"{name}.c", "-o", f"{name}.o")
            _libraries(folder, interface, toolchain)
            made = [*texts, f"lib{name}.a", f"lib{name}.so"]
            found = {file: (folder / file).read_bytes() for file in made}
    except OSError as error:
        raise CompileError(
            "link",
            f"cannot write temporary files: {error.strerror or error}.",
            hint="name a folder with room in the environment variable TMPDIR.",
        ) from error
    if in_file:
        found[f"{name}.weights"] = bytes(weights)
    return found


def _program(
    folder: Path,
    interface: Interface,
    objects: Sequence[bytes],
    weights: memoryview | None,
    toolchain: Toolchain,
) -> None:
    """NAME_program.o: machine code and weights, with nothing visible but what library.c names."""
    visible = list(symbols(interface.name, interface.threads).values())
    parts = []
    for index, code in enumerate(objects):
        parts.append(f"code{index}.o")
        (folder / parts[-1]).write_bytes(code)
    if weights is not None:
        visible.append(f"{interface.name}_program_weights")
        (folder / "weights.bin").write_bytes(weights)
        (folder / "weights.s").write_text(_WEIGHTS.format(symbol=visible[-1]))
        toolchain.compile(folder, "-c", "weights.s", "-o", "weights.o")
        parts.append("weights.o")
    toolchain.compile(folder, "-r", "-nostdlib", *parts, "-o", "joined.o")
    keep = [f"--keep-global-symbol={symbol}" for symbol in visible]
    output = f"{interface.name}_program.o"
    toolchain.tool(folder, "objcopy", "--strip-unneeded", *keep, "joined.o", output)


def _libraries(folder: Path, interface: Interface, toolchain: Toolchain) -> None:
    name = interface.name
    members = (f"{name}.o", f"{name}_program.o")
    toolchain.tool(folder, "ar", "rcsD", f"lib{name}.a", *members)
    exported = " ".join(f"{name}_{function};" for function in FUNCTIONS)
    (folder / "visible.map").write_text(f"{{ global: {exported} local: *; }};\n")
    libraries = ["-lm", "-lpthread"] if interface.threads > 1 else ["-lm"]
    toolchain.compile(
        folder,
        *("-shared", "-nostartfiles", "-s", f"-Wl,-soname,lib{name}.so", "-Wl,--no-undefined"),
        *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,--version-script=visible.map"),
        *members,
        *("-Wl,--as-needed", *libraries, "-o", f"lib{name}.so"),
    )
