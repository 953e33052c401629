"""Kernels of bytes in tiles, against NumPy: exact sums, and what an epilogue makes of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from harness import AMX, AVX2, AVX512, SSE, build, host_target, run_candidate, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st
from test_integer_products import convolution

from graphopt.runtime.host import host_features
from schedules import (
    conv_bytes,
    conv_bytes_depthwise,
    conv_bytes_narrow,
    conv_bytes_winograd,
    conv_bytes_words,
    matmul_bytes,
)
from schedules.byte_tiles import TilePlan
from schedules.interface import (
    Candidate,
    Epilogue,
    Layout,
    Op,
    Step,
    TargetTraits,
    TensorSig,
    Workload,
    channel_block,
)

needs_tiles = pytest.mark.skipif(
    "amx-int8" not in host_features(), reason="this machine has no AMX, or does not let us use it"
)
needs_vnni = pytest.mark.skipif(
    "avx512vnni" not in host_features(), reason="this machine has no VNNI"
)
NEON = TargetTraits("aarch64", vector_bytes=16, vector_registers=32)
FAMILIES = (conv_bytes, conv_bytes_narrow, conv_bytes_depthwise)
WAYS = [
    pytest.param(AMX, marks=needs_tiles, id="amx"),
    pytest.param(replace(AMX, threads=3), marks=needs_tiles, id="amx3"),
    pytest.param(replace(AVX512, threads=3), marks=needs_vnni, id="vnni"),
    pytest.param(replace(AVX512, vnni=False), marks=needs_vnni, id="avx512"),
    pytest.param(replace(AVX2, threads=2), id="avx2"),
    pytest.param(SSE, id="sse"),
]


def requantized(op: Op, channel: int) -> Workload:
    """`op` with a bias, a scale for each of `channel`'s elements, and an offset result in bytes."""
    rank = len(op.output.shape)
    shape = tuple(op.output.shape[i] if i == channel % rank else 1 for i in range(rank))
    steps = (
        Step("add", (0, 1)),
        Step("cast", (3,), (("dtype", "float32"),)),
        Step("multiply", (4, 2)),
        Step("constant", (), (("dtype", "float32"), ("value", 0.75))),
        Step("constant", (), (("dtype", "uint8"), ("value", 90))),
        Step("requantize", (5, 6, 7)),
    )
    operands = (TensorSig(shape, "int32"), TensorSig(shape))
    return Workload(op, Epilogue(operands, steps, "uint8", (True, True)))


