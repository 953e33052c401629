"""Elements of 2 to 8 bits as numbers and back: for Cast and for quantization.

A node reads such an input as codes (frontend/elements.py): node.element(i) says of which type.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper
from tvm import relax

from graphopt.frontend.elements import CODES, element_name
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, dtype_of
from graphopt.frontend.model import Array
from graphopt.ops.narrow import decode_float, encode_float

INTEGERS = {
    TensorProto.INT4: (4, "int8"),
    TensorProto.UINT4: (4, "uint8"),
    TensorProto.INT2: (2, "int8"),
    TensorProto.UINT2: (2, "uint8"),
}
"""Integers narrower than a byte → their bits, and the type that holds their values."""


def is_narrow(code: int) -> bool:
    """Whether an ONNX element type is kept as codes of up to 8 bits."""
    return CODES.get(code) == "uint8"


def number_dtype(code: int) -> str:
    """The type in which decoded() gives elements of a narrow type."""
    return INTEGERS[code][1] if code in INTEGERS else "float32"


def limits(code: int) -> tuple[float, float]:
    """Least and greatest finite number of a narrow type."""
    describe: Any = ml_dtypes.iinfo if code in INTEGERS else ml_dtypes.finfo
    found = describe(helper.tensor_dtype_to_np_dtype(code))
    return float(found.min), float(found.max)


def decoded(node: NodeContext, index: int) -> Expr:
    """Input `index` as numbers, exactly; see number_dtype(). Other inputs as they are."""
    code = node.element(index)
    if not is_narrow(code):
        return node.input(index)
    known = node.array(index)
    if known is not None:
        return relax.const(decoded_array(known, code), number_dtype(code))
    return decode(node, node.input(index), code)


def decoded_array(codes: Array, code: int) -> Array:
    """As decode(), of a constant's codes."""
    numbers = codes.astype(np.uint8).view(helper.tensor_dtype_to_np_dtype(code))
    return np.asarray(numbers.astype(number_dtype(code)))


def decode(node: NodeContext, codes: Expr, code: int) -> Expr:
    """The numbers that uint8 `codes` of a narrow type stand for, exactly."""
    if code not in INTEGERS:
        return node.emit(decode_float(codes, kind=element_name(code)))
    bits, dtype = INTEGERS[code]
    if dtype == "uint8":
        return node.emit(relax.op.bitwise_and(codes, node.scalar((1 << bits) - 1, codes)))
    signed = node.cast(codes, dtype)
    unused = node.scalar(8 - bits, signed)
    return node.emit(relax.op.right_shift(node.emit(relax.op.left_shift(signed, unused)), unused))


def encode(
    node: NodeContext, value: Expr, code: int, saturate: bool = True, rounding: str = "up"
) -> Expr:
    """Numbers as codes (uint8) of a narrow type, by the rules of the operator Cast.

    To floats: rounded to nearest even; what is too large becomes the largest finite number, or,
    without `saturate`, infinity or NaN. `rounding` ("up", "down", "nearest") is that of FLOAT8E8M0.
    To integers: floats are cut off at the point, then only the low bits are kept.
    """
    if code in INTEGERS:
        bits, _ = INTEGERS[code]
        if dtype_of(value) != "bool" and "float" in dtype_of(value):
            value = node.cast(value, "int32")
        low = node.cast(value, "uint8")
        return node.emit(relax.op.bitwise_and(low, node.scalar((1 << bits) - 1, low)))
    if rounding not in ("up", "down", "nearest"):
        raise Unsupported(f"round_mode '{rounding}' is unknown")
    if dtype_of(value) != "float64":
        value = node.cast(value, "float32")
    call = encode_float(value, kind=element_name(code), saturate=saturate, rounding=rounding)
    return node.emit(call)
