"""Fused attention against NumPy in float64."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.special
from harness import (
    ALL_TRAITS,
    AVX512,
    nests,
    random_inputs,
    reference_epilogue,
    relative_error,
    run_candidate,
    scheduled,
    serial_extents,
)

from schedules import attention
from schedules.interface import Candidate, Epilogue, Op, Step, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]
LIMIT = 1e-5


def workload_of(
    batch: int,
    heads: int,
    rows: int,
    keys: int,
    depth: int,
    width: int,
    mask: tuple[int, ...] | None = None,
    dtype: str = "float32",
    epilogue: Epilogue | None = None,
) -> Workload:
    shapes = [(batch, heads, rows, depth), (batch, heads, keys, depth), (batch, heads, keys, width)]
    if mask is not None:
        shapes.append(mask)
    op = Op(
        "attention",
        tuple(TensorSig(s, dtype) for s in shapes),
        TensorSig((batch, heads, rows, width), dtype),
        (("scale", depth**-0.5),),
        (False,) * len(shapes),
    )
    return Workload(op, epilogue or Epilogue(dtype=dtype))


def reference(workload: Workload, inputs: Sequence[Array]) -> Array:
    q, k, v, *mask = (x.astype(np.float64) for x in inputs[: len(workload.op.inputs)])
    scores = q @ k.swapaxes(-1, -2) * workload.op.attr("scale")
    for m in mask:
        scores = scores + m
    with np.errstate(invalid="ignore"):
        result: Array = scipy.special.softmax(scores, axis=-1) @ v
    return result


SHAPES = [
    ((1, 2, 128, 128, 32, 32), (1, 1, 1, 128)),
    ((1, 3, 197, 197, 64, 64), None),
    ((2, 2, 5, 7, 3, 5), (5, 7)),
    ((2, 2, 1, 33, 16, 24), (2, 1, 1, 33)),
    ((1, 1, 49, 1, 1, 1), None),
]


@pytest.mark.parametrize(("sizes", "mask"), SHAPES, ids=str)
@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
def test_shapes(
    sizes: tuple[int, int, int, int, int, int], mask: tuple[int, ...] | None, traits: TargetTraits
) -> None:
    workload = workload_of(*sizes, mask)
    inputs = random_inputs(workload)
    (candidate,) = attention.candidates(workload, traits)
    actual = run_candidate(candidate, workload, inputs, traits)
    assert relative_error(actual, reference(workload, inputs)) <= LIMIT
    assert not serial_extents(scheduled(candidate))


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_every_number_of_workers(threads: int) -> None:
    workload = workload_of(1, 1, 130, 40, 16, 20)
    inputs = random_inputs(workload)
    traits = replace(AVX512, threads=threads)
    (candidate,) = attention.candidates(workload, traits)
    actual = run_candidate(candidate, workload, inputs, traits)
    assert relative_error(actual, reference(workload, inputs)) <= LIMIT


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
def test_whatever_is_decided(traits: TargetTraits) -> None:
    workload = workload_of(1, 2, 37, 50, 24, 20, (37, 50))
    inputs = random_inputs(workload)
    expected = reference(workload, inputs)
    (candidate,) = attention.candidates(workload, traits)
    assert candidate.space is not None
    assert candidate.space.make(dict(candidate.decisions)) == candidate
    rng = random.Random(traits.lanes)
    made: list[Candidate] = []
    while len(made) < 6:
        drawn = candidate.space.make({k.name: rng.choice(k.values) for k in candidate.space.knobs})
        if drawn is not None:
            made.append(drawn)
    for each in made:
        actual = run_candidate(each, workload, inputs, traits)
        assert relative_error(actual, expected) <= LIMIT, each.decisions


def test_tiles_that_do_not_fit_the_registers_make_no_kernel() -> None:
    (candidate,) = attention.candidates(workload_of(1, 2, 37, 50, 24, 20), AVX512)
    assert candidate.space is not None
    values = dict(candidate.decisions) | {"vectors": 6, "height": 9}
    assert candidate.space.make(values) is None


def test_many_keys_need_no_whole_matrix() -> None:
    workload = workload_of(1, 1, 100, 3000, 8, 8)
    inputs = random_inputs(workload)
    (candidate,) = attention.candidates(workload, AVX512)
    (loop,) = nests(scheduled(candidate))
    assert int(loop.extent) >= 4  # 100 × 3000 scores are 1.2 MB, a quarter of the cache is 256 KiB
    actual = run_candidate(candidate, workload, inputs, AVX512)
    assert relative_error(actual, reference(workload, inputs)) <= LIMIT


def test_large_scores_do_not_overflow() -> None:
    workload = workload_of(1, 1, 20, 30, 16, 16)
    inputs = random_inputs(workload, scale=40.0)
    (candidate,) = attention.candidates(workload, AVX512)
    actual = run_candidate(candidate, workload, inputs, AVX512)
    # Scores of thousands lose absolute precision before the exponential does.
    assert relative_error(actual, reference(workload, inputs)) <= 3e-3


def test_masks() -> None:
    """−inf hides a key, a row without keys is NaN, finite masks of −3e38 are a softmax of ties."""
    workload = workload_of(1, 2, 17, 40, 16, 16, (17, 40))
    inputs = random_inputs(workload)
    mask = np.zeros((17, 40), np.float32)
    mask[0, 3:] = -np.inf
    mask[1] = -np.inf
    mask[2] = -3e38
    inputs[3] = mask
    (candidate,) = attention.candidates(workload, AVX512)
    actual = run_candidate(candidate, workload, inputs, AVX512)
    expected = reference(workload, inputs)
    assert np.isnan(actual[:, :, 1]).all()
    # In float32 the scores vanish beside −3e38, so all keys weigh the same.
    expected[:, :, 2] = inputs[2].astype(np.float64).mean(axis=2)
    kept = [i for i in range(17) if i != 1]
    assert relative_error(actual[:, :, kept], expected[:, :, kept]) <= LIMIT


def test_double_precision() -> None:
    workload = workload_of(1, 2, 9, 21, 8, 12, dtype="float64")
    inputs = random_inputs(workload)
    (candidate,) = attention.candidates(workload, AVX512)
    actual = run_candidate(candidate, workload, inputs, AVX512)
    assert relative_error(actual, reference(workload, inputs)) <= 1e-12


def test_epilogue() -> None:
    steps = Epilogue((TensorSig((1, 1, 9, 12)),), (Step("add", (0, 1)), Step("relu", (2,))))
    workload = workload_of(1, 2, 9, 21, 8, 12, epilogue=steps)
    inputs = random_inputs(workload)
    (candidate,) = attention.candidates(workload, AVX512)
    actual = run_candidate(candidate, workload, inputs, AVX512)
    value = reference(workload, inputs)
    expected = reference_epilogue(steps, value, inputs[3:], value.shape)
    assert relative_error(actual, expected) <= LIMIT


@pytest.mark.parametrize("inside", list(itertools.product((False, True), repeat=4)), ids=str)
def test_heads_inside(inside: tuple[bool, bool, bool, bool]) -> None:
    """Any of q, k, v and the output as (B,S,H,D): the same values at other places."""
    steps = Epilogue((TensorSig((2, 1, 19, 20)),), (Step("add", (0, 1)),))
    outside = workload_of(2, 3, 19, 21, 17, 20, (2, 1, 19, 21), epilogue=steps)
    inputs = random_inputs(outside)
    expected = reference_epilogue(steps, reference(outside, inputs), inputs[4:], (2, 3, 19, 20))

    def sig(given: TensorSig, swap: bool) -> TensorSig:
        b, h, s, d = given.shape
        return replace(given, shape=(b, s, h, d) if swap else given.shape)

    op = outside.op
    moved = tuple(sig(s, i) for s, i in zip(op.inputs, (*inside[:3], False), strict=True))
    operand = sig(steps.operands[0], inside[3])
    workload = Workload(
        replace(
            op,
            inputs=moved,
            output=sig(op.output, inside[3]),
            attrs=(*op.attrs, ("heads_inside", inside)),
        ),
        replace(steps, operands=(operand,)),
    )
    swaps = (*inside[:3], False, inside[3])
    given = [x.swapaxes(1, 2) if i else x for x, i in zip(inputs, swaps, strict=True)]
    (candidate,) = attention.candidates(workload, AVX512)
    (plain,) = attention.candidates(outside, AVX512)
    assert candidate.cost == plain.cost
    actual = run_candidate(candidate, workload, given, AVX512)
    actual = actual.swapaxes(1, 2) if inside[3] else actual
    assert relative_error(actual, expected) <= LIMIT
