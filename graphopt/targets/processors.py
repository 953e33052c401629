"""Processors as LLVM and this machine describe them: names, features, caches."""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any

from tvm.target import Target
from tvm_ffi import get_global_func

from graphopt.errors import OptionError

TRIPLES = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "riscv64": "riscv64-linux-gnu",
}
"""LLVM's target triple of each architecture."""

NAMED = ("x86_64", "aarch64")
"""Architectures whose processors go by LLVM's names."""

# What Linux distributions for RISC-V are built for, without and with vectors. LLVM's other
# processors have extensions that loading could not check.
_RV64GC = ("+m", "+a", "+f", "+d", "+c")
RISCV = {"rv64gc": _RV64GC, "generic-rv64": _RV64GC, "rv64gcv": (*_RV64GC, "+v")}
"""Extensions of each level of RISC-V that can be compiled for."""

_KB, _MB = 1 << 10, 1 << 20

# Data cache sizes (L1, L2 per core) of processors that are not this one, from vendors' manuals:
# the first pattern that matches LLVM's name of the processor counts.
_CACHES = (
    (r"x86-64(-v2)?|generic", (32 * _KB, 256 * _KB)),
    (r"x86-64-v3", (32 * _KB, 256 * _KB)),
    (r"x86-64-v4|skylake.avx512|skx|cascadelake|cooperlake", (32 * _KB, 1 * _MB)),
    (r"znver[1-3]", (32 * _KB, 512 * _KB)),
    (r"znver4", (32 * _KB, 1 * _MB)),
    (r"znver5", (48 * _KB, 1 * _MB)),
    (r"icelake.server", (48 * _KB, 1280 * _KB)),
    (r"icelake.client|rocketlake", (48 * _KB, 512 * _KB)),
    (r"tigerlake|alderlake|raptorlake", (48 * _KB, 1280 * _KB)),
    (r"sapphirerapids|emeraldrapids|graniterapids.*|diamondrapids", (48 * _KB, 2 * _MB)),
    (r"cortex-a(53|55|510|520)", (32 * _KB, 256 * _KB)),
    (r"cortex-a(72|73|75)", (32 * _KB, 256 * _KB)),
    (r"cortex-.*", (64 * _KB, 512 * _KB)),
    (r"neoverse-(n1|v1|n2)", (64 * _KB, 1 * _MB)),
    (r"neoverse-.*|grace", (64 * _KB, 2 * _MB)),
    (r"apple-.*", (128 * _KB, 4 * _MB)),
)


def llvm_target(arch: str, mcpu: str, mattr: tuple[str, ...], threads: int) -> Any:
    """The tvm Target of kind llvm."""
    spec: dict[str, Any] = {"kind": "llvm", "mtriple": TRIPLES[arch], "mcpu": mcpu}
    if arch == "riscv64":
        spec["mabi"] = "lp64d"
    if mattr:
        spec["mattr"] = list(mattr)
    return Target({**spec, "num-cores": threads})


def llvm_features(arch: str, mcpu: str, mattr: tuple[str, ...]) -> frozenset[str]:
    """Every feature that LLVM enables, its tuning flags included."""
    features = get_global_func("target.llvm_get_cpu_features")(llvm_target(arch, mcpu, mattr, 1))
    return frozenset(str(name) for name in features)


@cache
def processors(arch: str) -> tuple[str, ...]:
    generic = llvm_target(arch, "generic", (), 1)
    names = get_global_func("target.llvm_get_cpu_archlist")(generic)
    return tuple(str(name) for name in names)


def is_processor(arch: str, cpu: str) -> bool:
    """Whether LLVM knows a processor of that architecture by this name."""
    # LLVM lists 32-bit x86 processors under the 64-bit triple too.
    return bool(get_global_func("target.llvm_is_valid_cpu")(cpu, TRIPLES[arch])) and (
        arch != "x86_64" or "64bit" in llvm_features(arch, cpu, ())
    )


def check_processor(arch: str, cpu: str, text: str) -> None:
    """OptionError about the target `text` unless LLVM knows the processor."""
    if is_processor(arch, cpu):
        return
    for other in NAMED:
        if other != arch and is_processor(other, cpu):
            raise OptionError(
                "target",
                f"'{cpu}' is not an {arch} processor.",
                hint=f"write '{other}:{cpu}'.",
            )
    names = [name for name in processors(arch) if is_processor(arch, name)]
    close = difflib.get_close_matches(cpu.lower(), names, n=3, cutoff=0.5)
    raise OptionError(
        "target",
        f"'{text}': LLVM knows no {arch} processor called '{cpu}'.",
        hint=f"did you mean {alternatives(close)}?" if close else "'cpu' means this machine.",
    )


def alternatives(names: list[str]) -> str:
    """Names to choose from, for a hint."""
    return " or ".join(f"'{name}'" for name in names)


def cpuid() -> dict[str, bool]:
    """This x86 machine's features as LLVM reads them."""
    flags = get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return {str(flag): bool(value) for flag, value in flags.items()}


def default_caches(mcpu: str) -> tuple[int, int]:
    """Bytes of the first two data caches of a processor that is not this one."""
    for pattern, sizes in _CACHES:
        if re.fullmatch(pattern, mcpu):
            return sizes
    return 32 * _KB, 512 * _KB


def cache_bytes(level: int, cpu: str = "/sys/devices/system/cpu/cpu0") -> int | None:
    """Size of a core's share of its data cache of `level`, in bytes; None if not known."""
    for index in sorted(Path(cpu, "cache").glob("index*")):
        try:
            if int((index / "level").read_text()) != level:
                continue
            if (index / "type").read_text().strip() == "Instruction":
                continue
            size = re.fullmatch(r"(\d+)K", (index / "size").read_text().strip())
            sharing = _count((index / "shared_cpu_list").read_text())
            siblings = _count(Path(cpu, "topology/thread_siblings_list").read_text())
        except (OSError, ValueError):
            continue
        if size:
            return int(size[1]) * _KB // max(1, sharing // siblings)
    return None


def _count(cpu_list: str) -> int:
    """Number of processors in a kernel list such as "0-3,8"."""
    ranges = [part.split("-") for part in cpu_list.strip().split(",")]
    return sum(int(r[-1]) - int(r[0]) + 1 for r in ranges)
