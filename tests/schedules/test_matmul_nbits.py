"""Products with weights of few bits, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512, run_candidate
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.runtime.host import host_features
from schedules import matmul_nbits, matmul_nbits_digits, matmul_nbits_rows
from schedules.interface import (
    Candidate,
    Epilogue,
    Numerics,
    Op,
    Step,
    TargetTraits,
    TensorSig,
    Workload,
)

RNG = np.random.default_rng(5)
POINTS = ("half", "one", "bytes", "floats")
Array = np.ndarray
Case = tuple[Workload, list[Array], Array, float]
"""A workload, its inputs, the result, and the largest sum of magnitudes."""


def case(
    rows: int, depth: int, columns: int, *, bits: int, block: int, points: str, bias: bool = False
) -> Case:
    """A case whose zero points are as `points` says."""
    blocks = -(-depth // block)
    codes = RNG.integers(0, 1 << bits, (blocks * block, columns)).astype("u1")
    each = 8 // bits
    parts = codes.reshape(-1, each, columns)
    packed = sum(parts[:, i].astype("u2") << (i * bits) for i in range(each)).astype("u1")
    a = RNG.standard_normal((rows, depth)).astype("f4")
    scales = RNG.random((blocks, columns)).astype("f4")
    zeros = {
        "half": np.full((blocks, columns), 1 << (bits - 1), "f4"),
        "one": np.full((blocks, columns), 1.5, "f4"),
        "bytes": RNG.integers(0, 1 << bits, (blocks, columns)).astype("u1"),
        "floats": RNG.random((blocks, columns)).astype("f4") * (1 << bits),
    }[points]
    shared = points in ("half", "one")
    matrix = codes.astype("f8") - zeros.astype("f8").repeat(block, 0)
    weights = scales.astype("f8").repeat(block, 0)
    want = a.astype("f8") @ (matrix * weights)[:depth]
    magnitudes = (codes + zeros.astype("f8").repeat(block, 0)) * weights
    most = float((np.abs(a) @ magnitudes[:depth]).max())
    inputs = [a, packed, scales, *([] if shared else [zeros])]
    op = Op(
        "matmul_nbits",
        tuple(TensorSig(v.shape, v.dtype.name) for v in inputs),
        TensorSig(want.shape),
        (("bits", bits), ("block", block), ("zero", float(zeros.flat[0]) if shared else 0.0)),
        (False, *(True for _ in inputs[1:])),
    )
    if not bias:
        return Workload(op), inputs, want, most
    added = RNG.standard_normal((1, columns)).astype("f4")
    steps = (Step("add", (0, 1)), Step("relu", (2,)))
    workload = Workload(op, Epilogue((TensorSig((1, columns)),), steps, "float32", (True,)))
    return workload, [*inputs, added], np.maximum(want + added, 0), most


def check(candidate: Candidate, made: Case, traits: TargetTraits) -> None:
    workload, inputs, want, most = made
    got = run_candidate(candidate, workload, inputs, traits)
    limit = 2e-6 * np.sqrt(inputs[0].shape[-1]) * max(most, 1.0)
    assert np.abs(got - want).max() <= limit, candidate.name


needs_vnni = pytest.mark.skipif(
    "avx512vnni" not in host_features(), reason="this machine has no VNNI"
)
WAYS = [pytest.param(AVX512, marks=needs_vnni, id="avx512"), *ALL_TRAITS[1:]]


@pytest.mark.parametrize("traits", WAYS, ids=["avx512", "avx2", "sse"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("rows", "points"), zip((1, 3, 20, 40), POINTS, strict=True))
def test_products(rows, points, bits, traits):
    made = case(rows, 76, 85, bits=bits, block=16, points=points, bias=rows == 3)
    found = [
        *matmul_nbits.candidates(made[0], traits),
        *matmul_nbits_rows.candidates(made[0], traits),
        *matmul_nbits_digits.candidates(made[0], traits),
    ]
    assert len(found) == 2 + (rows < 40) * (1 + traits.vnni)
    for candidate in found:
        check(candidate, made, traits)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_every_kernel_of_few_rows(data):
    rows, depth, columns = (data.draw(st.integers(1, most)) for most in (20, 300, 150))
    bits, points = data.draw(st.sampled_from((2, 4, 8))), data.draw(st.sampled_from(POINTS))
    block = data.draw(st.sampled_from((16, 32, 128)))
    made = case(rows, depth, columns, bits=bits, block=block, points=points)
    usable = ALL_TRAITS if "avx512vnni" in host_features() else ALL_TRAITS[1:]
    traits = data.draw(st.sampled_from(usable))
    families = (matmul_nbits_rows, matmul_nbits_digits)
    found = [c for family in families for c in family.candidates(made[0], traits)]
    candidate = data.draw(st.sampled_from(found))
    values = {knob.name: data.draw(st.sampled_from(knob.values)) for knob in candidate.space.knobs}
    check(candidate.space.make(values) or candidate, made, traits)


def test_blocks_that_divide_no_step_are_left_to_others():
    workload, *_ = case(1, 64, 16, bits=4, block=4, points="half")
    assert not matmul_nbits_rows.candidates(workload, AVX512)
    assert matmul_nbits.candidates(workload, AVX512)


@needs_vnni
def test_digits_of_rows_that_are_not_finite():
    """Such a row is NaN; others are what they are. Strict numerics do without this kernel."""
    made = case(3, 70, 33, bits=4, block=32, points="bytes")
    workload, inputs, want, most = made
    (candidate,) = matmul_nbits_digits.candidates(workload, AVX512)
    assert candidate.numerics > Numerics.STRICT
    inputs[0][0, 5], inputs[0][2, 68] = np.nan, np.inf
    got = run_candidate(candidate, workload, inputs, AVX512)
    assert not np.isfinite(got[[0, 2]]).any()
    assert np.abs(got[1] - want[1]).max() <= 2e-5 * most


@needs_vnni
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e30])
def test_digits_of_rows_that_are_tiny_or_huge(scale):
    workload, inputs, want, most = case(2, 64, 40, bits=8, block=32, points="half")
    (candidate,) = matmul_nbits_digits.candidates(workload, AVX512)
    inputs[0] *= np.float32(scale)
    got = run_candidate(candidate, workload, inputs, AVX512)
    assert np.abs(got - want * scale).max() <= max(2e-5 * most * scale, 1e-33)
