"""Operators on bit patterns: floats that kernels do not compute with are kept as integers."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, register


def decode_float(x: Expr, *, kind: str) -> Expr:
    """float32 values of codes `x` (uint8 or uint16) in a format of schedules/scalar_narrow.py."""
    return call_op(DECODE_FLOAT, (x,), {"format": kind})


def encode_float(x: Expr, *, kind: str, saturate: bool = True, rounding: str = "up") -> Expr:
    """Codes (uint8 or uint16) of the numbers `x` in a format, rounded to nearest even.

    Numbers that are too large become the largest finite one, or, without `saturate`, infinity or
    NaN. `rounding` is that of float8_e8m0fnu: "up", "down" or "nearest".
    """
    attrs = {"format": kind, "saturate": bool(saturate), "rounding": rounding}
    return call_op(ENCODE_FLOAT, (x,), attrs)


def bitcast(x: Expr, *, dtype: str) -> Expr:
    """The bits of `x` as elements of another type of the same width."""
    return call_op(BITCAST, (x,), {"dtype": dtype})


def _codes(kind: str) -> str:
    return "uint16" if kind == "bfloat16" else "uint8"


def _infer_decode(call: Expr, _: Any) -> Any:
    wanted = _codes(attributes(call)["format"])
    if str(call.args[0].ty.dtype) != wanted:
        raise ValueError(f"graphopt.decode_float: codes are {wanted}, not {call.args[0].ty.dtype}")
    return relax.TensorType(list(call.args[0].ty.shape), "float32")


def _infer_encode(call: Expr, _: Any) -> Any:
    return relax.TensorType(list(call.args[0].ty.shape), _codes(attributes(call)["format"]))


def _infer_bitcast(call: Expr, _: Any) -> Any:
    return relax.TensorType(list(call.args[0].ty.shape), attributes(call)["dtype"])


DECODE_FLOAT = register("graphopt.decode_float", 1, _infer_decode)
ENCODE_FLOAT = register("graphopt.encode_float", 1, _infer_encode)
BITCAST = register("graphopt.bitcast", 1, _infer_bitcast)
