"""Scalar operations on one value, by name, as TIR expressions that vectorise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tvm import tirx

from schedules import scalar_gates as gates
from schedules import scalar_math as fast
from schedules.interface import Attr, PrimExpr
from schedules.scalar_math import dtype_of, is_nan, let
from schedules.scalar_values import by_width, is_float, libm, like

_exp = by_width(fast.exp, libm("exp"))
_expm1 = by_width(fast.expm1, libm("expm1"))
_log1p = by_width(fast.log1p, libm("log1p"))
_tanh = by_width(fast.tanh, libm("tanh"))
_erf = by_width(fast.erf, libm("erf"))


def _absolute(x: PrimExpr) -> PrimExpr:
    if dtype_of(x).startswith("uint"):
        return x
    if is_float(x):
        return tirx.abs(x)
    return let(x, lambda x: tirx.Select(x < like(0, x), like(0, x) - x, x))


def _negative(x: PrimExpr) -> PrimExpr:
    dtype = dtype_of(x)
    if is_float(x):
        return like(-1, x) * x
    if dtype.startswith("uint"):  # TVM takes 0 − x for 0 there
        return tirx.reinterpret(dtype, _negative(tirx.reinterpret(dtype[1:], x)))
    return like(0, x) - x


def _sign(x: PrimExpr) -> PrimExpr:
    """−1, 0 or 1; zeros and NaN stay as they are."""
    zero = like(0, x)
    if dtype_of(x).startswith("uint"):
        return tirx.Select(x > zero, like(1, x), zero)
    negative = tirx.Select(x < zero, like(-1, x), x)
    return tirx.Select(x > zero, like(1, x), negative)


def _round(x: PrimExpr) -> PrimExpr:
    return tirx.nearbyint(x) if dtype_of(x) == "float64" else fast.round_half_even(x)


def _softplus_double(x: PrimExpr) -> PrimExpr:
    return tirx.max(like(0, x), x) + _log1p(_exp(like(0, x) - tirx.abs(x)))


def _mish_double(x: PrimExpr) -> PrimExpr:
    return x * _tanh(_softplus_double(x))


def _sigmoid(x: PrimExpr) -> PrimExpr:
    return like(1, x) / (like(1, x) + _exp(like(0, x) - x))


def _gelu_double(x: PrimExpr) -> PrimExpr:
    return (like(0.5, x) * x) * (like(1, x) + _erf(x * like(math.sqrt(0.5), x)))


def _gelu_tanh_double(x: PrimExpr) -> PrimExpr:
    inner = like(math.sqrt(2 / math.pi), x) * (x + like(0.044715, x) * x * x * x)
    return (like(0.5, x) * x) * (like(1, x) + _tanh(inner))


_LIBM = ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh")

UNARY: Mapping[str, Callable[[PrimExpr], PrimExpr]] = {
    "identity": lambda x: x,
    "negative": _negative,
    "abs": _absolute,
    "exp": _exp,
    "expm1": _expm1,
    "log": by_width(fast.log, libm("log")),
    "log1p": _log1p,
    "sqrt": tirx.sqrt,
    "rsqrt": lambda x: like(1, x) / tirx.sqrt(x),
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
    "relu": lambda x: tirx.max(like(0, x), x),  # in this order NaN stays NaN
    "hard_swish": lambda x: x * _between(x * like(1 / 6, x) + like(0.5, x), 0.0, 1.0),
    "silu": lambda x: x / (like(1, x) + _exp(like(0, x) - x)),
    "gelu": by_width(gates.gelu, _gelu_double),
    "gelu_tanh": by_width(gates.gelu_tanh, _gelu_tanh_double),
    "softplus": by_width(fast.softplus, _softplus_double),
    "softsign": lambda x: x / (like(1, x) + tirx.abs(x)),
    "mish": by_width(fast.mish, _mish_double),
    "floor": lambda x: tirx.floor(x) if is_float(x) else x,
    "ceil": lambda x: tirx.ceil(x) if is_float(x) else x,
    "round": lambda x: _round(x) if is_float(x) else x,
    "sign": _sign,
    "square": lambda x: x * x,
    "reciprocal": lambda x: like(1, x) / x,
    "bitwise_not": tirx.bitwise_not,
    "logical_not": tirx.Not,
    "isnan": lambda x: is_nan(x) if is_float(x) else tirx.const(False, "bool"),
    **{name: libm(name) for name in _LIBM},
}


def _between(x: PrimExpr, low: Attr | None, high: Attr | None) -> PrimExpr:
    if high is not None:
        x = tirx.min(like(high, x), x)  # type: ignore[arg-type]  # attributes are numbers here
    return x if low is None else tirx.max(like(low, x), x)  # type: ignore[arg-type]


def _isinf(x: PrimExpr, attrs: Mapping[str, Attr]) -> PrimExpr:
    result = tirx.const(False, "bool")
    if not is_float(x):
        return result
    if attrs.get("detect_positive", True):
        result = x == like(math.inf, x)
    if attrs.get("detect_negative", True):
        result = tirx.any(result, x == like(-math.inf, x))
    return result


def _elu(x: PrimExpr, alpha: float, gamma: float = 1.0) -> PrimExpr:
    negative = like(alpha * gamma, x) * _expm1(x)
    return tirx.Select(x > like(0, x), like(gamma, x) * x if gamma != 1 else x, negative)


def _celu(x: PrimExpr, alpha: float) -> PrimExpr:
    return tirx.Select(x > like(0, x), x, like(alpha, x) * _expm1(x / like(alpha, x)))


WITH_ATTRS: Mapping[str, Callable[[PrimExpr, Mapping[str, Attr]], PrimExpr]] = {
    "clip": lambda x, a: _between(x, a.get("min"), a.get("max")),
    "leaky_relu": lambda x, a: tirx.Select(x < like(0, x), x * like(a["alpha"], x), x),  # type: ignore[arg-type]
    "hard_sigmoid": lambda x, a: _between(
        x * like(a["alpha"], x) + like(a["beta"], x),  # type: ignore[arg-type]
        0.0,
        1.0,
    ),
    "elu": lambda x, a: _elu(x, a["alpha"]),  # type: ignore[arg-type]
    "selu": lambda x, a: _elu(x, a["alpha"], a["gamma"]),  # type: ignore[arg-type]
    "celu": lambda x, a: _celu(x, a["alpha"]),  # type: ignore[arg-type]
    "isinf": _isinf,
    "thresholded_relu": lambda x, a: tirx.Select(x > like(a["alpha"], x), x, like(0, x)),  # type: ignore[arg-type]
}
