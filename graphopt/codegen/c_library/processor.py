"""The C library's check that a processor has what its machine code needs.

Bits of CPUID: Intel's Software Developer's Manual, volume 2A, and AMD's Programmer's Manual,
volume 3, appendix E. Bits of AT_HWCAP and AT_HWCAP2: Linux's asm/hwcap.h of each architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

_EAX, _EBX, _ECX, _EDX = range(4)

# The register state that the system must save for an instruction set: bits of XCR0.
_SSE, _AVX, _AVX512, _TILES = 0, 0x6, 0xE6, 0x60006


class Place(NamedTuple):
    """A register that CPUID fills, and the bits of XCR0 without which it means nothing."""

    leaf: int
    subleaf: int
    register: int
    state: int


_EXTENDED = 0x80000001
_BITS: Mapping[Place, Mapping[str, int]] = {
    Place(1, 0, _EDX, _SSE): {"sse": 25, "sse2": 26},
    Place(1, 0, _ECX, _SSE): {
        **{"sse3": 0, "ssse3": 9, "cx16": 13, "sse4.1": 19, "sse4.2": 20},
        **{"movbe": 22, "popcnt": 23},
    },
    Place(1, 0, _ECX, _AVX): {"fma": 12, "avx": 28, "f16c": 29},
    Place(7, 0, _EBX, _SSE): {"bmi": 3, "bmi2": 8},
    Place(7, 0, _EBX, _AVX): {"avx2": 5},
    Place(7, 0, _EBX, _AVX512): {
        **{"avx512f": 16, "avx512dq": 17, "avx512ifma": 21},
        **{"avx512cd": 28, "avx512bw": 30, "avx512vl": 31},
    },
    Place(7, 0, _ECX, _SSE): {"gfni": 8},
    Place(7, 0, _ECX, _AVX512): {
        **{"avx512vbmi": 1, "avx512vbmi2": 6, "avx512vnni": 11},
        **{"avx512bitalg": 12, "avx512vpopcntdq": 14},
    },
    Place(7, 0, _EDX, _AVX512): {"avx512fp16": 23},
    Place(7, 0, _EDX, _TILES): {"amx-tile": 24, "amx-int8": 25},
    Place(7, 1, _EAX, _AVX): {"avxvnni": 4, "avxifma": 23},
    Place(7, 1, _EAX, _AVX512): {"avx512bf16": 5},
    Place(_EXTENDED, 0, _ECX, _SSE): {"lzcnt": 5, "sse4a": 6},
    Place(_EXTENDED, 0, _ECX, _AVX): {"xop": 11, "fma4": 16},
}
CPUID: Mapping[str, tuple[Place, int]] = {
    name: (place, 1 << bit) for place, bits in _BITS.items() for name, bit in bits.items()
}
"""LLVM's name of an x86 feature → where CPUID shows it."""

_AT_HWCAP, _AT_HWCAP2 = 16, 26

HWCAP: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "aarch64": {
        "fp-armv8": (_AT_HWCAP, 1 << 0),
        "neon": (_AT_HWCAP, 1 << 1),
        "lse": (_AT_HWCAP, 1 << 8),
        "fullfp16": (_AT_HWCAP, 1 << 10),
        "rdm": (_AT_HWCAP, 1 << 12),
        "rcpc": (_AT_HWCAP, 1 << 15),
        "sha3": (_AT_HWCAP, 1 << 17),
        "dotprod": (_AT_HWCAP, 1 << 20),
        "sve": (_AT_HWCAP, 1 << 22),
        "fp16fml": (_AT_HWCAP, 1 << 23),
        "sve2": (_AT_HWCAP2, 1 << 1),
        "i8mm": (_AT_HWCAP2, 1 << 13),
        "bf16": (_AT_HWCAP2, 1 << 14),
        "sme": (_AT_HWCAP2, 1 << 23),
    },
    # A bit for each letter.
    "riscv64": {letter: (_AT_HWCAP, 1 << ord(letter) - ord("a")) for letter in "mafdcv"},
}
"""Architecture → LLVM's name of a feature → entry of the auxiliary vector, and its bit."""


def needs(arch: str, features: Iterable[str]) -> list[tuple[int, ...]]:
    """What init checks, in the rows that library.c reads.

    x86_64: leaf, subleaf, register, bits, state; others: entry of the auxiliary vector, bits.
    """
    if arch == "x86_64":
        places: dict[Place, int] = {}
        for name in features:
            place, bit = CPUID[name]
            places[place] = places.get(place, 0) | bit
        return [(p.leaf, p.subleaf, p.register, bits, p.state) for p, bits in places.items()]
    entries = {_AT_HWCAP: 0}
    for name in features:
        entry, bit = HWCAP[arch][name]
        entries[entry] = entries.get(entry, 0) | bit
    return sorted(entries.items())
