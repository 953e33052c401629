"""Functions of a byte by table, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from harness import AVX2, AVX512, run_candidate

from graphopt.runtime.host import host_features
from schedules import lookup
from schedules.interface import Epilogue, Layout, Op, Step, TensorSig, Workload

RNG = np.random.default_rng(2)
WAYS = [
    pytest.param(
        replace(AVX512, vbmi=True, threads=2),
        marks=pytest.mark.skipif("avx512vbmi" not in host_features(), reason="no VBMI here"),
        id="vbmi",
    ),
    pytest.param(AVX2, id="indexed"),
]


@pytest.mark.parametrize("traits", WAYS)
@pytest.mark.parametrize(("source", "target"), [("uint8", "int8"), ("int8", "uint8")])
@pytest.mark.parametrize("shape", [(3, 70, 5, 7), (2, 5000), (61,)], ids=str)
def test_lookups(shape, source, target, traits):
    x = RNG.integers(0, 256, shape).astype("u1").view(source)
    table = RNG.integers(1, 256, 256).astype("u1").view(target)
    op = Op(
        "lookup",
        (TensorSig(shape, source), TensorSig((256,), target)),
        TensorSig(shape, target),
        (),
        (False, True),
    )
    steps = (Step("cast", (0,), (("dtype", "float32"),)), Step("multiply", (2, 1)))
    operand = TensorSig((1,) * (len(shape) - 1) + shape[-1:])
    scaled = Workload(op, Epilogue((operand,), steps, "float32", (False,)))
    want = table[x.view("u1")]
    factor = RNG.random(operand.shape).astype("f4")
    plain = Workload(op, Epilogue((), (), target))
    found = lookup.candidates(plain, traits)
    assert [c.output for c in found] == [Layout()] + [Layout(48)] * (len(shape) > 2)
    for candidate in found:
        got = run_candidate(candidate, plain, [x, table], traits)
        np.testing.assert_array_equal(got, want)
    for candidate in lookup.candidates(scaled, traits):
        got = run_candidate(candidate, scaled, [x, table, factor], traits)
        np.testing.assert_array_equal(got, want.astype("f4") * factor)
