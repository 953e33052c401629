"""Which targets' records are of use to which."""

from __future__ import annotations

import pytest

from graphopt.target import TargetSpec
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