def conv(
    image: tuple[int, ...],
    filters: tuple[int, ...],
    strides: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Op:
    groups = image[1] // filters[1]
    size = [
        (image[2 + i] + padding[i] + padding[2 + i] - dilation[i] * (filters[2 + i] - 1) - 1)
        // strides[i]
        + 1
        for i in range(2)
    ]
    attrs = {
        "strides": strides,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "pad_value": 7,
    }
    return Op(
        "conv_integer",
        (TensorSig(image, "uint8"), TensorSig(filters, "int8")),
        TensorSig((image[0], filters[0], *size), "int32"),
        tuple(attrs.items()),
        (False, True),
    )


def matmul(a: tuple[int, ...], b: tuple[int, ...], transposed: bool) -> Op:
    columns = b[-2] if transposed else b[-1]
    return Op(
        "matmul",
        (TensorSig(a, "uint8"), TensorSig(b, "int8")),
        TensorSig((*a[:-1], columns), "int32"),
        (("transpose_b", transposed),),
        (False, True),
    )


def inputs_of(workload: Workload, seed: int = 1) -> list[np.ndarray]:
    """The whole range of bytes; biases and scales such that results saturate now and then."""
    rng = np.random.default_rng(seed)
    terms = np.prod(workload.op.inputs[1].shape[1:]) + 1
    draw = {
        "uint8": lambda shape: rng.integers(0, 256, shape),
        "int8": lambda shape: rng.integers(-128, 128, shape),
        "int32": lambda shape: rng.integers(-5000, 5000, shape),
        "float32": lambda shape: rng.random(shape) * 0.02 / np.sqrt(terms),
    }
    return [draw[sig.dtype](sig.shape).astype(sig.dtype) for sig in workload.inputs]


def finished(workload: Workload, sums: np.ndarray, inputs: list[np.ndarray]) -> np.ndarray:
    if not workload.epilogue.steps:
        return sums.astype(np.int32)
    value = (sums + inputs[2]).astype(np.float32) * inputs[3] * np.float32(0.75)
    return np.clip(np.rint(value) + 90, 0, 255).astype(np.uint8)


def check(workload: Workload, candidate: Candidate, traits: TargetTraits, seed: int = 1) -> None:
    inputs = inputs_of(workload, seed)
    op = workload.op
    if op.kind == "matmul":
        right = inputs[1].astype("i8")
        sums = inputs[0].astype("i8") @ (
            right.swapaxes(-1, -2) if op.attr("transpose_b") else right
        )
    else:
        sums = convolution(inputs[0], inputs[1], dict(op.attrs))
    want = finished(workload, sums, inputs)
    np.testing.assert_array_equal(run_candidate(candidate, workload, inputs, traits), want)


CONVOLUTIONS: list[tuple[str, dict[str, Any]]] = [
    ("tiles", {"image": (1, 64, 9, 9), "filters": (64, 64, 3, 3), "padding": (1, 1, 1, 1)}),
    ("tiles", {"image": (2, 70, 6, 5), "filters": (33, 70, 1, 1)}),
    ("tiles", {"image": (1, 130, 7, 7), "filters": (96, 130, 1, 1), "strides": (2, 2)}),
    ("tiles", {"image": (1, 16, 20, 1), "filters": (200, 16, 5, 1), "padding": (0, 0, 4, 0)}),
    (
        "tiles",
        {
            "image": (2, 24, 13, 37),
            "filters": (40, 24, 3, 2),
            "strides": (2, 3),
            "padding": (0, 2, 1, 1),
            "dilation": (2, 3),
        },
    ),
    (
        "tiles[narrow]",
        {
            "image": (1, 3, 33, 31),
            "filters": (20, 3, 7, 7),
            "strides": (2, 2),
            "padding": (3, 3, 3, 3),
        },
    ),
    ("tiles[narrow]", {"image": (2, 1, 9, 20), "filters": (17, 1, 3, 19)}),
    (
        "tiles[narrow]",
        {
            "image": (1, 13, 6, 7),
            "filters": (5, 13, 4, 5),
            "strides": (1, 3),
            "padding": (1, 0, 0, 2),
        },
    ),
    ("tiles", {"image": (1, 3, 9, 11), "filters": (20, 3, 3, 3), "dilation": (2, 1)}),
    (
        "tiles[grouped]",  # four groups at once, and a last one that is short
        {"image": (1, 72, 7, 9), "filters": (72, 4, 3, 3), "padding": (1, 1, 1, 1)},
    ),
    (
        "tiles[grouped]",  # 24 channels and 24 filters a group, two groups at once
        {
            "image": (2, 120, 6, 11),
            "filters": (120, 24, 3, 3),
            "strides": (2, 1),
            "padding": (1, 1, 1, 1),
        },
    ),
    ("tiles[grouped]", {"image": (1, 240, 5, 6), "filters": (240, 80, 1, 1)}),
    ("tiles[grouped]", {"image": (1, 128, 5, 6), "filters": (192, 64, 2, 1)}),
    ("tiles[grouped]", {"image": (1, 10, 8, 8), "filters": (6, 5, 3, 3)}),
    (
        "tiles[grouped]",  # two filters for each channel
        {"image": (1, 40, 8, 9), "filters": (80, 1, 3, 3), "padding": (1, 1, 0, 1)},
    ),
    (
        "depthwise",
        {"image": (1, 96, 8, 17), "filters": (96, 1, 3, 3), "padding": (1, 1, 1, 1)},
    ),
    (
        "depthwise",
        {
            "image": (2, 35, 12, 9),
            "filters": (35, 1, 5, 3),
            "strides": (2, 1),
            "padding": (2, 0, 1, 2),
            "dilation": (1, 2),
        },
    ),
]


WORDS: list[dict[str, Any]] = [
    {"image": (1, 96, 8, 17), "filters": (96, 1, 3, 3), "padding": (1, 1, 1, 1)},
    {
        "image": (2, 35, 12, 9),
        "filters": (35, 1, 5, 5),
        "strides": (2, 1),
        "padding": (2, 0, 1, 2),
        "dilation": (2, 1),
    },
    {"image": (1, 48, 13, 41), "filters": (48, 1, 7, 7), "padding": (3, 3, 3, 3)},
    {"image": (1, 16, 1, 60), "filters": (16, 1, 1, 31), "padding": (0, 15, 0, 15)},
]


@pytest.mark.parametrize("traits", [WAYS[1], WAYS[2]])
@pytest.mark.parametrize("shape", WORDS, ids=str)
def test_depthwise_by_words(shape, traits):
    workload = requantized(conv(**shape), 1)
    (candidate,) = conv_bytes_words.candidates(workload, traits)
    check(workload, candidate, traits)
    assert candidate.space is not None
    for values in ({"pixels": 5, "rows": 1}, {"pixels": 9, "rows": 2}):
        made = candidate.space.make({k: min(v, shape["image"][2]) for k, v in values.items()})
        assert made is not None
        check(workload, made, traits)


def test_words_are_offered_where_they_help():
    """Of neighbouring taps, with dot products of sixteen sums."""
    plain = {"image": (1, 32, 8, 17), "filters": (32, 1, 3, 3)}
    assert conv_bytes_words.candidates(requantized(conv(**plain), 1), AVX512)
    for traits in (AVX2, SSE, replace(AVX512, vnni=False)):
        assert not conv_bytes_words.candidates(requantized(conv(**plain), 1), traits)
    for more in ({"strides": (1, 2)}, {"dilation": (1, 2)}, {"filters": (64, 1, 3, 3)}):
        assert not conv_bytes_words.candidates(requantized(conv(**{**plain, **more}), 1), AVX512)


def offered(workload: Workload, traits: TargetTraits = AMX) -> Candidate:
    (candidate,) = [c for family in FAMILIES for c in family.candidates(workload, traits)]
    return candidate


@pytest.mark.parametrize("traits", WAYS)
@pytest.mark.parametrize(("name", "shape"), CONVOLUTIONS, ids=str)
def test_convolutions(name, shape, traits):
    workload = requantized(conv(**shape), 1)
    candidate = offered(workload, traits)
    way = name if traits.amx else name.replace("tiles", "dots")
    assert candidate.name == f"conv_integer.{way}"
    check(workload, candidate, traits)


WINOGRAD: list[dict[str, Any]] = [
    {"image": (1, 64, 9, 9), "filters": (64, 64, 3, 3), "padding": (1, 1, 1, 1)},
    {"image": (2, 70, 6, 15), "filters": (33, 70, 3, 3), "padding": (0, 2, 1, 1)},
    {"image": (1, 16, 4, 3), "filters": (20, 16, 3, 3)},
]


@pytest.mark.parametrize("traits", WAYS[3:])
@pytest.mark.parametrize("shape", WINOGRAD, ids=str)
def test_winograd_is_exact(shape, traits):
    workload = requantized(conv(**shape), 1)
    (candidate,) = conv_bytes_winograd.candidates(workload, traits)
    check(workload, candidate, traits)


@pytest.mark.parametrize("value", [-128, 127])
def test_winograd_holds_the_largest_sums(value):
    op = conv((1, 1024, 3, 3), (16, 1024, 3, 3))
    workload = Workload(op, Epilogue((), (), "int32"))
    inputs = [
        np.full(sig.shape, v, sig.dtype) for sig, v in zip(op.inputs, (255, value), strict=True)
    ]
    (candidate,) = conv_bytes_winograd.candidates(workload, AVX2)
    found = run_candidate(candidate, workload, inputs, AVX2)
    np.testing.assert_array_equal(found, 9 * 1024 * 255 * value)


def test_winograd_is_offered_for_plain_3x3_convolutions_without_vnni():
    plain = {"image": (1, 32, 8, 8), "filters": (32, 32, 3, 3)}
    assert conv_bytes_winograd.candidates(requantized(conv(**plain), 1), AVX2)
    for traits in (AVX512, AMX, NEON):
        assert not conv_bytes_winograd.candidates(requantized(conv(**plain), 1), traits)
    for more in (
        {"strides": (2, 1)},
        {"dilation": (2, 2)},
        {"filters": (32, 16, 3, 3)},
        {"filters": (32, 32, 5, 3)},
        {"image": (1, 1040, 4, 4), "filters": (16, 1040, 3, 3)},
    ):
        assert not conv_bytes_winograd.candidates(requantized(conv(**{**plain, **more}), 1), AVX2)


@pytest.mark.parametrize("traits", WAYS)
@pytest.mark.parametrize("output", ["int32", "float32"])
def test_sums_that_stay_integers_or_become_floats_lie_as_float_kernels_read_them(output, traits):
    op = conv((1, 48, 5, 6), (30, 48, 3, 3), padding=(1, 1, 1, 1))
    epilogue = Epilogue((), (), "int32")
    if output == "float32":
        epilogue = Epilogue((), (Step("cast", (0,), (("dtype", "float32"),)),), "float32")
    workload = Workload(op, epilogue)
    candidate = offered(workload, traits)
    assert candidate.output == Layout(traits.lanes)
    inputs = inputs_of(workload)
    found = run_candidate(candidate, workload, inputs, traits)
    np.testing.assert_array_equal(found, convolution(inputs[0], inputs[1], dict(op.attrs)))


@pytest.mark.parametrize("traits", WAYS)
@pytest.mark.parametrize(
    ("a", "b", "transposed"),
    [
        ((1, 512), (512, 100), False),
        ((3, 17, 100), (100, 30), False),
        ((2, 3, 33, 70), (65, 70), True),
        ((5, 7), (7, 3), False),
        ((2, 64, 64), (1, 48, 64), True),
    ],
    ids=str,
)
def test_products(a, b, transposed, traits):
    workload = requantized(matmul(a, b, transposed), -1)
    (candidate,) = matmul_bytes.candidates(workload, traits)
    check(workload, candidate, traits)


@pytest.mark.parametrize("traits", WAYS[1:5])
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_every_kernel_of_a_space_is_exact(traits, data):
    name, shape = data.draw(st.sampled_from(CONVOLUTIONS))
    workload = requantized(conv(**shape), 1)
    space = offered(workload, traits).space
    assert space is not None, name
    values = {knob.name: data.draw(st.sampled_from(knob.values)) for knob in space.knobs}
    made = space.make(values)
    if made is not None:
        check(workload, made, traits)


@pytest.mark.parametrize(
    "workload",
    [
        requantized(conv((1, 64, 5, 5), (64, 64, 3, 3)), 1),
        requantized(matmul((4, 64), (64, 64), False), -1),
    ],
    ids=["conv", "matmul"],
)
def test_they_are_offered_only_where_there_are_instructions_and_the_weights_are_constant(workload):
    families = [*FAMILIES, matmul_bytes]
    assert any(family.candidates(workload, AMX) for family in families)
    varying = replace(workload, op=replace(workload.op, constant=(False, False)))
    signed = (TensorSig(workload.op.inputs[0].shape, "int8"), workload.op.inputs[1])
    other = replace(workload, op=replace(workload.op, inputs=signed))
    for family in families:
        assert not family.candidates(workload, NEON)
        assert not family.candidates(varying, AMX)
        assert not family.candidates(other, AMX)


@pytest.mark.parametrize(("name", "shape"), CONVOLUTIONS, ids=str)
def test_code_for_another_machine_multiplies_tiles(name, shape):
    candidate = offered(requantized(conv(**shape), 1))
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        module = tvm.driver.build(
            tvm.IRModule({"main": scheduled(candidate)}), target=host_target(AMX)
        )
    assert ("tdpbusd" in module.inspect_source("asm")) == ("tiles" in name)


def loops(code: str) -> list[list[str]]:
    """The innermost loops of a function: their instructions."""
    found: list[list[str]] = []
    labels: dict[str, int] = {}
    lines = [line for line in code.splitlines() if not line.startswith(".Ltmp")]
    for i, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels = {label[1]: i}  # a jump back to another one encloses a loop
        jump = re.match(r"\s+j\w+\s+(\.LBB\w+)", line)
        if jump and jump[1] in labels:
            found.append(lines[labels[jump[1]] + 1 : i])
    return found


@pytest.mark.parametrize("traits", WAYS[3:])
@pytest.mark.parametrize(
    "op",
    [
        conv((1, 64, 12, 12), (64, 64, 3, 3), padding=(1, 1, 1, 1)),
        conv((1, 64, 12, 12), (64, 64, 1, 1)),
        matmul((24, 256), (256, 64), False),
    ],
    ids=["conv", "pointwise", "matmul"],
)
def test_pairs_are_multiplied_without_saturation_and_sums_stay_in_registers(op, traits):
    workload = requantized(op, -1 if op.kind == "matmul" else 1)
    (candidate,) = [
        c for family in (*FAMILIES, matmul_bytes) for c in family.candidates(workload, traits)
    ]
    code = build(candidate, traits).inspect_source("asm")
    assert "pmaddubsw" not in code
    products = [body for body in loops(code) if any("pmaddwd" in line for line in body)]
    assert products
    for body in products:
        stores = [line for line in body if re.search(r"mov\w+\s+%[xyz]mm\d+, .*\(", line)]
        assert not stores, "a sum that leaves its register costs as much as its products"
        multiplied = sum("pmaddwd" in line for line in body)
        widened = [line for line in body if re.search(r"vps[lr][al]w|psraw|psllw|pmov[sz]x", line)]
        # Of weights, which all rows share; the rows are taken apart elsewhere.
        assert len(widened) <= multiplied


@given(st.integers(1, 5000))
def test_blocks_of_channels_are_short_and_hardly_padded(channels):
    block = channel_block(channels)
    assert block % 16 == 0
    assert block <= 64
    blocks = -(-channels // block)
    assert blocks == -(-channels // 64), "no more rows of tiles than with the widest block"
    assert blocks * block - channels < 16 * blocks


def test_a_plan_may_not_use_more_registers_than_there_are():
    assert TilePlan(16, 64, 2, 2).fits(AMX)
    assert TilePlan(16, 64, 3, 1).fits(AMX)
    assert not TilePlan(16, 64, 2, 3).fits(AMX)
    assert TilePlan(13, 64, 1, 2).fits(AVX512)
    assert not TilePlan(14, 64, 1, 2).fits(AVX512)
    assert not TilePlan(8, 64, 2, 1).fits(AVX512)
    pairs = replace(AVX512, vnni=False)
    assert TilePlan(14, 64, 1, 2).fits(pairs)
    assert not TilePlan(15, 64, 1, 2).fits(pairs)
    assert TilePlan(6, 64, 1, 1).fits(AVX2)
    assert not TilePlan(7, 64, 1, 1).fits(AVX2)
