"""Which targets' records are of use to which."""

from __future__ import annotations

import pytest
from tuning_run import record

from graphopt.target import TargetSpec
from graphopt.tuning.advice import advise
from graphopt.tuning.nearness import distance

KEY = "x86_64-avx512.avx512vnni-l1.32k-l2.1024k-t4"
NEAREST_FIRST = (
    KEY,
    "x86_64-avx512.avx512vnni-l1.32k-l2.1024k-t8",
    "x86_64-avx512.avx512vnni-l1.32k-l2.1024k-t1",
    "x86_64-avx512.avx512vnni-l1.48k-l2.2048k-t4",
    "x86_64-avx512-l1.32k-l2.1024k-t4",
    "x86_64-avx512.avx512vnni.avx512bf16-l1.48k-l2.2048k-t2",
)


def test_threads_are_nearer_than_caches_and_caches_than_instructions() -> None:
    found = [distance(KEY, other) for other in NEAREST_FIRST]
    assert None not in found
    assert found == sorted(found)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "other",
    [
        "x86_64-avx2.fma-l1.32k-l2.1024k-t4",
        "x86_64-sse2-l1.32k-l2.1024k-t4",
        "aarch64-neon.dotprod-l1.64k-l2.512k-t4",
        "somewhere",
        "",
    ],
)
def test_other_vectors_have_nothing_in_common(other: str) -> None:
    assert distance(KEY, other) is None


@pytest.mark.parametrize("name", ["cpu", "cpu:x86-64-v3", "cpu:x86-64-v2", "aarch64:cortex-a76"])
def test_the_keys_of_targets_are_understood(name: str) -> None:
    spec = TargetSpec.parse(name)
    assert distance(spec.key(1), spec.key(4)) == (False, False, 2.0)


@pytest.mark.parametrize("key", ["opencl-some-gpu-u20-g256", "cuda-sm_80"])
def test_records_of_a_device_are_its_own(key: str) -> None:
    assert distance(key, key) == (False, False, 0.0)
    assert distance(key, "opencl-another-gpu-u20-g256") is None
    mine = record(target=key)
    other = record(target="opencl-another-gpu-u20-g256", ratio=1.0)
    advice = advise([other, mine], key)
    assert list(advice.own.values()) == [mine]
    assert not advice.others
