"""Scalar operations of epilogues as TIR expressions that vectorise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tvm import tirx

from schedules.interface import Epilogue, PrimExpr, Step


def constant(value: float, dtype: str) -> PrimExpr:
    """`value` as an immediate of `dtype`."""
    return tirx.const(value, dtype)


def _relu(x: PrimExpr) -> PrimExpr:
    return tirx.max(x, constant(0, str(x.ty.dtype)))


UNARY: Mapping[str, Callable[[PrimExpr], PrimExpr]] = {
    "relu": _relu,
    "negative": lambda x: -x,
    "sigmoid": tirx.sigmoid,
    "exp": tirx.exp,
    "tanh": tirx.tanh,
    "erf": tirx.erf,
    "sqrt": tirx.sqrt,
}

BINARY: Mapping[str, Callable[[PrimExpr, PrimExpr], PrimExpr]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "maximum": tirx.max,
    "minimum": tirx.min,
}


def evaluate(step: Step, args: Sequence[PrimExpr]) -> PrimExpr:
    """The value of one epilogue step."""
    if step.op == "constant":
        return constant(step.attr("value"), step.attr("dtype"))
    if step.op == "clip":
        (x,) = args
        dtype = str(x.ty.dtype)
        low, high = constant(step.attr("min"), dtype), constant(step.attr("max"), dtype)
        return tirx.max(tirx.min(x, high), low)
    if step.op in UNARY:
        return UNARY[step.op](args[0])
    return BINARY[step.op](args[0], args[1])


def keeps_zero(epilogue: Epilogue, without_anchor: bool) -> bool:
    """Whether padding lanes that hold zeros in all values hold zeros in the result."""
    return not epilogue.steps and not without_anchor
