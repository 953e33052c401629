"""Layout conversions are exact both ways, for ragged channels, positions and all dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512, run_candidate, scheduled, serial_extents

from schedules import layout_change
from schedules.interface import (
    PLAIN,
    Epilogue,
    Layout,
    Op,
    TargetTraits,
    TensorSig,
    Workload,
    channel_block,
)

SHAPES = [
    (1, 16, 14, 14),
    (2, 3, 7, 7),
    (1, 40, 5, 9),
    (1, 1, 33, 2),
    (3, 64, 40),
    (1, 17, 2, 3, 11),
]


def workload(shape: tuple[int, ...], dtype: str) -> Workload:
    sig = TensorSig(shape, dtype)
    return Workload(Op("layout_change", (sig,), sig, (), (False,)), Epilogue(dtype=dtype))


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int64"])
def test_both_directions(shape: tuple[int, ...], dtype: str, traits: TargetTraits) -> None:
    w = workload(shape, dtype)
    x = (np.random.default_rng(0).standard_normal(shape) * 20).astype(dtype)
    blocked = Layout(traits.lanes)
    for source, target in [(PLAIN, blocked), (blocked, PLAIN)]:
        c = layout_change.change_candidate(w.inputs[0], source, target, traits)
        assert not serial_extents(scheduled(c))
        np.testing.assert_array_equal(run_candidate(c, w, [x], traits), x)


@pytest.mark.parametrize(
    "shape", [(2, 70, 5, 7), (1, 24, 4, 9), (1, 16, 3, 3), (1, 100, 33)], ids=str
)
def test_bytes(shape: tuple[int, ...]) -> None:
    w = workload(shape, "uint8")
    x = np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)
    blocked = Layout(channel_block(shape[1]))
    pairs = [(PLAIN, blocked), (blocked, PLAIN), (Layout(16), blocked), (blocked, Layout(16))]
    pairs += [(Layout(32), Layout(48)), (Layout(48), Layout(32))]
    for source, target in pairs:
        c = layout_change.change_candidate(w.inputs[0], source, target, AVX512)
        np.testing.assert_array_equal(run_candidate(c, w, [x], AVX512), x)


def test_other_pairs() -> None:
    w = workload((1, 20, 3, 3), "float32")
    x = np.random.default_rng(1).standard_normal((1, 20, 3, 3)).astype(np.float32)
    for source, target in [(Layout(16), Layout(8)), (Layout(4), Layout(16)), (PLAIN, PLAIN)]:
        c = layout_change.change_candidate(w.inputs[0], source, target, AVX512)
        np.testing.assert_array_equal(run_candidate(c, w, [x], AVX512), x)
