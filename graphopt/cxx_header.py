"""graphopt.hpp: a loader of .gopt files for C++ programs, in one header."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

from graphopt.artifact.digest import LEAF_BYTES
from graphopt.artifact.manifest import ABI, SCHEMA
from graphopt.codegen import abi
from graphopt.codegen.c_library.processor import CPUID, HWCAP

_SLOTS = (
    "NUM_TASKS", "BARRIER", "SEMAPHORES", "STOP", "ARENA", "WEIGHTS", "SOLO_BARRIER", "FIRST_IO",
    "SEMAPHORE_STRIDE",
)  # fmt: skip
_TVM_FFI_INT, _TVM_FFI_OPAQUE_POINTER = 1, 4


def cxx_header() -> str:
    """The text of graphopt.hpp, which loads files of this version of graphopt."""
    numbers = {
        **{name: getattr(abi, name) for name in _SLOTS},
        "kLeafBytes": LEAF_BYTES,
        "kSchema": SCHEMA,
        "kAbi": ABI,
        "kInteger": _TVM_FFI_INT,
        "kPointer": _TVM_FFI_OPAQUE_POINTER,
    }
    lines = [f"constexpr int {name} = {value};" for name, value in numbers.items()]
    directive = "#if"
    for arch, macro in _MACROS.items():
        lines += [
            f"{directive} {macro}",
            f'constexpr const char *kArchitecture = "{arch}";',
            "constexpr Feature kFeatures[] = {",
            *(f'    {{"{name}", {_numbers(place)}}},' for name, place in _places(arch).items()),
            "};",
        ]
        directive = "#elif"
    lines += ["#else", '#error "graphopt has no programs for this architecture"', "#endif"]
    template = files("graphopt").joinpath("loader.hpp").read_text("utf-8")
    return template.replace("@CONSTANTS@", "\n".join(lines))


def _places(arch: str) -> dict[str, tuple[int, ...]]:
    """Feature → leaf, subleaf, register, bits of XCR0, bit; or entry, 0, 0, 0, bit."""
    if arch == "x86_64":
        return {name: (*place, bit) for name, (place, bit) in CPUID.items()}
    return {name: (entry, 0, 0, 0, bit) for name, (entry, bit) in HWCAP[arch].items()}


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(f"{value}u" for value in values)


_MACROS = {
    "x86_64": "defined(__x86_64__)",
    "aarch64": "defined(__aarch64__)",
    "riscv64": "defined(__riscv) && __riscv_xlen == 64",
}
