"""Data movement is exact: concat, slice, pad, take and transpose against NumPy, all layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import ALL_TRAITS, AVX512, run_candidate, scheduled, serial_extents

from schedules import movement, transpose
from schedules.interface import Attr, Epilogue, Op, Step, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]


def check(
    kind: str,
    inputs: list[Array],
    expected: Array,
    traits: TargetTraits = AVX512,
    blocked: bool = False,
    **attrs: Attr,
) -> None:
    """All candidates reproduce `expected`, alone and with an epilogue of two kinds of operands."""
    sigs = tuple(TensorSig(a.shape, str(a.dtype)) for a in inputs)
    out = TensorSig(expected.shape, str(expected.dtype))
    op = Op(kind, sigs, out, tuple(attrs.items()), tuple(False for _ in sigs))
    family = transpose.candidates if kind == "transpose" else movement.candidates
    plain = Workload(op, Epilogue(dtype=out.dtype))
    offered = family(plain, traits)
    assert any(c.output.block for c in offered) == blocked
    for c in offered:
        scheduled(c)
        np.testing.assert_array_equal(run_candidate(c, plain, inputs, traits), expected)
    if not out.dtype.startswith("float") or not expected.ndim:
        return
    shape = tuple(d if a == 1 else 1 for a, d in enumerate(out.shape))
    bias = np.random.default_rng(9).standard_normal(shape).astype(out.dtype)
    full = np.random.default_rng(8).standard_normal(out.shape).astype(out.dtype)
    operands = (TensorSig(shape, out.dtype), out)
    steps = (Step("add", (0, 1)), Step("add", (3, 2)))
    fused = Workload(op, Epilogue(operands, steps, out.dtype, (True, False)))
    for c in family(fused, traits):
        result = run_candidate(c, fused, [*inputs, bias, full], traits)
        np.testing.assert_array_equal(result, (expected + bias) + full)


def tensor(*shape: int, dtype: str = "float32") -> Array:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * 50).astype(dtype)


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
@pytest.mark.parametrize(
    ("shapes", "axis", "blocked"),
    [
        ([(1, 32, 9, 7), (1, 16, 9, 7), (1, 5, 9, 7)], 1, True),
        ([(2, 3, 5, 4), (2, 4, 5, 4)], 1, False),
        ([(2, 20, 5, 4), (2, 20, 2, 4)], 2, True),
        ([(2, 20, 5, 4), (2, 20, 5, 3), (2, 20, 5, 1)], 3, True),
        ([(3, 10), (4, 10)], 0, False),
        ([(1, 40, 60, 60), (1, 3, 60, 60)], 1, False),
    ],
)
def test_concat(
    shapes: list[tuple[int, ...]], axis: int, blocked: bool, traits: TargetTraits
) -> None:
    inputs = [tensor(*shape) for shape in shapes]
    if traits.lanes != 16 and axis == 1:
        blocked = all(s[1] % traits.lanes == 0 for s in shapes[:-1])
    check("concat", inputs, np.concatenate(inputs, axis), traits, blocked, axis=axis)


@pytest.mark.parametrize(
    ("shape", "where", "blocked"),
    [
        ((2, 40, 9, 8), np.s_[:, 16:30, :, :], True),
        ((2, 40, 9, 8), np.s_[:, 3:30, 1:, ::2], False),
        ((2, 40, 9, 8), np.s_[:, :, 1::2, ::2], True),
        ((2, 40, 9, 8), np.s_[:, :, 2:5, :], True),
        ((3, 100), np.s_[:, 5:90], False),
        ((3, 100), np.s_[2:0:-1, 90:5:-3], False),
        ((5, 7, 6), np.s_[1:4:2, :, :], True),
    ],
)
def test_slice(shape: tuple[int, ...], where: tuple[slice, ...], blocked: bool) -> None:
    x = tensor(*shape)
    ranges = [s.indices(n) for s, n in zip(where, shape, strict=True)]
    begin, strides = tuple(r[0] for r in ranges), tuple(r[2] for r in ranges)
    for traits in ALL_TRAITS:
        offers = len(shape) >= 3 and begin[1] % traits.lanes == 0 and strides[1] == 1
        assert traits.lanes != 16 or offers == blocked
        check("slice", [x], x[where], traits, offers, begin=begin, strides=strides)


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize(
    ("shape", "widths", "blocked"),
    [
        ((1, 20, 7, 9), [(0, 0), (0, 0), (1, 2), (3, 0)], True),
        ((1, 4, 7, 9), [(0, 0), (1, 2), (1, 1), (2, 1)], False),
        ((2, 5, 40), [(0, 0), (2, 1), (0, 0)], False),
        ((50,), [(4, 7)], False),
    ],
)
def test_pad(
    shape: tuple[int, ...],
    widths: list[tuple[int, int]],
    blocked: bool,
    mode: str,
    traits: TargetTraits,
) -> None:
    x = tensor(*shape)
    arguments: dict[str, Any] = {"constant_values": 1.5} if mode == "constant" else {}
    expected = np.pad(x, widths, mode=mode, **arguments)  # type: ignore[call-overload]
    before = tuple(w[0] for w in widths)
    # Padding lanes would take the constant.
    blocked = blocked and (mode != "constant" or shape[1] % traits.lanes == 0)
    check("pad", [x], expected, traits, blocked, before=before, mode=mode, value=1.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("count", [(), (4,), (2, 3)])
def test_take(axis: int, count: tuple[int, ...]) -> None:
    x = tensor(6, 7, 35)
    indices = np.random.default_rng(0).integers(-6, 6, count)
    if count:
        check("take", [x, indices], np.take(x, indices, axis), axis=axis)
        small = indices.astype(np.int32)
        check("take", [x.astype("int8"), small], np.take(x.astype("int8"), small, axis), axis=axis)


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 17, 3, 40), (0, 2, 1, 3)),
        ((2, 35, 50), (0, 2, 1)),
        ((64, 48), (1, 0)),
        ((2, 3, 19, 21), (0, 2, 3, 1)),
        ((2, 19, 21, 3), (0, 3, 1, 2)),
        ((5, 6, 7, 8), (3, 2, 1, 0)),
        ((2, 3, 4, 5, 6, 7), (0, 1, 4, 2, 5, 3)),
        ((1, 33, 1, 20), (0, 3, 2, 1)),
        ((4, 5), (0, 1)),
    ],
)
def test_transpose(
    shape: tuple[int, ...], axes: tuple[int, ...], dtype: str, traits: TargetTraits
) -> None:
    x = tensor(*shape, dtype=dtype)
    check("transpose", [x], np.ascontiguousarray(x.transpose(axes)), traits, axes=axes)


def test_single_images_are_shared_among_workers() -> None:
    x = tensor(1, 32, 64, 64)
    sig = TensorSig(x.shape)
    out = TensorSig((1, 64, 64, 64))
    op = Op("concat", (sig, sig), out, (("axis", 1),), (False, False))
    for c in movement.candidates(Workload(op), AVX512):
        assert not serial_extents(scheduled(c))
