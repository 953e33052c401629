"""The instruction sets that matter to a network, and what a processor with them gains."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.target import AVX2, AVX512, TargetSpec


@dataclass(frozen=True)
class Extension:
    """An instruction set of the target's architecture.

    Attributes:
        name: as vendors write it.
        present: the target has it.
        used: this version's kernels use it where it is present.
        brings: what kernels gain from it, in words.
    """

    name: str
    present: bool
    used: bool
    brings: str


@dataclass(frozen=True)
class _Known:
    name: str
    features: frozenset[str]  # LLVM's names; all are needed
    used: bool
    brings: str


_X86 = (
    _Known("AVX2 and FMA", AVX2, True, "8 float32 per instruction, multiply and add in one"),
    _Known("AVX-512", AVX512, True, "16 float32 per instruction and twice the registers"),
    _Known(
        "AVX-VNNI",
        frozenset({"avxvnni"}),
        True,
        "32 int8 multiply-adds per instruction: up to 4 times the float32 rate of AVX2",
    ),
    _Known(
        "AVX-512 VNNI",
        frozenset({"avx512vnni"}),
        True,
        "64 int8 multiply-adds per instruction: up to 4 times the float32 rate of AVX-512",
    ),
    _Known(
        "AVX-512 BF16",
        frozenset({"avx512bf16"}),
        False,
        "bfloat16 products at up to twice the float32 rate",
    ),
    _Known(
        "AVX-512 FP16",
        frozenset({"avx512fp16"}),
        False,
        "float16 arithmetic at up to twice the float32 rate",
    ),
    _Known(
        "AMX",
        frozenset({"amx-tile", "amx-int8"}),
        True,
        "tiles of int8 products: up to 8 times the rate of VNNI",
    ),
)
_AARCH64 = (
    _Known("NEON", frozenset({"neon"}), True, "4 float32 per instruction"),
    _Known(
        "dotprod",
        frozenset({"dotprod"}),
        True,
        "16 int8 multiply-adds per instruction: up to 4 times the float32 rate",
    ),
    _Known(
        "i8mm",
        frozenset({"i8mm"}),
        False,
        "32 int8 multiply-adds per instruction: up to 8 times the float32 rate",
    ),
    _Known("FP16", frozenset({"fullfp16"}), False, "float16 arithmetic at twice the float32 rate"),
    _Known("BF16", frozenset({"bf16"}), False, "bfloat16 products at up to 4 times the rate"),
    _Known("SVE", frozenset({"sve"}), False, "longer vectors where the processor has them"),
)
_RISCV64 = (_Known("V", frozenset({"v"}), True, "4 float32 per instruction"),)
_BY_ARCH = {"x86_64": _X86, "aarch64": _AARCH64, "riscv64": _RISCV64}


def extensions(target: TargetSpec) -> tuple[Extension, ...]:
    """The instruction sets of the target's architecture, those that it lacks too."""
    return tuple(
        Extension(known.name, target.has(known.features), known.used, known.brings)
        for known in _BY_ARCH[target.arch]
    )


def float_operations_per_cycle(target: TargetSpec) -> int:
    """float32 operations per cycle and vector unit: 2 per lane with fused multiply-add."""
    traits = target.traits(1)
    return traits.lanes * (2 if traits.fma else 1)
