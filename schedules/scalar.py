"""Scalar operations of epilogues as TIR expressions that vectorise.

Semantics are ONNX's where it speaks and NumPy's elsewhere: maximum and minimum propagate NaN,
integer division truncates, `mod` takes the divisor's sign and `fmod` the dividend's. float16 and
bfloat16 are computed in float32. Functions without a polynomial in scalar_math.py (sin, atan,
power, …) call libm lane by lane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from schedules.interface import PrimExpr, Step
from schedules.scalar_binary import BINARY, TERNARY
from schedules.scalar_math import dtype_of, let
from schedules.scalar_narrow import NARROW
from schedules.scalar_quantized import QUANTIZED
from schedules.scalar_unary import UNARY, WITH_ATTRS
from schedules.scalar_values import HALF, cast, constant

OPS = frozenset({"constant", "cast", *UNARY, *WITH_ATTRS, *BINARY, *TERNARY, *QUANTIZED, *NARROW})
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
    gamma), isinf (detect_negative, detect_positive), quantize (precision, low, high), dequantize
    (dtype), those of scalar_narrow. clip takes tensor bounds as three arguments.

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
    if step.op in QUANTIZED:
        return QUANTIZED[step.op](args, dict(step.attrs))
    if step.op in NARROW:
        return NARROW[step.op](args[0], dict(step.attrs))
    halves = [dtype_of(a) for a in args if dtype_of(a) in HALF]
    if halves:
        result = _bind([_widened(a) for a in args], lambda bound: _apply(step, bound))
        return tirx.Cast(halves[0], result) if dtype_of(result) == "float32" else result
    if step.op in TERNARY and len(args) == 3:
        return TERNARY[step.op](*args)
    if step.op in WITH_ATTRS:
        return WITH_ATTRS[step.op](args[0], dict(step.attrs))
    if step.op in BINARY:
        return BINARY[step.op](args[0], args[1])
    return UNARY[step.op](args[0])


def _widened(value: PrimExpr) -> PrimExpr:
    """`value` as float32 where it is narrower; a constant stays one, which operators look for."""
    if dtype_of(value) not in HALF:
        return value
    if isinstance(value, tirx.FloatImm):
        return tirx.const(value.value, "float32")
    return tirx.Cast("float32", value)
