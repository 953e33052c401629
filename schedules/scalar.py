"""Scalar operations of epilogues as TIR expressions that vectorise.

Semantics are ONNX's where it speaks and NumPy's elsewhere: maximum and minimum propagate NaN,
integer division truncates, `mod` takes the divisor's sign and `fmod` the dividend's. float16 and
bfloat16 are computed in float32. Functions without a polynomial in scalar_math.py (sin, atan,
power, …) call libm lane by lane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from tvm import tirx

from schedules import scalar_math as fast
from schedules.interface import Attr, Epilogue, PrimExpr, Step
from schedules.scalar_math import dtype_of, is_nan, let

_HALF = ("float16", "bfloat16")


def constant(value: float, dtype: str) -> PrimExpr:
    """`value` as an immediate of `dtype`."""
    return tirx.const(value, dtype)


def like(value: float, x: PrimExpr) -> PrimExpr:
    """`value` as an immediate of x's dtype."""
    return tirx.const(value, dtype_of(x))


def _is_float(x: PrimExpr) -> bool:
    return "float" in dtype_of(x)


def _is_constant(x: PrimExpr) -> bool:
    return isinstance(x, (tirx.FloatImm, tirx.IntImm))


def lowest(dtype: str) -> PrimExpr:
    """The identity of maximum: −inf, or the least integer."""
    return tirx.const(float("-inf"), dtype) if "float" in dtype else tirx.min_value(dtype)


def highest(dtype: str) -> PrimExpr:
    """The identity of minimum: inf, or the greatest integer."""
    return tirx.const(float("inf"), dtype) if "float" in dtype else tirx.max_value(dtype)


