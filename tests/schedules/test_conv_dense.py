"""Direct, pointwise and Winograd convolutions against float64, for every vector width."""

from __future__ import annotations

from functools import partial

import conv_harness as ch
import harness
import numpy as np
import pytest

from schedules import conv_direct, conv_pointwise, conv_winograd
from schedules.interface import PLAIN, Layout, Numerics, Op, TargetTraits, Workload
from schedules.winograd_transforms import transforms

EACH_WIDTH = pytest.mark.parametrize("traits", harness.ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")

DIRECT = [
    ch.conv((1, 3, 29, 31), 24, 7, 2, after="bias_relu"),  # a first layer
    ch.conv((2, 24, 13, 13), 40, 3, after="residual"),
    ch.conv((1, 40, 7, 7), 100, 3, 2, after="silu"),
    ch.conv((1, 24, 7, 7), 32, 3, after="residual"),  # tiles of several rows
    ch.conv((2, 16, 6, 4), 32, (3, 1), 1, (2, 0, 0, 0), after="none"),
    ch.conv((1, 24, 13, 16), 16, 3, 1, (0, 1, 2, 0), after="clip"),  # asymmetric
    ch.conv((1, 20, 14, 9), 24, 3, dilation=2, after="none"),
    ch.conv((1, 16, 9, 56), 16, (1, 5), (1, 2), after="none"),
    ch.conv((1, 16, 5, 6), 16, 3, 1, (4, 5, 4, 5), after="bias_relu"),  # rows of padding only
    ch.conv((1, 40, 14, 14), 64, 1, 2, after="bias_relu"),
    ch.conv((1, 1, 2, 8), 16, 1, (1, 3), (4, 0, 0, 0), after="silu"),  # rows without a tap
]


@EACH_WIDTH
@pytest.mark.parametrize("workload", DIRECT, ids=lambda w: "x".join(map(str, w.output.shape)))
def test_direct(workload: Workload, traits: TargetTraits) -> None:
    assert ch.check(conv_direct.candidates, workload, traits, 5e-6) >= 1


POINTWISE = [
    ch.conv((1, 24, 7, 7), 100, 1, after="residual"),
    ch.conv((2, 40, 13, 13), 24, 1, after="silu"),
    ch.conv((1, 100, 1, 1), 40, 1, after="bias_relu"),
    ch.conv((1, 3, 56, 56), 176, 1, after="none"),
    ch.conv((1, 200, 11, 11), 160, 1, after="residual"),  # weights and pixels fetched ahead
]


@EACH_WIDTH
@pytest.mark.parametrize("workload", POINTWISE, ids=lambda w: "x".join(map(str, w.output.shape)))
def test_pointwise(workload: Workload, traits: TargetTraits) -> None:
    assert ch.check(conv_pointwise.candidates, workload, traits, 5e-6) == 1


WINOGRAD = [
    ch.conv((1, 40, 13, 15), 24, 3, after="residual"),
    ch.conv((2, 16, 8, 8), 100, 3, 1, (0, 0, 0, 0), after="silu"),
    ch.conv((1, 24, 7, 9), 40, 3, 1, (0, 1, 1, 2), after="bias_relu"),
]


def check_winograd(workload: Workload, traits: TargetTraits) -> None:
    """F(4×4) and F(2×2) within their limit, F(6×6) within its own."""

    def family(numerics: Numerics, workload: Workload, traits: TargetTraits):
        found = conv_winograd.candidates(workload, traits)
        return tuple(candidate for candidate in found if candidate.numerics == numerics)

    for numerics, count, limit in ((Numerics.DEFAULT, 2, 1e-5), (Numerics.RELAXED, 1, 4e-5)):
        assert ch.check(partial(family, numerics), workload, traits, limit) == count


@EACH_WIDTH
@pytest.mark.parametrize("workload", WINOGRAD, ids=lambda w: "x".join(map(str, w.output.shape)))
def test_winograd(workload: Workload, traits: TargetTraits) -> None:
    check_winograd(workload, traits)


def test_more_threads_split_filters_without_changing_the_result() -> None:
    workload = ch.conv((1, 64, 7, 7), 128, 3)
    traits = TargetTraits("x86_64", vector_bytes=64, vector_registers=32, vnni=True, threads=2)
    check_winograd(workload, traits)


@pytest.mark.parametrize("m", [2, 4, 6])
def test_winograd_matrices_compute_a_convolution_exactly(m: int) -> None:
    t = transforms(m)
    rng = np.random.default_rng(m)
    d, g = rng.standard_normal(m + 2), rng.standard_normal(3)
    y = np.array(t.output) @ ((np.array(t.weights) @ g) * (np.array(t.data) @ d))
    np.testing.assert_allclose(y, np.convolve(d, g[::-1], "valid"), rtol=1e-12, atol=1e-12)


def test_winograd_error_of_deep_layers_stays_within_its_limit() -> None:
    workload = ch.conv((1, 512, 7, 7), 32, 3, after="none")
    check_winograd(workload, harness.AVX512)


def test_one_infinity_reaches_only_its_neighbours_in_a_direct_convolution() -> None:
    workload = ch.conv((1, 16, 9, 9), 16, 3, after="none")
    inputs = harness.random_inputs(workload)
    inputs[0][0, 3, 4, 4] = np.inf
    (candidate,) = (
        c for c in conv_direct.candidates(workload, harness.AVX512) if c.layouts[0] == Layout(16)
    )
    actual = harness.run_candidate(candidate, workload, inputs, harness.AVX512)
    finite = np.isfinite(actual[0, 0])
    assert not finite[3:6, 3:6].any()
    finite[3:6, 3:6] = True
    assert finite.all()


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (ch.conv((1, 32, 8, 8), 32, 3), (2, 0, 2)),
        (ch.conv((1, 32, 8, 8), 32, 1), (0, 1, 0)),
        (ch.conv((1, 32, 8, 8), 32, 1, 2), (2, 0, 0)),
        (ch.conv((1, 32, 8, 8), 32, 3, 2), (2, 0, 0)),
        (ch.conv((1, 32, 8, 8), 32, 3, groups=2), (0, 0, 0)),
        (ch.conv_transpose((1, 32, 8, 8), 32, 3), (0, 0, 0)),
    ],
)
def test_each_family_takes_only_its_kind(
    workload: Workload, expected: tuple[int, int, int]
) -> None:
    families = (conv_direct, conv_pointwise, conv_winograd)
    found = tuple(len(f.candidates(workload, harness.AVX2)) for f in families)
    assert tuple(bool(n) for n in found) == tuple(bool(n) for n in expected)


def test_weights_computed_at_run_time_are_not_packed() -> None:
    constant = ch.conv((1, 32, 8, 8), 32, 3)
    op = constant.op
    workload = Workload(Op(op.kind, op.inputs, op.output, op.attrs, (False, False)))
    families = (conv_direct, conv_pointwise, conv_winograd)
    assert not any(f.candidates(workload, harness.AVX512) for f in families)


def test_narrow_images_are_read_row_major() -> None:
    workload = ch.conv((1, 3, 32, 32), 32, 3)
    (candidate,) = conv_direct.candidates(workload, harness.AVX512)
    assert candidate.layouts[0] == PLAIN
    assert candidate.output == Layout(16)
