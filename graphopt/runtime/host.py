"""What this machine's processor can do, read from the operating system without TVM."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path

from graphopt.runtime.tiles import tiles_allowed

# LLVM's name of each instruction-set extension that compiled code may contain, and the flag that
# the Linux kernel shows when the processor has it and the system enables it. Left out is what
# neither LLVM generates by itself nor a kernel asks for (cryptography): needing it would only
# refuse machines.
X86_FLAGS = {
    "sse": "sse",
    "sse2": "sse2",
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sse4a": "sse4a",
    "popcnt": "popcnt",
    "cx16": "cx16",
    "movbe": "movbe",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "gfni": "gfni",
    "avx": "avx",
    "avx2": "avx2",
    "f16c": "f16c",
    "fma": "fma",
    "fma4": "fma4",
    "xop": "xop",
    "avxvnni": "avx_vnni",
    "avxifma": "avx_ifma",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
}
TILES = frozenset({"amx-tile", "amx-int8"})
"""What needs the system's permission beside the processor."""
AARCH64_FLAGS = {
    "fp-armv8": "fp",
    "neon": "asimd",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "rcpc": "lrcpc",
    "sha3": "sha3",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
RISCV64_FLAGS = {letter: letter for letter in "mafdcv"}
"""Single letters behind "rv64i" in the kernel's list."""
FLAGS = {"x86_64": X86_FLAGS, "aarch64": AARCH64_FLAGS, "riscv64": RISCV64_FLAGS}
BASELINE = {
    "x86_64": frozenset({"sse", "sse2"}),
    "aarch64": frozenset({"fp-armv8", "neon"}),
    "riscv64": frozenset("mafdc"),
}

_ALIASES = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}


def host_arch() -> str:
    """This machine's architecture as LLVM names it: "x86_64", "aarch64", …"""
    machine = platform.machine().lower()
    return _ALIASES.get(machine, machine)


def parse_cpuinfo(text: str, arch: str) -> frozenset[str]:
    """Features (LLVM's names) listed by a /proc/cpuinfo of a machine of architecture `arch`.

    Processors of one machine may differ (big and little cores): only what all of them have counts.
    Without any list the architecture's baseline is returned.
    """
    names = FLAGS.get(arch, {})
    per_cpu: list[frozenset[str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features", "isa"):
            letters = value.strip().removeprefix("rv64").split("_")[0]
            shown = frozenset(letters if key.strip() == "isa" else value.split())
            per_cpu.append(frozenset(name for name, flag in names.items() if flag in shown))
    if not per_cpu:
        return BASELINE.get(arch, frozenset())
    return frozenset.intersection(*per_cpu)


@cache
def host_features() -> frozenset[str]:
    """Instruction-set extensions (LLVM's names) that programs may use on this machine.

    Where the system does not say (no /proc/cpuinfo) this is the architecture's baseline.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    found = parse_cpuinfo(text, host_arch())
    return found - TILES if found & TILES and not tiles_allowed() else found


def _cpu_quota() -> float:
    """CPUs that the control group's quota grants; infinity without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        root = Path("/sys/fs/cgroup/cpu")
        limit = int((root / "cpu.cfs_quota_us").read_text())
        if limit > 0:
            return limit / int((root / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        pass
    return math.inf


def physical_cores() -> int:
    """Physical cores this process may use, at least 1; respects affinity and container quotas."""
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        cores = set()
        for cpu in allowed:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            try:
                cores.add(siblings.read_text().strip())
            except OSError:
                cores.add(str(cpu))
        count = len(cores)
    else:
        import psutil  # takes longer than the rest of this file, and Linux does without

        count = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(count, math.ceil(_cpu_quota()) if _cpu_quota() < math.inf else count))
