"""Changes of element type: Cast, CastLike, BitCast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from graphopt.frontend.converters import narrow
from graphopt.frontend.elements import kept_as
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, dtype_of, numpy_dtype
from graphopt.ops.narrow import bitcast as bitcast_op


def cast(node: NodeContext) -> Expr:
    """Cast to another element type."""
    return _cast(node, node.int_attr("to"))


def cast_like(node: NodeContext) -> Expr:
    """Cast to the element type of the second input."""
    like = node.element(1)
    if not like:
        like = helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(node.input(1))))
    return _cast(node, like)


def _cast(node: NodeContext, code: int) -> Expr:
    saturate = node.flag_attr("saturate", 1)
    rounding = node.string_attr("round_mode", "up")
    x = narrow.decoded(node, 0)
    if narrow.is_narrow(code):
        return narrow.encode(node, x, code, saturate, rounding)
    if code == TensorProto.BFLOAT16 and dtype_of(x) == "float64":
        return x  # rounded once, where the output is stored
    return node.cast(x, numpy_dtype(code))


_BITS = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}


def _width(code: int) -> int:
    return _BITS.get(code, 8 * np.dtype(kept_as(code)).itemsize)


def bit_cast(node: NodeContext) -> Expr:
    """BitCast: the same bits as another type of the same width."""
    x, to = node.input(0), node.int_attr("to")
    source = node.element(0) or helper.np_dtype_to_tensor_dtype(np.dtype(dtype_of(x)))
    if _width(source) != _width(to):
        raise Unsupported(f"{_width(source)} bits are no {_width(to)} bits")
    wanted = kept_as(to)
    if dtype_of(x) == wanted:
        return x
    return node.emit(bitcast_op(x, dtype=wanted))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Cast"): cast,
    ("", "CastLike"): cast_like,
    ("", "BitCast"): bit_cast,
}
