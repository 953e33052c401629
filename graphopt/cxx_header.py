"""graphopt.hpp: a loader of .gopt files for C++ programs, in one header, joined from cxx/*.hpp."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files

from graphopt.artifact import encryption
from graphopt.artifact.digest import LEAF_BYTES, PERSON
from graphopt.artifact.manifest import ABI, SCHEMA
from graphopt.artifact.plan_json import ITEM_BYTES, MAX_BYTES, MAX_THREADS
from graphopt.artifact.signature import PURPOSE
from graphopt.codegen import abi
from graphopt.codegen.c_library.blake2b import blake2b_source
from graphopt.codegen.c_library.processor import CPUID, HWCAP

_SLOTS = (
    "NUM_TASKS", "BARRIER", "SEMAPHORES", "STOP", "ARENA", "WEIGHTS", "SOLO_BARRIER", "FIRST_IO",
    "SEMAPHORE_STRIDE",
)  # fmt: skip
_TVM_FFI_INT, _TVM_FFI_OPAQUE_POINTER = 1, 4


def cxx_header() -> str:
    """The text of graphopt.hpp, which loads files of this version of graphopt."""

    def piece(match: re.Match[str]) -> str:
        name = match[1]
        return blake2b_source("inline") if name == "blake2b.inc" else _text(name)

    # Each piece stands beside loader.hpp as a file that it includes.
    include = re.compile(r'^#include "([a-z_0-9]+\.\w+)"\n', re.MULTILINE)
    text = include.sub(piece, _text("loader.hpp"))
    items = [f'      {{"{name}", {size}}},' for name, size in ITEM_BYTES.items()]
    for name, lines in (
        ("CONSTANTS", _constants()),
        ("FEATURES", _features()),
        ("ITEM_BYTES", items),
    ):
        text = text.replace(f"@{name}@", "\n".join(lines))
    return text


def _text(name: str) -> str:
    return files("graphopt").joinpath("cxx").joinpath(name).read_text("utf-8")


def _constants() -> list[str]:
    numbers = {
        **{name: getattr(abi, name) for name in _SLOTS},
        "kLeafBytes": LEAF_BYTES,
        "kSchema": SCHEMA,
        "kAbi": ABI,
        "kInteger": _TVM_FFI_INT,
        "kPointer": _TVM_FFI_OPAQUE_POINTER,
        "kMaxThreads": MAX_THREADS,
        "kChunkBytes": encryption.CHUNK_BYTES,
        "kTagBytes": encryption.TAG_BYTES,
        "kSaltBytes": encryption.SALT_BYTES,
        "kKeyFileBytes": encryption.KEY_FILE_BYTES,
        "kScryptN": encryption.SCRYPT["n"],
        "kScryptR": encryption.SCRYPT["r"],
        "kScryptP": encryption.SCRYPT["p"],
        "kScryptMemory": encryption.SCRYPT_MEMORY,
    }
    texts = {
        "kPerson": PERSON.decode(),
        "kPurpose": PURPOSE.rstrip(b"\0").decode(),  # its 0 is the one that ends the text
        "kCipher": encryption.CIPHER,
        "kInfo": encryption.INFO.decode(),
    }
    return [
        *(f"constexpr int {name} = {value};" for name, value in numbers.items()),
        f"constexpr std::uint64_t kMaxBytes = {MAX_BYTES};",
        *(f'constexpr char {name}[] = "{text}";' for name, text in texts.items()),
    ]


def _features() -> list[str]:
    lines = []
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
    return [*lines, "#else", '#error "graphopt has no programs for this architecture"', "#endif"]


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
