"""TargetSpec: the processor a program is compiled for, named as in "cpu:cascadelake"."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tvm.target import Target
from tvm_ffi import get_global_func

from graphopt.errors import OptionError
from graphopt.runtime.host import FLAGS, TILES, host_arch, host_features
from schedules.interface import TargetTraits

AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
"""What kernels with 64-byte vectors need; a processor with only some of it gets 32-byte ones."""
AVX2 = frozenset({"avx2", "fma"})

# What distinguishes the vector units of two processors of one architecture, for the target key.
# AMX and VBMI are not among them: kernels that use them are candidates of their own, all others run
# as fast without.
_KEY_FEATURES = {
    "x86_64": ("avx512vnni", "avxvnni", "avx512bf16", "avx512fp16"),
    "aarch64": ("dotprod", "fullfp16", "i8mm", "bf16", "sve", "sve2"),
    "riscv64": ("v",),
}
_BASE_KEY = {"x86_64": "sse2", "aarch64": "neon", "riscv64": "rv64gc"}

_TRIPLES = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "riscv64": "riscv64-linux-gnu",
}
# Levels of an architecture that go by their own names.
_SHORT = {
    **{f"x86-64{level}": f"x86_64:x86-64{level}" for level in ("", "-v2", "-v3", "-v4")},
    "riscv64": "riscv64:rv64gc",
}
# What Linux distributions for RISC-V are built for, without and with vectors. LLVM's other
# processors have extensions that loading could not check.
_RV64GC = ("+m", "+a", "+f", "+d", "+c")
_RISCV = {"rv64gc": _RV64GC, "generic-rv64": _RV64GC, "rv64gcv": (*_RV64GC, "+v")}
_LATER = ("cuda", "opencl")
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


@dataclass(frozen=True)
class TargetSpec:
    """A processor: architecture, LLVM's name for it, and what its vector units and caches are.

    Attributes:
        name: the target as the user wrote it.
        arch: "x86_64", "aarch64" or "riscv64".
        mcpu: LLVM's processor name; `mattr` corrects its features ("+avxvnni", "-sha").
        features: instruction-set extensions (LLVM's names) that the code may use; loading checks
            them against the machine.
        l1_bytes, l2_bytes: data caches per core, in bytes.
    """

    name: str
    arch: str
    mcpu: str
    mattr: tuple[str, ...]
    features: frozenset[str]
    l1_bytes: int
    l2_bytes: int

    @staticmethod
    def parse(text: str) -> TargetSpec:
        """The target named `text`.

        "cpu" is this machine; "cpu:NAME" a processor or level of this machine's architecture
        ("cpu:cascadelake", "cpu:x86-64-v3"); "aarch64:NAME" and "x86_64:NAME" say the architecture.
        "x86-64", "x86-64-v2" to "x86-64-v4" and "riscv64" (the same as "riscv64:rv64gc"; with
        vectors "riscv64:rv64gcv") are levels that many processors have.

        Raises:
            OptionError: the name is unknown (with close matches), or not available yet.
        """
        kind, _, cpu = _SHORT.get(text.strip(), text.strip()).partition(":")
        if kind in _LATER:
            raise OptionError(
                "target",
                f"'{text}' is not available in this version, which compiles for CPUs only.",
                hint="use 'cpu', or 'cpu:NAME' for another processor.",
            )
        if kind not in ("cpu", *_TRIPLES):
            raise _unknown_target(text, kind)
        arch = host_arch() if kind == "cpu" else kind
        if arch not in _TRIPLES:
            raise OptionError(
                "target",
                f"this machine's architecture '{arch}' is not supported.",
                hint="name a supported one: 'x86_64:NAME', 'aarch64:NAME' or 'riscv64'.",
            )
        if kind == "cpu" and ":" not in text:
            return _host(text.strip())
        if arch == "riscv64":
            return _riscv(text.strip(), cpu)
        if not cpu:
            default = "x86-64" if arch == "x86_64" else "generic"
            raise OptionError(
                "target",
                f"'{text}' names no processor.",
                hint=f"write '{kind}:{default}' for code that runs on every {arch} processor.",
            )
        _check_cpu(arch, cpu, text)
        features = _llvm_features(arch, cpu, ()).intersection(FLAGS[arch])
        l1, l2 = _default_caches(cpu)
        return TargetSpec(text.strip(), arch, cpu, (), features, l1, l2)

    @property
    def triple(self) -> str:
        """LLVM's target triple."""
        return _TRIPLES[self.arch]

    @property
    def vector_bytes(self) -> int:
        """Width of the vector registers that kernels use, in bytes."""
        if self.arch == "x86_64":
            if self.features >= AVX512:
                return 64
            if self.features >= AVX2:
                return 32
        return 16

    def tvm_target(self, threads: int) -> Any:
        """The tvm Target for a program run by `threads` threads."""
        return _tvm_target(self.arch, self.mcpu, self.mattr, threads)

    def traits(self, threads: int) -> TargetTraits:
        """What schedules need to know of this processor."""
        x86 = self.arch == "x86_64"
        wide = self.vector_bytes == 64
        return TargetTraits(
            arch=self.arch,
            vector_bytes=self.vector_bytes,
            vector_registers=32 if wide or not x86 else 16,
            fma="fma" in self.features or not x86,
            vnni=x86 and ("avx512vnni" if wide else "avxvnni") in self.features,
            amx=wide and "amx-int8" in self.features,
            vbmi=wide and "avx512vbmi" in self.features,
            dotprod=not x86 and "dotprod" in self.features,
            i8mm=not x86 and "i8mm" in self.features,
            l1_bytes=self.l1_bytes,
            l2_bytes=self.l2_bytes,
            threads=threads,
        )

    def key(self, threads: int) -> str:
        """The target key: what tuning records of this target have in common; a valid file name.

        Architecture, vector features, cache class (L1 in KiB, L2 rounded down to a power of two)
        and threads: not the processor's name, because equal processors have several.
        """
        base = {64: "avx512", 32: "avx2", 16: _BASE_KEY[self.arch]}
        vector = [base[self.vector_bytes]]
        vector += [name for name in _KEY_FEATURES[self.arch] if name in self.features]
        l2_class = 1 << (max(self.l2_bytes // _KB, 1).bit_length() - 1)
        caches = f"l1.{self.l1_bytes // _KB}k-l2.{l2_class}k"
        return f"{self.arch}-{'.'.join(vector)}-{caches}-t{threads}"

    def needed(self, tiles: bool) -> frozenset[str]:
        """The features that a program may use: LLVM uses all but tile registers by itself."""
        return self.features if tiles else self.features - TILES

    def has(self, features: frozenset[str]) -> bool:
        """Whether the processor has these (LLVM's names), be they for our code or not."""
        known = set(self.features)
        if self.name == "cpu" and self.arch == "x86_64":
            known |= {name for name, value in _cpuid().items() if value}
        elif self.name != "cpu":
            known |= _llvm_features(self.arch, self.mcpu, self.mattr)
        return features <= known

    def is_host_compatible(self) -> bool:
        """Whether this machine can run the code."""
        return self.arch == host_arch() and self.features <= host_features()


def _tvm_target(arch: str, mcpu: str, mattr: tuple[str, ...], threads: int) -> Any:
    spec: dict[str, Any] = {"kind": "llvm", "mtriple": _TRIPLES[arch], "mcpu": mcpu}
    if arch == "riscv64":
        spec["mabi"] = "lp64d"
    if mattr:
        spec["mattr"] = list(mattr)
    return Target({**spec, "num-cores": threads})


def _llvm_features(arch: str, mcpu: str, mattr: tuple[str, ...]) -> frozenset[str]:
    """Every feature that LLVM enables, its tuning flags included."""
    features = get_global_func("target.llvm_get_cpu_features")(_tvm_target(arch, mcpu, mattr, 1))
    return frozenset(str(name) for name in features)


@cache
def _processors(arch: str) -> tuple[str, ...]:
    generic = _tvm_target(arch, "generic", (), 1)
    names = get_global_func("target.llvm_get_cpu_archlist")(generic)
    return tuple(str(name) for name in names)


def _is_processor(arch: str, cpu: str) -> bool:
    # LLVM lists 32-bit x86 processors under the 64-bit triple too.
    return bool(get_global_func("target.llvm_is_valid_cpu")(cpu, _TRIPLES[arch])) and (
        arch != "x86_64" or "64bit" in _llvm_features(arch, cpu, ())
    )


def _riscv(name: str, cpu: str) -> TargetSpec:
    if cpu not in _RISCV:
        raise OptionError(
            "target",
            f"'{name}' is not supported.",
            hint=f"choose {_alternatives([f'riscv64:{level}' for level in _RISCV])}.",
        )
    mattr = _RISCV[cpu]
    features = _llvm_features("riscv64", "generic-rv64", mattr).intersection(FLAGS["riscv64"])
    return TargetSpec(name, "riscv64", "generic-rv64", mattr, features, *_default_caches(cpu))


def _check_cpu(arch: str, cpu: str, text: str) -> None:
    if _is_processor(arch, cpu):
        return
    for other in ("x86_64", "aarch64"):
        if other != arch and _is_processor(other, cpu):
            raise OptionError(
                "target",
                f"'{cpu}' is not an {arch} processor.",
                hint=f"write '{other}:{cpu}'.",
            )
    names = [name for name in _processors(arch) if _is_processor(arch, name)]
    close = difflib.get_close_matches(cpu.lower(), names, n=3, cutoff=0.5)
    raise OptionError(
        "target",
        f"'{text}': LLVM knows no {arch} processor called '{cpu}'.",
        hint=f"did you mean {_alternatives(close)}?" if close else "'cpu' means this machine.",
    )


def _unknown_target(text: str, kind: str) -> OptionError:
    known = ["cpu", *_TRIPLES]
    for arch in ("x86_64", "aarch64"):
        if text and _is_processor(arch, text):
            prefix = "cpu" if arch == host_arch() else arch
            return OptionError(
                "target", f"unknown target '{text}'.", hint=f"write '{prefix}:{text}'."
            )
    close = difflib.get_close_matches(kind.lower(), known, n=1, cutoff=0.5)
    forms = "targets are 'cpu', 'cpu:NAME', 'x86_64:NAME', 'aarch64:NAME' and 'riscv64'."
    return OptionError(
        "target",
        f"unknown target '{text}'.",
        hint=f"did you mean {_alternatives(close)}? {forms}" if close else forms,
    )


def _alternatives(names: list[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


@cache
def _host(name: str) -> TargetSpec:
    """This machine. The model number only picks LLVM's instruction timings.

    Hypervisors show model numbers that do not fit the features they enable, so every feature comes
    from the processor's own flags: CPUID as LLVM reads it and what the operating system lists.
    """
    arch = host_arch()
    mcpu = str(get_global_func("target.llvm_get_system_cpu")())
    if not _is_processor(arch, mcpu):
        mcpu = "generic"
    available = host_features()
    if arch == "x86_64":
        available &= {flag for flag, value in _cpuid().items() if value}
    assumed = _llvm_features(arch, mcpu, ())
    mattr = tuple(
        ("+" if feature in available else "-") + feature
        for feature in sorted(FLAGS[arch])
        if (feature in available) != (feature in assumed)
    )
    features = _llvm_features(arch, mcpu, mattr).intersection(FLAGS[arch])
    l1, l2 = _default_caches(mcpu)
    l1, l2 = _cache_bytes(1) or l1, _cache_bytes(2) or l2
    return TargetSpec(name, arch, mcpu, mattr, features, l1, l2)


def _cpuid() -> dict[str, bool]:
    """This x86 machine's features as LLVM reads them."""
    flags = get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return {str(flag): bool(value) for flag, value in flags.items()}


def _default_caches(mcpu: str) -> tuple[int, int]:
    for pattern, sizes in _CACHES:
        if re.fullmatch(pattern, mcpu):
            return sizes
    return 32 * _KB, 512 * _KB


def _cache_bytes(level: int, cpu: str = "/sys/devices/system/cpu/cpu0") -> int | None:
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
