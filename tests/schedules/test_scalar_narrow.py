"""Floats of 4 to 16 bits against ml_dtypes: every code, and numbers around every rounding point."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512, run_candidate

from schedules import elementwise
from schedules.interface import Attr, Epilogue, Op, Step, TensorSig, Workload
from schedules.scalar_narrow import FORMATS, POWERS_OF_TWO, storage

Array = np.ndarray[Any, Any]
NAMES = [*FORMATS, POWERS_OF_TWO]


def apply(op: str, x: Array, result: str, traits: Any = AVX512, **attrs: Attr) -> Array:
    """`op` on an array, by the elementwise kernel."""
    sig = TensorSig(x.shape, str(x.dtype))
    step = Step(op, (1,), tuple(attrs.items()))
    epilogue = Epilogue((sig,), (step,), result, (False,))
    workload = Workload(Op("elementwise", (), TensorSig(x.shape, result)), epilogue)
    return run_candidate(elementwise.candidates(workload, traits)[0], workload, [x], traits)


def all_codes(name: str) -> Array:
    bits = 16 if name == "bfloat16" else FORMATS[name].width if name in FORMATS else 8
    return np.arange(1 << bits, dtype=storage(name))


def numbers(name: str) -> Array:
    """float32: all of the format's own, the points midway, and their neighbours; random bits."""
    own = all_codes(name).view(getattr(ml_dtypes, name)).astype(np.float64)
    own = np.unique(own[np.isfinite(own)])
    points = np.concatenate([own, (own[1:] + own[:-1]) / 2]).astype(np.float32)
    near = [np.nextafter(points, np.float32(side)) for side in (-np.inf, np.inf)]
    rng = np.random.default_rng(1)
    anything = rng.integers(0, 1 << 32, 20_001, dtype=np.uint64).astype(np.uint32).view(np.float32)
    special = np.array([np.inf, -np.inf, np.nan, -0.0, 0.0, 1e-45, 3.4e38, 464, 480, 65536], "f4")
    return np.concatenate([points, *near, anything, special])


def same(actual: Array, expected: Array) -> None:
    """Equal as numbers, signs of zeros included; any NaN is NaN."""
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_array_equal(a, e)
    finite = ~np.isnan(e)
    np.testing.assert_array_equal(np.signbit(a[finite]), np.signbit(e[finite]))


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"{t.arch}-{t.vector_bytes}")
@pytest.mark.parametrize("name", NAMES)
def test_every_code_decodes(name: str, traits: Any) -> None:
    codes = all_codes(name)
    expected = codes.view(getattr(ml_dtypes, name)).astype(np.float32)
    same(apply("decode_float", codes, "float32", traits, format=name), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_encoding_rounds_to_nearest_even(name: str) -> None:
    x, kind = numbers(name), getattr(ml_dtypes, name)
    with np.errstate(all="ignore"):
        expected = x.astype(kind)
    codes = apply("encode_float", x, storage(name), format=name, saturate=False)
    assert codes.dtype == storage(name)
    same(codes.view(kind), expected)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "bfloat16"])
def test_saturation_gives_the_largest_finite_number(name: str) -> None:
    x, kind = numbers(name), getattr(ml_dtypes, name)
    limit = float(ml_dtypes.finfo(kind).max)
    with np.errstate(all="ignore"):
        expected = np.clip(x, -limit, limit).astype(kind)
    same(apply("encode_float", x, "uint8", format=name, saturate=True).view(kind), expected)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_float64_and_float16_are_rounded_once(name: str) -> None:
    kind, codes = getattr(ml_dtypes, name), all_codes(name)
    own = codes.view(kind).astype(np.float64)
    own = np.unique(own[np.isfinite(own)])
    middle = (own[1:] + own[:-1]) / 2
    # Beside the middle by less than a float32 can tell.
    x = np.concatenate([middle, middle * (1 + 2e-12), middle * (1 - 2e-12)])
    upper = np.concatenate([own[1:]] * 3)
    lower = np.concatenate([own[:-1]] * 3)
    got = apply("encode_float", x, storage(name), format=name).view(kind).astype(np.float64)
    away = np.repeat([0, 1, -1], len(middle)) * np.sign(x) * (x != 0)
    beside = away != 0
    np.testing.assert_array_equal(got[beside], np.where(away > 0, upper, lower)[beside])
    even = middle.astype(kind).astype(np.float64)
    np.testing.assert_array_equal(got[: len(middle)], even)
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        expected = half.astype(np.float32).astype(kind)
    same(
        apply("encode_float", half, storage(name), format=name, saturate=False).view(kind), expected
    )


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [("up", [127, 128, 128, 128, 129, 0, 1]), ("down", [127, 127, 127, 127, 128, 0, 0]),
     ("nearest", [127, 127, 128, 128, 129, 0, 1])],
)  # fmt: skip
def test_powers_of_two_round_as_asked(rounding: str, expected: list[int]) -> None:
    x = np.array([1, 1.25, 1.5, 1.75, 3, 2.0**-127, 1.75 * 2.0**-127], np.float32)
    got = apply("encode_float", x, "uint8", format=POWERS_OF_TWO, rounding=rounding)
    assert got.tolist() == expected


def test_powers_of_two_at_the_ends() -> None:
    x = np.array([0, 1e-40, np.inf, np.nan, 3e38], np.float32)
    attrs = {"format": POWERS_OF_TWO, "rounding": "up"}
    assert apply("encode_float", x, "uint8", saturate=True, **attrs).tolist() == [
        0,
        0,
        254,
        255,
        254,
    ]
    strict = apply("encode_float", x, "uint8", saturate=False, **attrs).tolist()
    assert strict == [255, 255, 255, 255, 255]


def test_bits_stay_as_they_are() -> None:
    x = np.random.default_rng(0).standard_normal(37).astype(np.float32)
    np.testing.assert_array_equal(apply("bitcast", x, "int32", dtype="int32"), x.view(np.int32))
    flags = np.arange(37) % 3 == 0
    np.testing.assert_array_equal(apply("bitcast", flags, "uint8", dtype="uint8"), flags.view("u1"))


def test_float64_becomes_float16_in_one_rounding() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal(4001) * 10.0 ** rng.integers(-9, 6, 4001)
    half = x.astype(np.float16).astype(np.float64)
    with np.errstate(all="ignore"):
        midway = (half[1:] + half[:-1]) / 2
        x = np.concatenate(
            [x, midway[np.isfinite(midway)] * (1 + 1e-13), [np.inf, np.nan, 65520.0]]
        )
        expected = x.astype(np.float16)
    same(apply("cast", x, "float16", dtype="float16"), expected)
