"""Corner cases of arithmetic, compiled and run: signs, zero divisors, shifts, powers, einsum."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from frontend_reference import assert_close, run_onnxruntime
from onnx import helper

import graphopt

RNG = np.random.default_rng(17)


def run(
    cases: list[tuple[str, list[np.ndarray], dict[str, Any]]],
    opset: int = 18,
    outputs: int = 1,
) -> tuple[list[np.ndarray], onnx.ModelProto, dict[str, np.ndarray]]:
    """The outputs of independent nodes, compiled as one model."""
    nodes, values, results, feeds = [], [], [], {}
    for i, (op, inputs, attrs) in enumerate(cases):
        names = [f"x{i}_{j}" for j in range(len(inputs))]
        for name, array in zip(names, inputs, strict=True):
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            values.append(helper.make_tensor_value_info(name, kind, array.shape))
            feeds[name] = array
        made = [f"y{i}_{j}" for j in range(outputs)]
        nodes.append(helper.make_node(op, names, made, name=f"n{i}", **attrs))
        results += [helper.make_empty_tensor_value_info(name) for name in made]
    graph = helper.make_graph(nodes, "g", values, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    return list(graphopt.compile(model).run(feeds).values()), model, feeds


SIGNED = ["int8", "int16", "int32", "int64"]


@pytest.mark.parametrize("dtype", [*SIGNED, "uint8", "uint64"])
def test_integer_division_and_remainders(dtype: str) -> None:
    info = np.iinfo(dtype)
    a = np.array([7, 100, 5, 1, info.max, info.min], dtype)
    b = np.array([2, 7, 5, 3, 10, 3], dtype)
    if dtype in SIGNED:
        a, b = np.concatenate([a, -a[:5], a]), np.concatenate([b, b[:5], -b])
    got, _, _ = run([("Div", [a, b], {}), ("Mod", [a, b], {}), ("Mod", [a, b], {"fmod": 1})])
    quotient = np.array([int(abs(int(x)) // abs(int(y))) for x, y in zip(a, b, strict=True)])
    sign = np.sign(a.astype(float)) * np.sign(b.astype(float))
    np.testing.assert_array_equal(got[0], (quotient * sign.astype(quotient.dtype)).astype(dtype))
    np.testing.assert_array_equal(got[1], np.mod(a, b))
    np.testing.assert_array_equal(got[2], np.fmod(a, b))


@pytest.mark.parametrize("dtype", [*SIGNED, "uint32"])
def test_division_by_zero_and_overflow_do_not_trap(dtype: str) -> None:
    info = np.iinfo(dtype)
    a = np.array([5, 0, info.min, info.max] * 9, dtype)
    b = np.array([0, 0, info.max if dtype == "uint32" else -1, 0] * 9, dtype)
    got, _, _ = run([("Div", [a, b], {}), ("Mod", [a, b], {}), ("Mod", [a, b], {"fmod": 1})])
    assert all(result.shape == a.shape for result in got)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_remainders(dtype: str) -> None:
    values = np.array([-7.5, -2, -0.0, 0.0, 0.3, 4, 9.25, np.inf, -np.inf, np.nan], dtype)
    a, b = np.repeat(values, len(values)), np.tile(values, len(values))
    with np.errstate(invalid="ignore"):
        want = [np.mod(a, b), np.fmod(a, b)]
    cases = [("Mod", [a, b], {"fmod": fmod}) for fmod in (0, 1)]
    got, _, _ = run(cases, 28)
    # NumPy gives NaN or −0 where ONNX leaves the sign of zero open.
    for actual, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", [*SIGNED, "uint8", "uint16", "uint32", "uint64"])
def test_shifts_by_any_amount(dtype: str) -> None:
    info = np.iinfo(dtype)
    x = np.array([1, 5, info.max, info.min, 0], dtype)
    amounts = [0, 1, info.bits - 1, info.bits, info.bits + 3, 100]
    amounts += [-1, info.min] if dtype in SIGNED else [int(info.max)]
    by = np.array(amounts, dtype)
    a, b = np.repeat(x, len(by)), np.tile(by, len(x))

    def shifted(value: int, amount: int, left: bool) -> int:
        if not 0 <= amount < info.bits:
            return -1 if value < 0 and not left else 0
        result = value << amount if left else value >> amount
        result &= (1 << info.bits) - 1
        return result - (1 << info.bits) if result > info.max else result

    got, _, _ = run([("BitShift", [a, b], {"direction": d}) for d in ("LEFT", "RIGHT")], 28)
    for result, left in zip(got, (True, False), strict=True):
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        np.testing.assert_array_equal(result, [shifted(x, y, left) for x, y in pairs])


def test_powers_of_integers() -> None:
    base = np.array([-3, -1, 0, 1, 2, 3, 7, -1], np.int64)
    exponent = np.array([3, 5, 2, 63, 62, 39, 22, 100], np.int64)
    exact = np.array([int(a) ** int(b) for a, b in zip(base, exponent, strict=True)])
    small = np.array([-5, 3, 11, 2], np.int32)
    real = np.array([2.0, 0.5, 3.0, -1.0], np.float32)
    negative = (np.array([1, -1, 2, -3], np.int64), np.array([-2, -3, -1, -4], np.int64))
    got, _, _ = run(
        [
            ("Pow", [base, exponent], {}),
            ("Pow", [small, np.array([3, 4, 2, 10], np.int64)], {}),
            ("Pow", [small, real], {}),
            ("Pow", [real, np.array([2, 3, -1, 3], np.int64)], {}),
            ("Pow", list(negative), {}),
        ]
    )
    np.testing.assert_array_equal(got[0], exact)
    np.testing.assert_array_equal(got[1], np.array([-125, 81, 121, 1024], np.int32))
    np.testing.assert_array_equal(got[2], np.array([25, 1, 1331, 0], np.int32))
    np.testing.assert_allclose(got[3], [4.0, 0.125, 1 / 3, -1.0], rtol=1e-6)
    np.testing.assert_array_equal(got[4], [1, -1, 0, 0])


def test_slopes_and_bounds() -> None:
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    x[0, 0, 0] = np.nan
    whole = RNG.integers(-9, 9, (2, 3)).astype(np.int32)
    low, high = np.array(0.5, np.float32), np.array(-0.5, np.float32)
    cases = [
        ("PRelu", [x, RNG.uniform(size=(3, 1)).astype(np.float32)], {}),
        ("PRelu", [whole, np.array([3], np.int32)], {}),
        ("Clip", [x, low, high], {}),
        ("Max", [x, x[:1], low], {}),
        ("Min", [low, x, x[:, :1]], {}),
    ]
    got, model, feeds = run(cases)
    want = run_onnxruntime(model.SerializeToString(), feeds)
    # Bounds that cross are not defined by ONNX for NaN.
    for actual, (name, expected) in zip(got, want.items(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, err_msg=name)


EQUATIONS = [
    ("bij,bjk", [(2, 3, 4), (2, 4, 5)]),
    ("...ij,...jk->...ik", [(1, 3, 4), (6, 4, 5)]),
    ("ii->i", [(4, 4)]),
    ("ii", [(4, 4)]),
    ("iji->j", [(3, 4, 3)]),
    ("...ii->...i", [(3, 5, 5)]),
    ("i,j->ij", [(3,), (4,)]),
    ("i,i->", [(5,), (5,)]),
    (",ij->ji", [(), (2, 3)]),
    ("ijk,jil->kl", [(3, 4, 5), (4, 3, 2)]),
    ("a b, b c , c d -> a d", [(2, 3), (3, 4), (4, 5)]),
    ("bn,anm,bm->ba", [(2, 5), (3, 5, 7), (2, 7)]),
    ("i...->...", [(3, 4, 5)]),
]


def test_einsum() -> None:
    operands = [
        [RNG.standard_normal(s).astype(np.float32) for s in shapes] for _, shapes in EQUATIONS
    ]
    equations = [equation for equation, _ in EQUATIONS]
    pairs = list(zip(equations, operands, strict=True))
    got, _, _ = run([("Einsum", xs, {"equation": equation}) for equation, xs in pairs])
    for actual, (equation, xs) in zip(got, pairs, strict=True):
        want = np.einsum(equation.replace(" ", ""), *[x.astype("f8") for x in xs])
        assert actual.shape == want.shape, equation
        np.testing.assert_allclose(actual, want, rtol=1e-5, atol=1e-5, err_msg=equation)


def test_determinants() -> None:
    singular = np.ones((3, 3), np.float32)
    pivoted = np.array([[0, 2], [3, 1]], np.float32)
    stack = RNG.standard_normal((2, 3, 7, 7)).astype(np.float32)
    got, _, _ = run([("Det", [x], {}) for x in (singular, pivoted, stack, stack.astype("f8"))])
    assert got[0] == 0
    assert got[1] == -6
    np.testing.assert_allclose(got[2], np.linalg.det(stack.astype("f8")), rtol=1e-6)
    np.testing.assert_allclose(got[3], np.linalg.det(stack.astype("f8")), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_batch_normalization_in_training(dtype: str) -> None:
    x = RNG.standard_normal((4, 3, 5)).astype(dtype)
    parameters = [RNG.uniform(0.5, 1.0, 3).astype(dtype) for _ in range(4)]
    attrs = {"training_mode": 1, "momentum": 0.75, "epsilon": 1e-3}
    got, _, _ = run([("BatchNormalization", [x, *parameters], attrs)], 15, outputs=3)
    wide = x.astype("f8")
    mean, variance = wide.mean((0, 2)), wide.var((0, 2))
    scale, shift, old_mean, old_variance = (p.astype("f8") for p in parameters)
    normal = (wide - mean[:, None]) / np.sqrt(variance + 1e-3)[:, None]
    want = {
        "y": normal * scale[:, None] + shift[:, None],
        "mean": old_mean * 0.75 + mean * 0.25,
        "variance": old_variance * 0.75 + variance * 0.25,
    }
    typed = {name: value.astype(dtype) for name, value in want.items()}
    assert_close(dict(zip(want, got, strict=True)), typed, 1e-5 if dtype == "float32" else 2e-3)
