"""TargetSpec: what a program is compiled for, named as in "cpu:cascadelake" or "opencl"."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tvm_ffi import get_global_func

from graphopt.codegen.device_program import DeviceTarget
from graphopt.errors import OptionError
from graphopt.runtime.host import FLAGS, TILES, host_arch, host_features
from graphopt.targets.devices import DEVICES, Device, find_device
from graphopt.targets.processors import (
    NAMED,
    RISCV,
    TRIPLES,
    alternatives,
    cache_bytes,
    check_processor,
    cpuid,
    default_caches,
    is_processor,
    llvm_features,
    llvm_target,
)
from schedules.interface import TargetTraits

AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
"""What kernels with 64-byte vectors need; a processor with only some of it gets 32-byte ones."""
AVX2 = frozenset({"avx2", "fma"})

_KB = 1 << 10

# What distinguishes the vector units of two processors of one architecture, for the target key.
# AMX and VBMI are not among them: kernels that use them are candidates of their own, all others run
# as fast without.
_KEY_FEATURES = {
    "x86_64": ("avx512vnni", "avxvnni", "avx512bf16", "avx512fp16"),
    "aarch64": ("dotprod", "fullfp16", "i8mm", "bf16", "sve", "sve2"),
    "riscv64": ("v",),
}
_BASE_KEY = {"x86_64": "sse2", "aarch64": "neon", "riscv64": "rv64gc"}

# Levels of an architecture that go by their own names.
_SHORT = {
    **{f"x86-64{level}": f"x86_64:x86-64{level}" for level in ("", "-v2", "-v3", "-v4")},
    "riscv64": "riscv64:rv64gc",
}

# What all processors of an architecture have.
_COMMON = {"x86_64": "x86_64:x86-64", "aarch64": "aarch64:generic", "riscv64": "riscv64:rv64gc"}


@dataclass(frozen=True)
class TargetSpec:
    """A processor: architecture, LLVM's name for it, and what its vector units and caches are.

    For a device it is the processor that launches the device's kernels.

    Attributes:
        name: the target as the user wrote it.
        arch: "x86_64", "aarch64" or "riscv64".
        mcpu: LLVM's processor name; `mattr` corrects its features ("+avxvnni", "-sha").
        features: instruction-set extensions (LLVM's names) that the code may use; loading checks
            them against the machine.
        l1_bytes, l2_bytes: data caches per core, in bytes.
        device: what runs the kernels, if that is not the processor.
    """

    name: str
    arch: str
    mcpu: str
    mattr: tuple[str, ...]
    features: frozenset[str]
    l1_bytes: int
    l2_bytes: int
    device: Device | None = None

    @staticmethod
    def parse(text: str) -> TargetSpec:
        """The target named `text`.

        "cpu" is this machine; "cpu:NAME" a processor or level of this machine's architecture
        ("cpu:cascadelake", "cpu:x86-64-v3"); "aarch64:NAME" and "x86_64:NAME" say the architecture.
        "x86-64", "x86-64-v2" to "x86-64-v4" and "riscv64" (the same as "riscv64:rv64gc"; with
        vectors "riscv64:rv64gcv") are levels that many processors have.
        "opencl" is this machine's first OpenCL device, "opencl:NAME" the first whose name has NAME
        in it; "cuda" is this machine's GPU, "cuda:sm_80" or "cuda:sm_75,sm_80" any of that kind.

        Raises:
            OptionError: the name is unknown (with close matches), or there is no such device.
        """
        kind, _, cpu = _SHORT.get(text.strip(), text.strip()).partition(":")
        if kind in DEVICES:
            device = find_device(text.strip(), _host("cpu").vector_bytes)
            return TargetSpec.for_device(text.strip(), device)
        if kind not in ("cpu", *TRIPLES):
            raise _unknown_target(text, kind)
        arch = host_arch() if kind == "cpu" else kind
        if arch not in TRIPLES:
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
        check_processor(arch, cpu, text)
        features = llvm_features(arch, cpu, ()).intersection(FLAGS[arch])
        l1, l2 = default_caches(cpu)
        return TargetSpec(text.strip(), arch, cpu, (), features, l1, l2)

    @staticmethod
    def for_device(name: str, device: Device, arch: str | None = None) -> TargetSpec:
        """The target `name`: a device that is known, and the processor that launches its kernels.

        Args:
            arch: any processor of this architecture; None for this machine's.
        Raises:
            OptionError: the architecture is not supported.
        """
        processor = _host("cpu") if arch is None else TargetSpec.parse(_COMMON.get(arch, arch))
        return replace(processor, name=name, device=device)

    @property
    def triple(self) -> str:
        """LLVM's target triple."""
        return TRIPLES[self.arch]

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
        """The tvm Target of the processor, for a program run by `threads` threads."""
        return llvm_target(self.arch, self.mcpu, self.mattr, threads)

    def device_target(self) -> DeviceTarget:
        """What the device's code, and that which launches it, are compiled for."""
        assert self.device is not None
        return self.device.target(self.tvm_target(1))

    def traits(self, threads: int) -> TargetTraits:
        """What schedules need to know of this processor, or of the device."""
        if self.device is not None:
            return self.device.traits()
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
        and threads: not the processor's name, because equal processors have several. Of a device
        its kind and what it is.
        """
        if self.device is not None:
            return self.device.key()
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
            known |= {name for name, value in cpuid().items() if value}
        elif self.name != "cpu":
            known |= llvm_features(self.arch, self.mcpu, self.mattr)
        return features <= known

    def is_host_compatible(self) -> bool:
        """Whether this machine can run the code."""
        return self.arch == host_arch() and self.features <= host_features()


def _riscv(name: str, level: str) -> TargetSpec:
    if level not in RISCV:
        raise OptionError(
            "target",
            f"'{name}' is not supported.",
            hint=f"choose {alternatives([f'riscv64:{level}' for level in RISCV])}.",
        )
    mattr = RISCV[level]
    features = llvm_features("riscv64", "generic-rv64", mattr).intersection(FLAGS["riscv64"])
    return TargetSpec(name, "riscv64", "generic-rv64", mattr, features, *default_caches(level))


def _unknown_target(text: str, kind: str) -> OptionError:
    known = ["cpu", *TRIPLES, *DEVICES]
    for arch in NAMED:
        if text and is_processor(arch, text):
            prefix = "cpu" if arch == host_arch() else arch
            return OptionError(
                "target", f"unknown target '{text}'.", hint=f"write '{prefix}:{text}'."
            )
    close = difflib.get_close_matches(kind.lower(), known, n=1, cutoff=0.5)
    forms = (
        "targets are 'cpu', 'cpu:NAME', 'x86_64:NAME', 'aarch64:NAME', 'riscv64', 'opencl', "
        "'opencl:NAME', 'cuda' and 'cuda:sm_NN'."
    )
    return OptionError(
        "target",
        f"unknown target '{text}'.",
        hint=f"did you mean {alternatives(close)}? {forms}" if close else forms,
    )


@cache
def _host(name: str) -> TargetSpec:
    """This machine. The model number only picks LLVM's instruction timings.

    Hypervisors show model numbers that do not fit the features they enable, so every feature comes
    from the processor's own flags: CPUID as LLVM reads it and what the operating system lists.
    """
    arch = host_arch()
    mcpu = str(get_global_func("target.llvm_get_system_cpu")())
    if not is_processor(arch, mcpu):
        mcpu = "generic"
    available = host_features()
    if arch == "x86_64":
        available &= {flag for flag, value in cpuid().items() if value}
    assumed = llvm_features(arch, mcpu, ())
    mattr = tuple(
        ("+" if feature in available else "-") + feature
        for feature in sorted(FLAGS[arch])
        if (feature in available) != (feature in assumed)
    )
    features = llvm_features(arch, mcpu, mattr).intersection(FLAGS[arch])
    l1, l2 = default_caches(mcpu)
    l1, l2 = cache_bytes(1) or l1, cache_bytes(2) or l2
    return TargetSpec(name, arch, mcpu, mattr, features, l1, l2)
