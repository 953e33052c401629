"""Every kernel that a space offers is right, whatever is decided."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import conv_harness as ch
import harness
import products
import pytest

from schedules.interface import Candidate, Numerics, Space, TargetTraits, Workload
from schedules.registry import FAMILIES
from schedules.space import divisors, shares, tunable

DRAWN = 3
"""Kernels of each space that are run."""

WIDE = max(harness.ALL_TRAITS, key=lambda traits: traits.lanes)

CONVOLUTIONS = {
    "first": ch.conv((1, 3, 17, 19), 24, 3, 2),
    "3x3": ch.conv((1, 24, 13, 13), 48, 3, after="residual"),
    "small-map": ch.conv((1, 32, 7, 7), 64, 3, after="bias_relu"),
    "batch": ch.conv((2, 16, 9, 8), 40, 3, after="silu"),
    "pointwise": ch.conv((1, 72, 7, 7), 64, 1, after="residual"),
    "strided": ch.conv((1, 40, 9, 9), 32, 1, 2),
    "depthwise": ch.conv((1, 40, 15, 15), 40, 3, 2, groups=40),
    "grouped": ch.conv((1, 32, 9, 9), 64, 3, groups=2),
    "narrow": ch.conv((1, 32, 9, 9), 32, 3, 2, groups=8),
}
MATMULS = {
    "packed": products.matmul((1, 37, 40), (40, 70), constant=True),
    "row": products.matmul((1, 1, 64), (64, 100), constant=True),
    "batched": products.matmul((2, 3, 17, 24), (2, 3, 24, 33)),
    "transposed": products.matmul((2, 3, 24), (2, 30, 24), transpose_b=True),
    "few-columns": products.matmul((5, 64), (64, 3), constant=True),
}


def tunables(workload: Workload, traits: TargetTraits) -> list[Candidate]:
    found = [c for family in FAMILIES for c in family(workload, traits)]
    return [candidate for candidate in found if candidate.space is not None]


def drawn(space: Space, seed: str) -> Iterator[Candidate]:
    rng, count = random.Random(seed), 0
    for _ in range(400):
        made = space.make({knob.name: rng.choice(knob.values) for knob in space.knobs})
        if made is not None:
            yield made
            count += 1
        if count == DRAWN:
            return


@pytest.mark.parametrize("traits", harness.ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, traits: TargetTraits) -> None:
    workload = CONVOLUTIONS[name]
    inputs = harness.random_inputs(workload)
    expected = ch.reference(workload, inputs)
    candidates = tunables(workload, traits)
    assert candidates
    for candidate in candidates:
        assert candidate.space is not None
        for made in drawn(candidate.space, name + candidate.name):
            actual = harness.run_candidate(made, workload, inputs, traits)
            error = harness.relative_error(actual, expected)
            limit = 4e-5 if candidate.numerics == Numerics.RELAXED else 1e-5
            assert error <= limit, (made.name, made.decisions, error)


@pytest.mark.parametrize("name", MATMULS)
def test_products(name: str) -> None:
    workload = MATMULS[name]
    inputs = harness.random_inputs(workload)
    expected, largest = products.product(workload, inputs)
    candidates = tunables(workload, WIDE)
    assert candidates
    for candidate in candidates:
        assert candidate.space is not None
        for made in drawn(candidate.space, name + candidate.name):
            actual = harness.run_candidate(made, workload, inputs, WIDE)
            error = abs(actual - expected).max() / largest
            assert error <= products.LIMIT, (made.name, made.decisions, error)


@pytest.mark.parametrize("workload", [*CONVOLUTIONS.values(), *MATMULS.values()],
                         ids=[*CONVOLUTIONS, *MATMULS])  # fmt: skip
def test_the_default_is_one_of_the_space_and_replays(workload: Workload) -> None:
    names = []
    for candidate in tunables(workload, WIDE):
        assert candidate.space is not None
        values = dict(candidate.decisions)
        assert [knob.name for knob in candidate.space.knobs] == list(values)
        for knob in candidate.space.knobs:
            assert values[knob.name] in knob.values
            assert list(knob.values) == sorted(set(knob.values))
        again = candidate.space.make(values)
        assert again == candidate
        names.append(candidate.name)
    assert len(names) == len(set(names)), "a record finds its candidate by name"


@pytest.mark.parametrize("traits", harness.ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
def test_every_default_can_be_made(traits: TargetTraits) -> None:
    # Making candidates fails where default decisions do not fit; nothing is compiled here.
    count = 0
    for rows, columns, depth in itertools.product((1, 2, 4, 5, 197), (1, 3, 24, 1000), (1, 64)):
        for more in ({"constant": True}, {}, {"transpose_b": True}):
            b = (columns, depth) if "transpose_b" in more else (depth, columns)
            count += len(tunables(products.matmul((rows, depth), b, **more), traits))
    sizes = itertools.product((1, 3, 16, 40, 256), (7, 14, 57), (1, 16, 24, 96, 512), (1, 3, 5, 7))
    for channels, size, filters, kernel in sizes:
        for stride in (1, 2):
            image = (1, channels, size, size)
            count += len(tunables(ch.conv(image, filters, kernel, stride), traits))
    for channels, groups in ((32, 32), (40, 40), (64, 2), (48, 4)):
        count += len(tunables(ch.conv((1, channels, 14, 14), channels, 3, groups=groups), traits))
    assert count > 500


def test_decisions_that_do_not_fit_the_registers_make_no_kernel() -> None:
    (candidate,) = (
        c for c in tunables(CONVOLUTIONS["3x3"], WIDE) if c.name == "conv2d.direct[blocked]"
    )
    assert candidate.space is not None
    values = dict(candidate.decisions) | {"pixels": 13, "vectors": 3, "rows": 1}
    assert candidate.space.make(values) is None


def test_a_default_that_cannot_be_made_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="do not fit together"):
        tunable([], {}, lambda values: None)


def test_equal_shares() -> None:
    assert shares(10, 10) == (1, 2, 3, 4, 5, 10)
    assert shares(10, 4) == (1, 2, 3, 4)
    assert divisors(12, 8) == (1, 2, 3, 4, 6)
