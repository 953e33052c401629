"""Scalar operations against NumPy and SciPy: accuracy, special values, integers, bools."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.special
from harness import ALL_TRAITS, AVX512, SSE, run_candidate, scheduled

from schedules import elementwise, scalar_zero
from schedules.interface import Attr, Epilogue, Op, Step, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]
F32 = np.float32


def apply(
    op: str,
    inputs: Sequence[Array],
    result: str | None = None,
    traits: TargetTraits = AVX512,
    **attrs: Attr,
) -> Array:
    """`op` on arrays, by the elementwise kernel."""
    inputs = [np.ascontiguousarray(a) for a in inputs]
    sigs = tuple(TensorSig(a.shape, str(a.dtype)) for a in inputs)
    step = Step(op, tuple(range(1, len(sigs) + 1)), tuple(attrs.items()))
    dtype = result or str(inputs[0].dtype)
    epilogue = Epilogue(sigs, (step,), dtype, tuple(False for _ in sigs))
    workload = Workload(Op("elementwise", (), TensorSig(inputs[0].shape, dtype)), epilogue)
    candidate = elementwise.candidates(workload, traits)[0]
    return run_candidate(candidate, workload, inputs, traits)


def whole_range() -> Array:
    """float32 values of every exponent and sign, dense around one, with all special values."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 1 << 32, 60_001, dtype=np.uint64).astype(np.uint32).view(F32)
    dense = (rng.standard_normal(60_001) * 8).astype(F32)
    wide = rng.uniform(-110, 95, 20_001).astype(F32)
    tiny = (rng.standard_normal(2_001) * 1e-3).astype(F32)
    limits = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.17549435e-38, 3.4028235e38]
    limits += [-3.4028235e38, 88.72283, 88.72284, -87.33655, -103.97208, -103.9721, 1.0, -1.0]
    return np.concatenate([patterns, dense, wide, tiny, np.array(limits, F32)])


ACCURATE: dict[str, tuple[Callable[[Array], Array], float]] = {
    "exp": (np.exp, 0),
    "expm1": (np.expm1, 0),
    "log": (np.log, 0),
    "log1p": (np.log1p, 0),
    "tanh": (np.tanh, 0),
    "erf": (scipy.special.erf, 0),
    "sigmoid": (scipy.special.expit, 1.2e-38),
    "softplus": (lambda x: np.logaddexp(0, x), 1.2e-38),
    "silu": (lambda x: x * scipy.special.expit(x), 1e-36),
    "sqrt": (np.sqrt, 0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 0),
    "reciprocal": (lambda x: 1 / x, 0),
    "sin": (np.sin, 0),
    "cos": (np.cos, 0),
    "tan": (np.tan, 0),
    "asin": (np.arcsin, 0),
    "acos": (np.arccos, 0),
    "atan": (np.arctan, 0),
    "sinh": (np.sinh, 0),
    "cosh": (np.cosh, 0),
    "asinh": (np.arcsinh, 0),
    "acosh": (np.arccosh, 0),
    "atanh": (np.arctanh, 0),
}


@pytest.mark.parametrize("traits", [AVX512, SSE], ids=["fma", "no-fma"])
@pytest.mark.parametrize("op", ACCURATE)
def test_error_over_the_whole_range(op: str, traits: TargetTraits) -> None:
    """Relative error 3e-7 of normal results, half a unit of subnormal ones, same NaN and inf."""
    reference, floor = ACCURATE[op]
    x = whole_range()
    y = apply(op, [x], traits=traits)
    with np.errstate(all="ignore"):
        exact = reference(x.astype(np.float64))
        rounded = exact.astype(F32)
    assert np.array_equal(np.isnan(y), np.isnan(rounded)), x[np.isnan(y) != np.isnan(rounded)][:5]
    # Next to the overflow threshold either side is a correct rounding to within the limit.
    near_overflow = np.abs(exact) > 3.4028e38
    finite = np.isfinite(exact) & ~near_overflow
    infinite = np.isinf(exact)
    assert np.array_equal(y[infinite], rounded[infinite])
    error = np.abs(y[finite].astype(np.float64) - exact[finite])
    allowed = 3e-7 * np.abs(exact[finite]) + 2.0**-148 + floor
    worst = np.argmax(error / allowed)
    assert np.all(error <= allowed), (x[finite][worst], y[finite][worst], exact[finite][worst])


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


