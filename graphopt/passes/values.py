"""Typed access to what Relax expressions say: op names, shapes, dtypes, attributes, constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

Expr = Any
Array: TypeAlias = npt.NDArray[Any]


def op_name(expr: Expr) -> str:
    """Kind of a binding's value: the op without "relax." ("add", "nn.conv2d",
    "graphopt.attention"), or "constant", "variable", "tuple", "item", "other".
    """
    if isinstance(expr, tvm.ir.Call):
        return str(expr.op.name).removeprefix("relax.") if isinstance(expr.op, tvm.ir.Op) else ""
    if isinstance(expr, tvm.ir.GenericConst):
        return "constant"
    if isinstance(expr, relax.Var):
        return "variable"
    if isinstance(expr, relax.Tuple):
        return "tuple"
    return "item" if isinstance(expr, relax.TupleGetItem) else "other"


def shape_of(expr: Expr) -> tuple[int, ...]:
    """Static shape of a typed tensor expression; ValueError where it has none."""
    shape = getattr(expr.ty, "shape", None)
    if shape is None:
        raise ValueError(f"{expr} has no static shape")
    return tuple(int(dim) for dim in shape.values)


def dtype_of(expr: Expr) -> str:
    """NumPy's name of a typed tensor expression's dtype."""
    return str(expr.ty.dtype)


def is_float(expr: Expr) -> bool:
    """Whether a tensor expression is of a floating-point dtype."""
    return "float" in dtype_of(expr)


def array_of(expr: Expr) -> Array | None:
    """The array of a constant, else None. It may share the constant's memory: do not write."""
    if not isinstance(expr, tvm.ir.GenericConst):
        return None
    try:
        return np.from_dlpack(expr.value)
    except (RuntimeError, TypeError, BufferError, AttributeError):
        array: Array = expr.value.numpy()  # dtypes NumPy's DLPack does not know
        return array


def scalar_of(expr: Expr) -> float | None:
    """The value of a constant with exactly one element, else None."""
    if op_name(expr) != "constant" or any(dim != 1 for dim in shape_of(expr)):
        return None
    array = array_of(expr)
    return None if array is None else float(array.reshape(()))


def constant(array: Array, dtype: str | None = None) -> Expr:
    """A Relax constant of `array`; unlike relax.const, its dtype is kept (int64, float64)."""
    target = dtype or array.dtype.name
    return relax.const(np.ascontiguousarray(array).reshape(array.shape), target)


def like(value: float, expr: Expr) -> Expr:
    """A scalar constant of `expr`'s dtype."""
    return constant(np.asarray(value, dtype_of(expr)))


def ints(values: Any) -> tuple[int, ...]:
    """A TVM array of integers (attributes, a slice's bounds) as a tuple."""
    if isinstance(values, (int, tvm.tirx.IntImm)):
        return (int(values),)
    return tuple(int(v) for v in values)


def permutation(call: Expr) -> tuple[int, ...]:
    """The axes of a permute_dims, non-negative; without axes it reverses them."""
    rank = len(shape_of(call.args[0]))
    if call.attrs.axes is None:
        return tuple(reversed(range(rank)))
    return tuple(axis % rank for axis in ints(call.attrs.axes))


def reduced_axes(call: Expr) -> tuple[int, ...]:
    """The axes of a reduction, sorted and non-negative; without axes all of them."""
    rank = len(shape_of(call.args[0]))
    if call.attrs.axis is None:
        return tuple(range(rank))
    return tuple(sorted(axis % rank for axis in ints(call.attrs.axis)))


def slice_ranges(call: Expr) -> tuple[tuple[int, int, int], ...] | None:
    """(begin, end, stride) per axis of a strided_slice, clipped; None for negative strides."""
    shape = shape_of(call.args[0])
    ranges = [(0, dim, 1) for dim in shape]
    axes, begins, ends = (ints(arg.fields) for arg in call.args[1:4])
    strides = ints(call.args[4].fields) if len(call.args) > 4 else (1,) * len(axes)
    for axis, begin, end, stride in zip(axes, begins, ends, strides, strict=True):
        if stride <= 0:
            return None
        start, stop, _ = slice(begin, end, stride).indices(shape[axis])
        ranges[axis % len(shape)] = (start, max(start, stop), stride)
    return tuple(ranges)


def sliced(expr: Expr, axis: int, begin: int, end: int) -> Expr:
    """expr[..., begin:end, ...] on one axis."""
    return relax.op.strided_slice(expr, [axis], [begin], [end], [1])


def reshaped(expr: Expr, shape: Sequence[int]) -> Expr:
    """A view of another shape."""
    return relax.op.reshape(expr, tuple(shape))


UNARY = (
    "abs", "ceil", "clip", "cos", "erf", "exp", "floor", "log", "negative", "nn.gelu",
    "nn.gelu_tanh", "nn.leakyrelu", "nn.relu", "nn.silu", "round", "rsqrt", "sigmoid", "sign",
    "sin", "sqrt", "square", "tanh", "graphopt.hard_sigmoid", "graphopt.hard_swish",
)  # fmt: skip
BINARY = ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power")
ELEMENTWISE = UNARY + BINARY
