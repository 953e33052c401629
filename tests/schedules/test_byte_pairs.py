"""Products of two matrices of bytes that are computed at run time, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from harness import AMX, AVX2, AVX512, SSE, run_candidate, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bytes import NEON, WAYS

from schedules import batched_matmul, gemv, matmul_byte_pairs
from schedules.interface import Candidate, Epilogue, Op, Step, TargetTraits, TensorSig, Workload

TYPES = ("uint8", "int8")
SHAPES = [
    ((2, 3, 33, 32), (2, 3, 32, 40), False),
    ((2, 3, 33, 32), (2, 3, 40, 32), True),
    ((3, 20, 197), (3, 197, 64), False),
    ((3, 20, 64), (3, 197, 64), True),
    ((2, 1, 5, 7), (1, 3, 7, 3), False),
    ((7, 30), (2, 19, 30), True),
    ((2, 2, 9, 130), (130, 17), False),
    ((1, 48, 80), (1, 80, 100), False),
    ((17, 2), (5, 2), True),
]


def products(
    a: tuple[int, ...],
    b: tuple[int, ...],
    transposed: bool,
    types: tuple[str, str],
    zeros: tuple[int, int],
    scaled: bool = False,
) -> Workload:
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    shape = (*batch, a[-2], b[-2] if transposed else b[-1])
    attrs = (("transpose_b", transposed), *([("zeros", zeros)] if any(zeros) else []))
    op = Op(
        "matmul_offset" if any(zeros) else "matmul",
        (TensorSig(a, types[0]), TensorSig(b, types[1])),
        TensorSig(shape, "int32"),
        attrs,
        (False, False),
    )
    if not scaled:
        return Workload(op, Epilogue((), (), "int32"))
    steps = (
        Step("cast", (0,), (("dtype", "float32"),)),
        Step("constant", (), (("dtype", "float32"), ("value", 2.0**-9))),
        Step("multiply", (2, 3)),
        Step("add", (4, 1)),
    )
    operand = TensorSig((*(1 for _ in shape[:-1]), shape[-1]))
    return Workload(op, Epilogue((operand,), steps, "float32", (False,)))


def check(workload: Workload, candidate: Candidate, traits: TargetTraits) -> None:
    rng = np.random.default_rng(3)
    op = workload.op
    bounds = [np.iinfo(sig.dtype) for sig in op.inputs]
    inputs = [
        rng.integers(bound.min, bound.max + 1, sig.shape).astype(sig.dtype)
        for bound, sig in zip(bounds, op.inputs, strict=True)
    ]
    zeros = dict(op.attrs).get("zeros", (0, 0))
    left, right = (x.astype("i8") - zero for x, zero in zip(inputs, zeros, strict=True))
    want = left @ (right.swapaxes(-1, -2) if op.attr("transpose_b") else right)
    if workload.epilogue.steps:
        operand = rng.standard_normal(workload.epilogue.operands[0].shape).astype("f4")
        inputs.append(operand)
        want = want.astype("f4") * np.float32(2.0**-9) + operand
    got = run_candidate(candidate, workload, inputs, traits)
    np.testing.assert_array_equal(got, want.astype(got.dtype))


@pytest.mark.parametrize("traits", WAYS)
@pytest.mark.parametrize("case", enumerate(SHAPES), ids=lambda case: str(case[1]))
def test_products(case, traits):
    number, (a, b, transposed) = case
    types = [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8"), ("int8", "uint8")]
    zeros = [(117, -5), (3, 130), (0, 0), (-128, 0), (0, 77)]
    pair = types[number % 4]
    point = zeros[number % 5]
    point = tuple(
        zero if t == "uint8" else max(-128, min(127, zero)) if zero < 128 else zero - 128
        for zero, t in zip((abs(point[0]), abs(point[1])), pair, strict=True)
    )
    workload = products(a, b, transposed, pair, point, scaled=number % 2 == 1)
    (candidate,) = matmul_byte_pairs.candidates(workload, traits)
    check(workload, candidate, traits)


@pytest.mark.parametrize("traits", [WAYS[1], WAYS[2], WAYS[4]])
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_every_sign_and_every_kernel_of_a_space_is_exact(traits, data):
    rows, depth, columns = (data.draw(st.integers(1, most)) for most in (40, 140, 70))
    transposed = data.draw(st.booleans())
    types = (data.draw(st.sampled_from(TYPES)), data.draw(st.sampled_from(TYPES)))
    zeros = tuple(data.draw(st.integers(*bounds(t)) | st.just(0)) for t in types)
    b = (columns, depth) if transposed else (depth, columns)
    workload = products((2, rows, depth), (2, *b), transposed, types, zeros)
    (candidate,) = matmul_byte_pairs.candidates(workload, traits)
    values = {knob.name: data.draw(st.sampled_from(knob.values)) for knob in candidate.space.knobs}
    check(workload, candidate.space.make(values) or candidate, traits)


def bounds(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


@pytest.mark.parametrize("traits", [AVX512, AVX2, SSE])
@pytest.mark.parametrize(
    ("a", "b", "transposed"), [*SHAPES[1:4], ((3, 2, 70), (3, 9, 70), True)], ids=str
)
def test_other_kernels_subtract_zero_points_too(a, b, transposed, traits):
    workload = products(a, b, transposed, ("int8", "uint8"), (-7, 250))
    found = [*batched_matmul.candidates(workload, traits), *gemv.candidates(workload, traits)]
    assert found
    for candidate in found:
        check(workload, candidate, traits)


def test_they_are_offered_only_where_there_are_instructions():
    workload = products((2, 8, 64), (2, 64, 8), False, ("uint8", "int8"), (0, 0))
    assert matmul_byte_pairs.candidates(workload, AMX)
    assert matmul_byte_pairs.candidates(workload, replace(NEON, dotprod=True))
    assert not matmul_byte_pairs.candidates(workload, NEON)
    wide = replace(workload, op=replace(workload.op, inputs=(TensorSig((2, 8, 64), "int16"),) * 2))
    assert not matmul_byte_pairs.candidates(wide, AMX)


@pytest.mark.parametrize(
    ("features", "name"), [({}, "sdot"), ({"i8mm": True}, "usdot")], ids=["dotprod", "i8mm"]
)
def test_code_for_aarch64(features, name):
    workload = products(*SHAPES[3][:2], True, ("uint8", "uint8"), (9, 120))
    traits = replace(NEON, dotprod=True, **features)
    (candidate,) = matmul_byte_pairs.candidates(workload, traits)
    attrs = ["+dotprod", "+i8mm"] if features else ["+dotprod"]
    target = tvm.target.Target(
        {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": attrs},
        host={"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": attrs},
    )
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        module = tvm.driver.build(tvm.IRModule({"main": scheduled(candidate)}), target=target)
    assembly = module.inspect_source("asm")
    assert name in assembly
    assert "udot" in assembly
