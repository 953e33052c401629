"""TargetSpec: names of processors, and what follows from them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from graphopt.errors import OptionError
from graphopt.runtime.host import host_arch, host_features, parse_cpuinfo, physical_cores
from graphopt.target import TargetSpec

X86 = "x86_64:"


@pytest.mark.parametrize(
    ("name", "vector_bytes", "registers", "fma", "vnni"),
    [
        (X86 + "x86-64", 16, 16, False, False),
        (X86 + "sandybridge", 16, 16, False, False),  # AVX without AVX2: no fused multiply-add
        (X86 + "x86-64-v3", 32, 16, True, False),
        (X86 + "haswell", 32, 16, True, False),
        (X86 + "alderlake", 32, 16, True, True),  # VNNI in its AVX form
        (X86 + "knl", 32, 16, True, False),  # AVX-512F alone is not enough
        (X86 + "skylake-avx512", 64, 32, True, False),
        (X86 + "cascadelake", 64, 32, True, True),
        (X86 + "znver4", 64, 32, True, True),
        ("aarch64:cortex-a76", 16, 32, True, False),
        ("aarch64:neoverse-v2", 16, 32, True, False),
    ],
)
def test_traits_follow_llvms_features(
    name: str, vector_bytes: int, registers: int, fma: bool, vnni: bool
) -> None:
    traits = TargetSpec.parse(name).traits(3)
    assert (traits.vector_bytes, traits.vector_registers) == (vector_bytes, registers)
    assert (traits.fma, traits.vnni) == (fma, vnni)
    assert traits.arch == name.split(":")[0]
    assert traits.threads == 3
    assert traits.l1_bytes < traits.l2_bytes


def test_tvm_target_names_processor_triple_and_threads() -> None:
    target = TargetSpec.parse("aarch64:cortex-a76").tvm_target(4)
    assert target.kind.name == "llvm"
    assert target.attrs["mcpu"] == "cortex-a76"
    assert target.attrs["mtriple"] == "aarch64-linux-gnu"
    assert int(target.attrs["num-cores"]) == 4


def test_features_are_what_loading_checks() -> None:
    assert {"avx512vnni", "avx2", "fma", "bmi2"} <= TargetSpec.parse(X86 + "cascadelake").features
    assert TargetSpec.parse(X86 + "x86-64").features == {"sse", "sse2"}
    assert {"neon", "dotprod"} <= TargetSpec.parse("aarch64:cortex-a76").features


def test_extensions_that_llvm_never_generates_are_not_needed() -> None:
    for name in (X86 + "sapphirerapids", "aarch64:cortex-a76", "cpu"):
        features = TargetSpec.parse(name).needed(tiles=False)
        assert not features & {"aes", "sha", "sha2", "pclmul", "amx-int8", "crc"}


def test_tile_registers_are_needed_by_programs_that_use_them() -> None:
    target = TargetSpec.parse(X86 + "sapphirerapids")
    assert target.traits(1).amx
    assert target.needed(tiles=True) - target.needed(tiles=False) == {"amx-tile", "amx-int8"}
    assert not TargetSpec.parse(X86 + "cascadelake").traits(1).amx


def test_host_features_come_from_the_processors_flags() -> None:
    host = TargetSpec.parse("cpu")
    assert host.arch == host_arch()
    assert host.features <= host_features()
    assert host.is_host_compatible()


@pytest.mark.skipif(host_arch() != "x86_64", reason="reads CPUID")
def test_host_uses_every_vector_extension_that_the_system_lists() -> None:
    vector = {name for name in host_features() if name.startswith(("avx", "fma", "f16c"))}
    # LLVM's name for the processor may lack some of them: mattr must add them.
    assert vector - TargetSpec.parse("cpu").features <= {"fma4", "avxifma"}


def test_foreign_architecture_is_not_host_compatible() -> None:
    other = "aarch64:generic" if host_arch() == "x86_64" else "x86_64:x86-64"
    assert not TargetSpec.parse(other).is_host_compatible()


def test_key_tells_vector_units_and_threads_apart_but_not_names() -> None:
    def key(name: str, threads: int = 2) -> str:
        return TargetSpec.parse(X86 + name).key(threads)

    assert key("skylake-avx512") == key("skx")
    keys = [key("x86-64"), key("x86-64-v3"), key("skx"), key("cascadelake"), key("cascadelake", 1)]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[a-z0-9_.-]+", text) for text in keys)


def test_equal_names_give_equal_specs() -> None:
    first, second = TargetSpec.parse("cpu"), TargetSpec.parse("cpu")
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (X86 + "cascadlake", "'cascadelake'"),
        (X86 + "", "names no processor"),
        (X86 + "i386", "LLVM knows no"),
        (X86 + "cortex-a76", "write 'aarch64:cortex-a76'"),
        ("aarch64:cascadelake", "write 'x86_64:cascadelake'"),
        ("aarch64:cortex-a67", "'cortex-a76'"),
        ("cortex-a76", ":cortex-a76'"),
        ("riscv64:sifive-u74", "riscv64:rv64gcv"),
        ("cpuu", "did you mean 'cpu'"),
        ("", "targets are"),
        ("llvm -mcpu=core-avx2", "targets are"),
        ("cuda:ampere", "'ampere' is no architecture"),
        ("cuda:sm_80,sm_30", "'sm_30' is no architecture"),
    ],
)
def test_wrong_names_are_refused_with_help(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        TargetSpec.parse(text)


CPUINFO = """processor\t: 0
flags\t\t: fpu sse sse2 pni avx avx2 fma bmi1 bmi2 abm avx512f amx_tile

