"""Depthwise, grouped, transposed and generic convolutions against float64."""

from __future__ import annotations

import conv_harness as ch
import harness
import numpy as np
import pytest

from schedules import (
    conv_depthwise,
    conv_generic,
    conv_grouped,
    conv_grouped_narrow,
    conv_lines,
    conv_transposed,
    conv_upsample,
)
from schedules.conv_common import parse
from schedules.conv_transposed import phases
from schedules.interface import PLAIN, Op, TargetTraits, Workload

EACH_WIDTH = pytest.mark.parametrize("traits", harness.ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")


def named(w: Workload) -> str:
    return "x".join(map(str, w.output.shape))


DEPTHWISE = [
    ch.conv((1, 40, 13, 56), 40, 3, groups=40, after="residual"),
    ch.conv((2, 24, 13, 15), 24, 5, 2, groups=24, after="silu"),
    ch.conv((1, 100, 7, 7), 100, 3, 2, (0, 0, 1, 1), groups=100, after="clip"),
    ch.conv((1, 16, 3, 40), 16, (1, 7), groups=16, after="bias_relu"),
    ch.conv((1, 16, 14, 14), 16, 3, dilation=2, groups=16, after="none"),
]


@EACH_WIDTH
@pytest.mark.parametrize("workload", DEPTHWISE, ids=named)
def test_depthwise(workload: Workload, traits: TargetTraits) -> None:
    assert ch.check(conv_depthwise.candidates, workload, traits, 2e-6) == 1


GROUPED = [
    ch.conv((1, 64, 9, 14), 64, 3, groups=2, after="residual"),  # whole vectors of filters
    ch.conv((1, 30, 9, 9), 96, 3, 2, groups=3, after="silu"),  # inputs that straddle blocks
    ch.conv((2, 32, 9, 11), 32, 3, groups=8, after="bias_relu"),  # 4 channels per group
    ch.conv((1, 6, 9, 11), 18, (3, 2), 2, (1, 0, 0, 1), groups=6, after="none"),  # multiplier 3
    ch.conv((1, 40, 13, 7), 100, 3, 1, (0, 2, 1, 1), (1, 2), groups=20, after="clip"),
]


@EACH_WIDTH
@pytest.mark.parametrize("workload", GROUPED, ids=named)
def test_grouped(workload: Workload, traits: TargetTraits) -> None:
    assert ch.check(conv_grouped.candidates, workload, traits, 5e-6) == 1


NARROW = [
    ch.conv((1, 48, 13, 17), 48, 3, 2, groups=6, after="bias_relu"),  # 8 channels per group
    ch.conv((2, 40, 9, 40), 40, 3, groups=10, after="residual"),  # 4, and half a vector too much
    ch.conv((1, 20, 7, 7), 20, 3, 1, (0, 2, 1, 1), (1, 2), groups=10, after="clip"),
    ch.conv((1, 32, 5, 21), 32, (2, 5), (3, 4), (1, 0, 0, 3), groups=16, after="silu"),
    ch.conv((1, 64, 6, 6), 64, 1, groups=8, after="none"),
]


@EACH_WIDTH
@pytest.mark.parametrize("workload", NARROW, ids=named)
def test_groups_narrower_than_a_vector(workload: Workload, traits: TargetTraits) -> None:
    narrow = workload.op.inputs[1].shape[1] < traits.lanes
    assert ch.check(conv_grouped_narrow.candidates, workload, traits, 5e-6) == narrow


@pytest.mark.parametrize(
    "workload",
    [
        ch.conv((1, 24, 9, 9), 24, 3, groups=4),  # 6 channels do not divide a vector
        ch.conv((1, 16, 9, 9), 32, 3, groups=8),  # more filters than channels
        ch.conv((1, 16, 9, 9), 16, 3, groups=16),  # depthwise
        ch.conv((1, 32, 9, 9), 32, 3, groups=1),
        ch.conv((1, 32, 9, 9), 32, 3, groups=2),  # a group is a vector
    ],
    ids=named,
)
def test_other_groups_are_not_narrow(workload: Workload) -> None:
    assert conv_grouped_narrow.candidates(workload, harness.AVX512) == ()


@pytest.mark.parametrize("family", [conv_grouped, conv_grouped_narrow])
def test_a_group_does_not_see_an_infinity_of_another(family) -> None:
    workload = ch.conv((1, 16, 5, 5), 16, 3, groups=4, after="none")
    inputs = harness.random_inputs(workload)
    inputs[0][0, 0] = np.inf
    (candidate,) = family.candidates(workload, harness.AVX512)
    actual = harness.run_candidate(candidate, workload, inputs, harness.AVX512)
    assert np.isfinite(actual[0, 4:]).all()
    assert not np.isfinite(actual[0, :4]).any()


TRANSPOSED = [
    ch.conv_transpose((1, 24, 9, 11), 24, 2, 2, after="residual"),
    ch.conv_transpose((2, 40, 7, 7), 24, 3, 2, (1, 1, 0, 1), output_padding=(1, 0), after="silu"),
    ch.conv_transpose((1, 24, 5, 6), 40, (3, 4), (2, 3), (1, 1, 0, 1), (2, 1), after="bias_relu"),
    ch.conv_transpose((1, 16, 5, 6), 16, (2, 1), (3, 2), after="bias_relu"),  # outputs of no tap
    ch.conv_transpose((1, 3, 7, 7), 100, 5, 1, (2, 2, 2, 2), 2, after="none"),
    ch.conv_transpose((1, 24, 6, 5), 1, 4, 2, (1, 1, 1, 1), after="none"),
]


@EACH_WIDTH
@pytest.mark.parametrize("workload", TRANSPOSED, ids=named)
def test_transposed(workload: Workload, traits: TargetTraits) -> None:
    assert ch.check(conv_transposed.candidates, workload, traits, 5e-6) >= 1


UPSAMPLE = [
    ch.conv_transpose((1, 24, 6, 20), 1, 2, 2, after="silu"),
    ch.conv_transpose((2, 40, 5, 7), 2, (2, 3), (2, 3), after="residual"),
]


@EACH_WIDTH
@pytest.mark.parametrize("workload", UPSAMPLE, ids=named)
def test_upsample(workload: Workload, traits: TargetTraits) -> None:
    fits = workload.output.shape[1] < traits.lanes
    assert ch.check(conv_upsample.candidates, workload, traits, 5e-6) == int(fits)


def test_phases_use_every_tap_once() -> None:
    workload = ch.conv_transpose((1, 8, 9, 9), 8, 5, 3, dilation=2)
    conv = parse(workload, "conv2d_transpose")
    assert conv is not None
    taps = [axis.weight(tap) for axis in phases(conv, 0) for tap in range(axis.taps)]
    assert sorted(taps) == list(range(5))


LINES = [
    *DEPTHWISE[:2],
    *GROUPED[3:],
    ch.conv((1, 8, 12, 66), 8, (3, 39), after="bias_relu"),  # a long filter
    ch.conv((1, 1, 1, 3000), 1, (1, 256), (1, 2), (0, 127, 0, 127), after="none"),  # in two phases
    ch.conv((1, 1, 1, 5000), 36, (1, 256), (1, 128), after="none", padding=(0, 0, 0, 0)),
    ch.conv((2, 5, 9, 11), 7, (3, 4), (2, 3), (1, 2, 0, 1), after="residual"),
    ch.conv((1, 6, 9, 31), 9, 3, (1, 4), (1, 2, 0, 1), (2, 3), groups=3, after="silu"),
    ch.conv((1, 6, 9, 31), 9, 3, (1, 4), (1, 2, 0, 1), 2, groups=3, after="silu"),
    ch.conv((1, 3, 5, 5), 2, (1, 2), (3, 5), (0, 0, 0, 0), after="clip"),  # a stride past the taps
    ch.conv((1, 3, 5, 2), 2, (1, 4), 1, (0, 3, 0, 9), after="clip"),  # outputs of zeros alone
    ch.conv((2, 20, 9, 11), 3, 1, after="residual"),  # read in place, as one row
    ch.conv((1, 4, 9, 40), 6, (3, 2), 1, (0, 0, 0, 0), groups=2, after="residual"),  # in place
]


@EACH_WIDTH
@pytest.mark.parametrize("workload", LINES, ids=named)
def test_lines(workload: Workload, traits: TargetTraits) -> None:
    assert ch.check(conv_lines.candidates, workload, traits, 1e-5) == 1


def test_a_long_filter_makes_little_code() -> None:
    workload = ch.conv((1, 1, 1, 3000), 40, (1, 1000), (1, 10), (0, 0, 0, 0), after="none")
    (candidate,) = conv_lines.candidates(workload, harness.AVX512)
    assert len(str(candidate.compute()).splitlines()) < 200


@pytest.mark.parametrize(
    "workload",
    [*TRANSPOSED[1:4], ch.conv_transpose((1, 8, 5, 5), 6, 3, 2, groups=2)],
    ids=named,
)
def test_generic_transposed(workload: Workload) -> None:
    assert ch.check(conv_generic.candidates, workload, harness.AVX2, 5e-6) == 1


@pytest.mark.parametrize("kind", ["conv2d", "conv2d_transpose"])
def test_weights_computed_at_run_time(kind: str) -> None:
    plain = (
        ch.conv((1, 4, 6, 6), 4, 3) if kind == "conv2d" else ch.conv_transpose((1, 4, 6, 6), 4, 3)
    )
    family = conv_lines if kind == "conv2d" else conv_generic
    op = plain.op
    workload = Workload(Op(op.kind, op.inputs, op.output, op.attrs, (False, False)))
    (candidate,) = family.candidates(workload, harness.AVX512)
    assert candidate.layouts == (PLAIN, PLAIN)
    assert ch.check(family.candidates, workload, harness.AVX512, 5e-6) == 1