ACTIVATIONS: list[tuple[str, dict[str, Attr], Callable[[Array], Array]]] = [
    ("relu", {}, lambda x: np.maximum(x, 0)),
    ("leaky_relu", {"alpha": 0.01}, lambda x: np.where(x < 0, 0.01 * x, x)),
    ("clip", {"min": -1.0, "max": 2.0}, lambda x: np.clip(x, -1, 2)),
    ("clip", {"min": 0.0}, lambda x: np.maximum(x, 0)),
    ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    ("hard_swish", {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    ("gelu", {}, lambda x: 0.5 * x * (1 + scipy.special.erf(x / np.sqrt(2)))),
    (
        "gelu_tanh",
        {},
        lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    ),
    ("elu", {"alpha": 0.7}, lambda x: _elu(x, 0.7)),
    ("selu", {"alpha": 1.67, "gamma": 1.05}, lambda x: 1.05 * _elu(x, 1.67)),
    ("celu", {"alpha": 1.5}, lambda x: 1.5 * _elu(x / 1.5, 1.0)),
    ("softsign", {}, lambda x: x / (1 + np.abs(x))),
    ("mish", {}, lambda x: x * np.tanh(np.logaddexp(0, x))),
    ("abs", {}, np.abs),
    ("negative", {}, np.negative),
    ("square", {}, np.square),
    ("thresholded_relu", {"alpha": 0.5}, lambda x: np.where(x > 0.5, x, 0)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("op", "attrs", "reference"), ACTIVATIONS)
def test_activations(
    op: str, attrs: dict[str, Attr], reference: Callable[[Array], Array], dtype: str
) -> None:
    rng = np.random.default_rng(1)
    x = np.append(rng.standard_normal(1003) * 5, [0.0, np.nan, 30.0, -30.0]).astype(dtype)
    y = apply(op, [x], **attrs)
    exact = reference(x.astype(np.float64))
    limit = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    np.testing.assert_allclose(y, exact, rtol=limit, atol=limit, equal_nan=True)


GATES = {
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "gelu_tanh": lambda x: x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
@pytest.mark.parametrize("op", GATES)
def test_gates_over_the_whole_range(op: str, traits: TargetTraits) -> None:
    """Error below 1e-6, 4e-7 of results whose size is below 1; exact where they saturate."""
    x = np.concatenate([whole_range(), np.linspace(-12, 12, 200_001, dtype=F32)])
    x = x[np.isfinite(x)]
    y = apply(op, [x], traits=traits)
    with np.errstate(all="ignore"):
        exact = GATES[op](x.astype(np.float64))
    error = np.abs(y - exact)
    inside = np.abs(x) < 12
    assert error[inside].max() < 1e-6
    # Below the reach of the polynomial, results are tiny beside x: only x's own size counts.
    near = np.abs(x) < 1
    assert np.all(error[near] <= 4e-7 * np.abs(x[near]) + 2.0**-148)
    np.testing.assert_array_equal(y[x > 12], x[x > 12])
    assert not y[x < -12].any()
    special = apply(op, [np.array([np.nan, np.inf, -np.inf], F32)], traits=traits)
    assert np.isnan(special[[0, 2]]).all()
    assert special[1] == np.inf


def test_rounding() -> None:
    x = np.append(whole_range(), np.arange(-8.5, 9, 0.5, dtype=F32)).astype(F32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op, reference in [("floor", np.floor), ("ceil", np.ceil), ("round", np.rint)]:
            np.testing.assert_array_equal(apply(op, [x]), reference(x))
        np.testing.assert_array_equal(apply("sign", [x]), np.sign(x))
    np.testing.assert_array_equal(apply("round", [x.astype("f8")]), np.rint(x.astype("f8")))


SPECIAL = np.array([0.0, -0.0, 1.0, -2.5, 3.0, np.inf, -np.inf, np.nan, 7.25, -7.25, 1e30], F32)
PAIRS = (np.repeat(SPECIAL, SPECIAL.size), np.tile(SPECIAL, SPECIAL.size))


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
def test_float_pairs(traits: TargetTraits) -> None:
    """Binary operations on all pairs of special values, NaN and infinities included."""
    a, b = PAIRS
    with np.errstate(all="ignore"):
        exact: dict[str, Array] = {
            "add": a + b,
            "subtract": a - b,
            "multiply": a * b,
            "divide": a / b,
            "maximum": np.maximum(a, b),
            "minimum": np.minimum(a, b),
            "fmod": np.fmod(a, b),
            "prelu": np.where(a < 0, a * b, a),
        }
        compared = {
            "equal": a == b,
            "not_equal": a != b,
            "less": a < b,
            "less_equal": a <= b,
            "greater": a > b,
            "greater_equal": a >= b,
        }
    for op, expected in exact.items():
        np.testing.assert_array_equal(apply(op, [a, b], traits=traits), expected, err_msg=op)
    for op, expected in compared.items():
        result = apply(op, [a, b], "bool", traits)
        np.testing.assert_array_equal(result, expected, err_msg=op)


def test_power() -> None:
    rng = np.random.default_rng(2)
    a = rng.uniform(0, 4, 501).astype(F32)
    b = rng.uniform(-3, 3, 501).astype(F32)
    exact = a.astype(np.float64) ** b
    np.testing.assert_allclose(apply("power", [a, b]), exact, rtol=1e-6)
    base = np.array([-3, 2, 0, 7, 1, -1], np.int32)
    exponent = np.array([3, 30, 0, 2, 50, 31], np.int32)
    np.testing.assert_array_equal(apply("power", [base, exponent]), base**exponent)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint32"])
def test_integers(dtype: str) -> None:
    rng = np.random.default_rng(3)
    info = np.iinfo(dtype)
    low = max(info.min, -100)
    a = rng.integers(low, 100, 203).astype(dtype)
    b = rng.integers(low, 100, 203).astype(dtype)
    b[b == 0] = 3
    a[0] = info.min
    b[0] = info.max
    with np.errstate(over="ignore"):
        quotient = np.trunc(a.astype(np.float64) / b).astype(dtype)
        expected: dict[str, Array] = {
            "add": a + b,
            "subtract": a - b,
            "multiply": a * b,
            "divide": quotient,
            "floor_divide": a // b,
            "mod": np.mod(a, b),
            "fmod": np.fmod(a, b),
            "maximum": np.maximum(a, b),
            "minimum": np.minimum(a, b),
            "bitwise_and": a & b,
            "bitwise_or": a | b,
            "bitwise_xor": a ^ b,
        }
        unary = {"abs": np.abs(a), "negative": -a, "sign": np.sign(a), "bitwise_not": ~a}
    for op, result in expected.items():
        np.testing.assert_array_equal(apply(op, [a, b]), result, err_msg=op)
    for op, result in unary.items():
        np.testing.assert_array_equal(apply(op, [a]), result, err_msg=op)
    for op in ("equal", "not_equal", "less", "greater_equal"):
        np.testing.assert_array_equal(apply(op, [a, b], "bool"), getattr(np, op)(a, b))


def test_division_by_zero_does_not_trap() -> None:
    a = np.array([5, -5, np.iinfo(np.int32).min, 7], np.int32)
    b = np.array([0, 0, -1, 2], np.int32)
    assert apply("divide", [a, b])[3] == 3
    assert apply("mod", [a, b])[3] == 1


def test_shifts() -> None:
    a = np.array([1, 255, 128, 3, 3], np.uint8)
    b = np.array([0, 1, 7, 8, 200], np.uint8)
    wide = a.astype(np.uint64)
    left = np.where(b < 8, wide << np.minimum(b, 8).astype(np.uint64), 0).astype(np.uint8)
    right = np.where(b < 8, wide >> np.minimum(b, 8).astype(np.uint64), 0).astype(np.uint8)
    np.testing.assert_array_equal(apply("left_shift", [a, b]), left)
    np.testing.assert_array_equal(apply("right_shift", [a, b]), right)


def test_logic() -> None:
    a = np.tile([False, True], 40)
    b = np.repeat([False, True], 40)
    for op in ("logical_and", "logical_or", "logical_xor"):
        np.testing.assert_array_equal(apply(op, [a, b]), getattr(np, op)(a, b))
    np.testing.assert_array_equal(apply("logical_not", [a]), ~a)
    np.testing.assert_array_equal(apply("equal", [a, b]), a == b)
    x, y = (np.arange(80, dtype=F32) * s for s in (1, -1))
    np.testing.assert_array_equal(apply("where", [a, x, y], "float32"), np.where(a, x, y))


def test_classification() -> None:
    for dtype in ("float16", "float32", "float64"):
        x = np.tile(SPECIAL, 3).clip(-6e4, 6e4).astype(dtype)
        x[5], x[6] = np.inf, -np.inf
        np.testing.assert_array_equal(apply("isnan", [x], "bool"), np.isnan(x))
        np.testing.assert_array_equal(apply("isinf", [x], "bool"), np.isinf(x))
        negative = apply("isinf", [x], "bool", detect_positive=False)
        np.testing.assert_array_equal(negative, np.isneginf(x))


@pytest.mark.parametrize("source", ["float32", "float16", "int32", "uint8", "int64", "bool"])
@pytest.mark.parametrize(
    "target", ["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"]
)
def test_cast(source: str, target: str) -> None:
    x = np.array([0, 1, 2.75, 100, 3, 0.25, 17] * 9).astype(source)
    np.testing.assert_array_equal(apply("cast", [x], target, dtype=target), x.astype(target))


def test_cast_of_nan_to_bool_is_true() -> None:
    x = np.array([np.nan, 0, -0.0, np.inf], F32)
    np.testing.assert_array_equal(apply("cast", [x], "bool", dtype="bool"), x.astype(bool))


def test_tensor_bounds() -> None:
    x, low, high = (np.linspace(-3, 3, 55, dtype=F32), np.full(55, -1, F32), np.full(55, 2, F32))
    np.testing.assert_array_equal(apply("clip", [x, low, high]), np.clip(x, -1, 2))


def test_long_chains_stay_small() -> None:
    """Each value is computed once, however often later steps use it."""
    steps = []
    for i in range(12):
        steps.append(Step("mish", (i + 1,)))
    sig = TensorSig((64,))
    workload = Workload(
        Op("elementwise", (), sig), Epilogue((sig,), tuple(steps), "float32", (False,))
    )
    function = scheduled(elementwise.candidates(workload, AVX512)[0])
    assert str(function).count("T.Let") < 12 * 40


def known(steps: list[Step], shape: tuple[int, ...] = (1, 20, 4, 4), anchor: bool = True) -> bool:
    sig = TensorSig(shape)
    return scalar_zero.keeps_zero(Epilogue((sig,), tuple(steps)), not anchor)


def test_keeps_zero() -> None:
    half = Step("constant", (), (("value", 0.5), ("dtype", "float32")))
    inf = Step("constant", (), (("value", float("inf")), ("dtype", "float32")))
    assert known([])
    assert known([], anchor=False)  # the operand itself
    assert not known([Step("add", (0, 1))], anchor=False)
    assert known([Step("relu", (0,))])
    assert known([Step("add", (0, 1))])
    assert not known([Step("add", (0, 1))], (1, 1, 4, 4))
    assert not known([Step("exp", (0,))])
    assert known([half, Step("multiply", (0, 2))])
    assert not known([half, Step("add", (0, 2))])
    assert not known([inf, Step("multiply", (0, 2))])
    assert not known([Step("divide", (0, 1))])
    assert known([Step("clip", (0,), (("min", 0.0), ("max", 6.0)))])
    assert not known([Step("clip", (0,), (("min", 1.0), ("max", 6.0)))])


@pytest.mark.parametrize("other", [False, True], ids=["same zero", "another zero"])
def test_what_is_quantized_and_dequantized_at_once_keeps_its_value(other):
    """The integer is not converted where both zero points are one; the result is the same."""
    shape = (4, 16)
    steps = (
        Step("constant", (), (("dtype", "float32"), ("value", 0.37))),
        Step("constant", (), (("dtype", "uint8"), ("value", 131))),
        Step("constant", (), (("dtype", "uint8"), ("value", 9 if other else 131))),
        Step("quantize", (1, 2, 3), (("precision", "float32"),)),
        Step("dequantize", (5, 2, 4), (("dtype", "float32"),)),
    )
    workload = Workload(
        Op("elementwise", (), TensorSig(shape)), Epilogue((TensorSig(shape),), steps)
    )
    x = np.linspace(-80, 80, 64, dtype=np.float32).reshape(shape)
    x[0, :3] = np.nan, np.inf, -np.inf
    whole = np.where(np.isnan(x), 0, np.clip(np.rint(x / np.float32(0.37)) + 131, 0, 255))
    want = (whole - (9 if other else 131)).astype(np.float32) * np.float32(0.37)
    (candidate,) = elementwise.candidates(workload, AVX512)
    np.testing.assert_array_equal(run_candidate(candidate, workload, [x], AVX512), want)
    text = str(candidate.compute())
    assert ("reinterpret" in text) == other, "bytes are made only where they are needed"


@pytest.mark.parametrize("scale", [0.37, 1 / 255, 2 / 255, 0.1, 3.3e-5, 7.77e20, 1.0, 2.0**-7])
@pytest.mark.parametrize(("zero", "dtype"), [(0, "uint8"), (131, "uint8"), (-7, "int8")])
def test_quantization_by_a_known_scale_rounds_as_a_division(scale, zero, dtype):
    """At every tie, and within two last bits of each; for special values, too."""
    step, bounds = F32(scale), np.iinfo(dtype)
    ties = (np.arange(-300, 300, dtype=F32) + F32(0.5)) * step
    near = [ties]
    for direction in (-np.inf, np.inf):
        last = ties
        for _ in range(2):
            last = np.nextafter(last, F32(direction))
            near.append(last)
    random = np.random.default_rng(1).uniform(-300, 300, 200_000).astype(F32) * step
    x = np.concatenate([*near, random, whole_range()])
    steps = (
        Step("constant", (), (("dtype", "float32"), ("value", float(step)))),
        Step("constant", (), (("dtype", dtype), ("value", zero))),
        Step("quantize", (1, 2, 3), (("precision", "float32"),)),
    )
    sig = TensorSig(x.shape)
    workload = Workload(Op("elementwise", (), sig), Epilogue((sig,), steps, dtype, (False,)))
    with np.errstate(all="ignore"):
        steps_of = np.where(np.isnan(x), -np.inf, x / step)
    want = np.clip(np.rint(steps_of) + zero, bounds.min, bounds.max).astype(dtype)
    found = run_candidate(elementwise.candidates(workload, AVX512)[0], workload, [x], AVX512)
    np.testing.assert_array_equal(found, want)