def maximum(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """max(a, b); NaN if either is."""
    return _extremum(tirx.max, a, b)


def minimum(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """min(a, b); NaN if either is."""
    return _extremum(tirx.min, a, b)


def _extremum(choose: Callable[..., PrimExpr], a: PrimExpr, b: PrimExpr) -> PrimExpr:
    # The machine's max(a, b) is b where a comparison with NaN fails: only a NaN in a is lost.
    if not _is_float(a):
        return choose(a, b)
    if _is_constant(b):
        a, b = b, a
    if _is_constant(a):
        return choose(a, b)
    return let(a, lambda a: let(b, lambda b: tirx.Select(is_nan(a), a, choose(a, b))))


def _libm(name: str) -> Callable[[PrimExpr], PrimExpr]:
    def call(x: PrimExpr) -> PrimExpr:
        suffix = "f" if dtype_of(x) == "float32" else ""
        return tirx.call_pure_extern(dtype_of(x), name + suffix, x)

    return call


def _by_width(
    single: Callable[[PrimExpr], PrimExpr], double: Callable[[PrimExpr], PrimExpr]
) -> Callable[[PrimExpr], PrimExpr]:
    return lambda x: single(x) if dtype_of(x) == "float32" else double(x)


_exp = _by_width(fast.exp, _libm("exp"))
_expm1 = _by_width(fast.expm1, _libm("expm1"))
_log1p = _by_width(fast.log1p, _libm("log1p"))
_tanh = _by_width(fast.tanh, _libm("tanh"))
_erf = _by_width(fast.erf, _libm("erf"))


def _absolute(x: PrimExpr) -> PrimExpr:
    if dtype_of(x).startswith("uint"):
        return x
    if _is_float(x):
        return tirx.abs(x)
    return let(x, lambda x: tirx.Select(x < like(0, x), like(0, x) - x, x))


def _negative(x: PrimExpr) -> PrimExpr:
    dtype = dtype_of(x)
    if _is_float(x):
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


def _gelu(x: PrimExpr) -> PrimExpr:
    return (like(0.5, x) * x) * (like(1, x) + _erf(x * like(math.sqrt(0.5), x)))


def _gelu_tanh(x: PrimExpr) -> PrimExpr:
    inner = like(math.sqrt(2 / math.pi), x) * (x + like(0.044715, x) * x * x * x)
    return (like(0.5, x) * x) * (like(1, x) + _tanh(inner))


def _not_equal_zero(x: PrimExpr) -> PrimExpr:
    zero = like(0, x)
    return tirx.any(x < zero, x > zero, is_nan(x)) if _is_float(x) else x != zero


_LIBM = ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh")

_UNARY: Mapping[str, Callable[[PrimExpr], PrimExpr]] = {
    "identity": lambda x: x,
    "negative": _negative,
    "abs": _absolute,
    "exp": _exp,
    "expm1": _expm1,
    "log": _by_width(fast.log, _libm("log")),
    "log1p": _log1p,
    "sqrt": tirx.sqrt,
    "rsqrt": lambda x: like(1, x) / tirx.sqrt(x),
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "erf": _erf,
    "relu": lambda x: tirx.max(like(0, x), x),  # in this order NaN stays NaN
    "hard_swish": lambda x: x * _between(x * like(1 / 6, x) + like(0.5, x), 0.0, 1.0),
    "silu": lambda x: x / (like(1, x) + _exp(like(0, x) - x)),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "softplus": _by_width(fast.softplus, _softplus_double),
    "softsign": lambda x: x / (like(1, x) + tirx.abs(x)),
    "mish": _by_width(fast.mish, _mish_double),
    "floor": lambda x: tirx.floor(x) if _is_float(x) else x,
    "ceil": lambda x: tirx.ceil(x) if _is_float(x) else x,
    "round": lambda x: _round(x) if _is_float(x) else x,
    "sign": _sign,
    "square": lambda x: x * x,
    "reciprocal": lambda x: like(1, x) / x,
    "bitwise_not": tirx.bitwise_not,
    "logical_not": tirx.Not,
    "isnan": lambda x: is_nan(x) if _is_float(x) else tirx.const(False, "bool"),
    **{name: _libm(name) for name in _LIBM},
}


def _between(x: PrimExpr, low: Attr | None, high: Attr | None) -> PrimExpr:
    if high is not None:
        x = tirx.min(like(high, x), x)  # type: ignore[arg-type]  # attributes are numbers here
    return x if low is None else tirx.max(like(low, x), x)  # type: ignore[arg-type]


def _isinf(x: PrimExpr, attrs: Mapping[str, Attr]) -> PrimExpr:
    result = tirx.const(False, "bool")
    if not _is_float(x):
        return result
    if attrs.get("detect_positive", True):
        result = x == like(math.inf, x)
    if attrs.get("detect_negative", True):
        result = tirx.any(result, x == like(-math.inf, x))
    return result


def cast(x: PrimExpr, dtype: str) -> PrimExpr:
    """x as `dtype`; to bool by comparing with zero, floats to small integers by way of int32."""
    source = dtype_of(x)
    if source == dtype:
        return x
    if dtype == "bool":
        if source in _HALF:
            return cast(tirx.Cast("float32", x), dtype)
        return let(x, _not_equal_zero)
    if _is_float(x) and dtype in ("int8", "uint8", "int16", "uint16"):
        return tirx.Cast(dtype, tirx.Cast("int32", x))
    if source == "bool":
        return tirx.Select(x, tirx.const(1, dtype), tirx.const(0, dtype))
    return tirx.Cast(dtype, x)


def _elu(x: PrimExpr, alpha: float, gamma: float = 1.0) -> PrimExpr:
    negative = like(alpha * gamma, x) * _expm1(x)
    return tirx.Select(x > like(0, x), like(gamma, x) * x if gamma != 1 else x, negative)


def _celu(x: PrimExpr, alpha: float) -> PrimExpr:
    return tirx.Select(x > like(0, x), x, like(alpha, x) * _expm1(x / like(alpha, x)))


_WITH_ATTRS: Mapping[str, Callable[[PrimExpr, Mapping[str, Attr]], PrimExpr]] = {
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


def _exclusive_or(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    return tirx.any(tirx.all(a, tirx.Not(b)), tirx.all(tirx.Not(a), b))


def _divisor(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """b, or 1 where dividing a by b would trap: b = 0, or the least integer by −1."""
    if _is_constant(b) and int(b) not in (0, -1):
        return b
    # Sums, not Select: the division would be moved into a Select's branches and trap there.
    dtype = dtype_of(b)
    result = b + tirx.Cast(dtype, b == like(0, b))
    if not dtype.startswith("uint"):
        # TVM takes a == lowest for impossible.
        overflow = tirx.all(b == like(-1, b), a < lowest(dtype) + like(1, b))
        result = result + tirx.Cast(dtype, overflow) * like(2, b)
    return result


def _divide(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    if _is_float(a):
        return a / b
    return tirx.truncdiv(a, _divisor(a, b))


def _remainder(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """C's remainder: the sign of a."""
    if _is_float(a):
        return tirx.call_pure_extern(
            dtype_of(a), "fmodf" if dtype_of(a) == "float32" else "fmod", a, b
        )
    return tirx.truncmod(a, _divisor(a, b))


def _modulo(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """Python's modulo: the sign of b."""

    def fix(r: PrimExpr) -> PrimExpr:
        zero = like(0, r)
        wrong = tirx.any(tirx.all(r < zero, b > zero), tirx.all(r > zero, b < zero))
        return tirx.Select(wrong, r + b, r)

    unsigned = dtype_of(a).startswith("uint")
    return _remainder(a, b) if unsigned else let(_remainder(a, b), fix)


def _floor_divide(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    if _is_float(a):
        return tirx.floor(a / b)

    def fix(q: PrimExpr) -> PrimExpr:
        zero = like(0, a)
        inexact = q * b != a
        return tirx.Select(tirx.all(inexact, _exclusive_or(a < zero, b < zero)), q - like(1, a), q)

    unsigned = dtype_of(a).startswith("uint")
    return _divide(a, b) if unsigned else fix(_divide(a, b))


def _integer_power(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    """aᵇ by squaring, wrapping on overflow, for 0 ≤ b < 64."""

    def multiply(result: PrimExpr, square: PrimExpr, bit: int) -> PrimExpr:
        taken = ((b >> like(bit, b)) & like(1, b)) == like(1, b)
        chosen = tirx.Select(taken, result * square, result)
        if bit == 5:
            return chosen
        return let(
            chosen,
            lambda chosen: let(square * square, lambda next_: multiply(chosen, next_, bit + 1)),
        )

    return multiply(like(1, a), a, 0)


def _power(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    if not _is_float(a):
        if isinstance(b, tirx.IntImm) and int(b) == 2:
            return a * a
        return _integer_power(a, tirx.Cast(dtype_of(a), b))
    if isinstance(b, tirx.FloatImm):
        value = float(b)
        if value in (0.0, 1.0, 2.0, 3.0, -1.0):
            one = like(1, a)
            return {0.0: one, 1.0: a, 2.0: a * a, 3.0: a * a * a, -1.0: one / a}[value]
    name = "powf" if dtype_of(a) == "float32" else "pow"
    return tirx.call_pure_extern(dtype_of(a), name, a, b)


def _equal(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    # LLVM code generation has no comparison of bools.
    return tirx.Not(_exclusive_or(a, b)) if dtype_of(a) == "bool" else tirx.EQ(a, b)


def _not_equal(a: PrimExpr, b: PrimExpr) -> PrimExpr:
    if dtype_of(a) == "bool":
        return _exclusive_or(a, b)
    # TVM's != is false for NaN.
    if _is_float(a):
        return tirx.any(a < b, a > b, is_nan(a), is_nan(b))
    return tirx.NE(a, b)


def _shift(shift: Callable[..., PrimExpr]) -> Callable[[PrimExpr, PrimExpr], PrimExpr]:
    def guarded(a: PrimExpr, b: PrimExpr) -> PrimExpr:
        width = int("".join(c for c in dtype_of(a) if c.isdigit()))
        inside = b < like(width, b)
        return tirx.Select(inside, shift(a, tirx.min(b, like(width - 1, b))), like(0, a))

    return guarded


_BINARY: Mapping[str, Callable[[PrimExpr, PrimExpr], PrimExpr]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": _divide,
    "maximum": maximum,
    "minimum": minimum,
    "power": _power,
    "mod": _modulo,
    "floor_mod": _modulo,
    "fmod": _remainder,
    "floor_divide": _floor_divide,
    "equal": _equal,
    "not_equal": _not_equal,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "logical_and": tirx.all,
    "logical_or": tirx.any,
    "logical_xor": _exclusive_or,
    "bitwise_and": tirx.bitwise_and,
    "bitwise_or": tirx.bitwise_or,
    "bitwise_xor": tirx.bitwise_xor,
    "left_shift": _shift(tirx.shift_left),
    "right_shift": _shift(tirx.shift_right),
    "prelu": lambda x, slope: tirx.Select(x < like(0, x), x * slope, x),
}

_TERNARY: Mapping[str, Callable[[PrimExpr, PrimExpr, PrimExpr], PrimExpr]] = {
    "where": tirx.Select,
    "clip": lambda x, low, high: minimum(maximum(x, low), high),
}

OPS = frozenset({"constant", "cast", *_UNARY, *_WITH_ATTRS, *_BINARY, *_TERNARY})
"""Every operation a Step may name."""


def _bind(args: Sequence[PrimExpr], body: Callable[[Sequence[PrimExpr]], PrimExpr]) -> PrimExpr:
    """`body(args)`, with each argument evaluated once."""
    if not args:
        return body(())
    return let(args[0], lambda first: _bind(args[1:], lambda rest: body((first, *rest))))


def evaluate(step: Step, args: Sequence[PrimExpr]) -> PrimExpr:
    """The value of one epilogue step.

    Attributes: constant (value, dtype), cast (dtype), clip (min, max; either may be absent),
    leaky_relu, elu, celu, thresholded_relu (alpha), hard_sigmoid (alpha, beta), selu (alpha,
    gamma), isinf (detect_negative, detect_positive). clip takes tensor bounds as three arguments.

    Raises:
        KeyError: no such operation.
    """
    if step.op == "constant":
        return constant(step.attr("value"), step.attr("dtype"))
    if step.op == "cast":
        return cast(args[0], step.attr("dtype"))
    return _bind(args, lambda bound: _apply(step, bound))


def _apply(step: Step, args: Sequence[PrimExpr]) -> PrimExpr:
    if step.op == "where":  # chooses, computes nothing
        return tirx.Select(*args)
    halves = [dtype_of(a) for a in args if dtype_of(a) in _HALF]
    if halves:
        wide = [tirx.Cast("float32", a) if dtype_of(a) in _HALF else a for a in args]
        result = _bind(wide, lambda bound: _apply(step, bound))
        return tirx.Cast(halves[0], result) if dtype_of(result) == "float32" else result
    if step.op in _TERNARY and len(args) == 3:
        return _TERNARY[step.op](*args)
    if step.op in _WITH_ATTRS:
        return _WITH_ATTRS[step.op](args[0], dict(step.attrs))
    if step.op in _BINARY:
        return _BINARY[step.op](args[0], args[1])
    return _UNARY[step.op](args[0])


_ZERO_TO_ZERO = frozenset(
    [
        "identity",
        "negative",
        "abs",
        "expm1",
        "log1p",
        "sqrt",
        "tanh",
        "erf",
        "relu",
        "hard_swish",
        "silu",
        "gelu",
        "gelu_tanh",
        "softsign",
        "mish",
        "floor",
        "ceil",
        "round",
        "sign",
        "square",
        "sin",
        "tan",
        "asin",
        "atan",
        "sinh",
        "asinh",
        "atanh",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "cast",
    ]
)


def keeps_zero(epilogue: Epilogue, without_anchor: bool) -> bool:
    """Whether padding lanes that hold zeros in all values hold zeros in the result.

    Known are value 0 (zero, unless there is no anchor), constants, and operands with channels
    (zero: their padding lanes are). A product is only zero if its other factor is known finite.
    """
    known: list[float | None] = [None if without_anchor else 0.0]
    for sig in epilogue.operands:
        has_channels = len(sig.shape) > 1 and sig.shape[1] > 1
        known.append(0.0 if has_channels else None)
    for step in epilogue.steps:
        known.append(_known(step, [known[i] for i in step.args]))
    return known[-1] == 0.0


def _known(step: Step, args: Sequence[float | None]) -> float | None:
    """The value of a step in a padding lane, if it is zero or a constant."""
    if step.op == "constant":
        return float(step.attr("value"))
    if step.op == "where":
        return 0.0 if args[1] == args[2] == 0.0 else None
    if any(a is None for a in args):
        return None
    values = [a for a in args if a is not None]
    if step.op in _ZERO_TO_ZERO or step.op in ("add", "subtract", "maximum", "minimum"):
        return 0.0 if not any(values) else None
    if step.op == "clip" and len(values) == 1:
        attrs = dict(step.attrs)
        low, high = attrs.get("min"), attrs.get("max")
        inside = (low is None or low <= 0) and (high is None or high >= 0)  # type: ignore[operator]
        return 0.0 if values[0] == 0 and inside else None
    if step.op in ("multiply", "prelu"):
        return 0.0 if 0.0 in values and all(map(math.isfinite, values)) else None
    if step.op == "divide":
        return 0.0 if values[0] == 0 and values[1] != 0 and not math.isnan(values[1]) else None
    return None
