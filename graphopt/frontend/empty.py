"""Tensors without elements: results that need no kernel, and operators applied to such tensors.

Neither the passes nor the kernels see an empty tensor, except as an input that nothing reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax

Expr = Any


def is_empty(value: Expr) -> bool:
    """Whether an emitted value is a tensor with a dimension 0."""
    shape = _shape(value)
    return shape is not None and 0 in shape


def settled(var: Expr, call: Expr) -> Expr | None:
    """What stands for `var`, bound to `call`, where a tensor without elements is involved.

    Returns:
        a constant, another value, or another call; None where there is no such tensor.

    Raises:
        NotImplementedError: the operator has no meaning for an empty operand.
    """
    shape = _shape(var)
    if shape is not None and 0 in shape:
        return relax.const(np.empty(shape, str(var.ty.dtype)), str(var.ty.dtype))
    if shape is None or not isinstance(call, tvm.ir.Call):
        return None
    operands = [field for arg in call.args for field in _fields(arg)]
    if not any(is_empty(operand) for operand in operands):
        return None
    name = str(call.op.name).removeprefix("relax.")
    if name == "concat":
        filled = [operand for operand in operands if not is_empty(operand)]
        return filled[0] if len(filled) == 1 else relax.op.concat(filled, call.attrs.axis)
    if name.removeprefix("graphopt.").startswith("scatter_"):
        return operands[0]  # nothing is written
    if name in _IDENTITIES or name in ("matmul", "nn.pad"):
        dtype = str(var.ty.dtype)
        if name == "nn.pad":
            if str(call.attrs.pad_mode) != "constant":
                raise NotImplementedError("an empty tensor has no edge to continue")
            value: Any = float(call.attrs.pad_value)
        else:
            value = _IDENTITIES[name](np.dtype(dtype)) if name in _IDENTITIES else 0
        one = relax.const(np.full((1,) * len(shape), value, dtype), dtype)
        return relax.op.broadcast_to(one, shape) if prod(shape) > 1 else one
    raise NotImplementedError(f"{name} of an empty tensor is not supported")


def lowest(dtype: np.dtype[Any]) -> Any:
    """−∞, or the least value of a type without it."""
    if dtype.kind == "b":
        return False
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def highest(dtype: np.dtype[Any]) -> Any:
    """+∞, or the greatest value of a type without it."""
    if dtype.kind == "b":
        return True
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


_IDENTITIES: Mapping[str, Callable[[np.dtype[Any]], Any]] = {
    "sum": lambda _: 0,
    "prod": lambda _: 1,
    "max": lowest,
    "min": highest,
    "mean": lambda dtype: np.nan if dtype.kind == "f" else 0,
}
"""What a reduction over no elements gives."""


def _fields(arg: Expr) -> list[Expr]:
    if isinstance(arg, relax.Tuple):
        return list(arg.fields)
    return [arg]


def _shape(value: Expr) -> tuple[int, ...] | None:
    kind = getattr(value, "ty", None)
    if not isinstance(kind, relax.TensorType):
        return None
    try:
        return tuple(int(dim) for dim in kind.shape)
    except (TypeError, AttributeError):
        return None