processor\t: 1
flags\t\t: fpu sse sse2 pni avx avx2 fma bmi1 bmi2 abm
"""


def test_only_what_every_processor_has_counts() -> None:
    found = parse_cpuinfo(CPUINFO, "x86_64")
    assert found == {"sse", "sse2", "sse3", "avx", "avx2", "fma", "bmi", "bmi2", "lzcnt"}


def test_arm_flags_become_llvms_names() -> None:
    text = "processor : 0\nFeatures : fp asimd aes crc32 atomics fphp asimdhp asimddp i8mm\n"
    assert parse_cpuinfo(text, "aarch64") >= {"neon", "dotprod", "fullfp16", "lse", "i8mm"}
    assert "sve" not in parse_cpuinfo(text, "aarch64")


def test_riscvs_letters_are_its_features() -> None:
    text = "isa\t\t: rv64imafdcv_zicsr_zba\n\nisa\t\t: rv64imafdc_zicsr\n"
    assert parse_cpuinfo(text.split("\n\n")[0], "riscv64") == set("mafdcv")
    assert parse_cpuinfo(text, "riscv64") == set("mafdc")


@pytest.mark.parametrize("level", ["", "-v2", "-v3", "-v4"])
def test_levels_go_by_their_own_names(level: str) -> None:
    short = TargetSpec.parse(f"x86-64{level}")
    assert replace(short, name="") == replace(TargetSpec.parse(f"{X86}x86-64{level}"), name="")


def test_riscv64_is_what_distributions_are_built_for() -> None:
    plain, vectors = TargetSpec.parse("riscv64"), TargetSpec.parse("riscv64:rv64gcv")
    assert plain.features == set("mafdc")
    assert vectors.features == set("mafdcv")
    assert plain.key(1).startswith("riscv64-rv64gc-")
    assert vectors.key(1).startswith("riscv64-rv64gc.v-")
    assert plain.traits(1).vector_bytes == 16
    assert plain.tvm_target(1).attrs["mabi"] == "lp64d"


def test_without_flags_only_the_baseline_counts() -> None:
    assert parse_cpuinfo("", "x86_64") == {"sse", "sse2"}
    assert parse_cpuinfo("model name: x", "aarch64") == {"neon", "fp-armv8"}
    assert parse_cpuinfo("", "riscv64") == set("mafdc")
    assert parse_cpuinfo("", "s390x") == frozenset()


def test_physical_cores_respects_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert physical_cores() >= 1
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    assert physical_cores() == 1
