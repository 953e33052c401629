"""Evaluates operators on constants with NumPy; never compiles anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from scipy import special
from tvm import relax

from graphopt.passes.values import (
    Array,
    Expr,
    dtype_of,
    ints,
    op_name,
    permutation,
    reduced_axes,
    shape_of,
    slice_ranges,
)

Evaluator = Callable[[Expr, list[Array]], Array]


def _elementwise(function: Callable[..., Array]) -> Evaluator:
    return lambda _call, inputs: function(*inputs)


def _divide(call: Expr, inputs: list[Array]) -> Array:
    left, right = inputs
    if "float" in dtype_of(call):
        return np.asarray(left / right)
    # Integer division truncates towards zero.
    quotient = np.abs(left) // np.abs(right)
    return np.asarray(quotient * np.sign(left) * np.sign(right))


def _strided_slice(call: Expr, inputs: list[Array]) -> Array:
    ranges = slice_ranges(call)
    if ranges is None:
        raise NotImplementedError
    return inputs[0][tuple(slice(*bounds) for bounds in ranges)]


def _clip(call: Expr, inputs: list[Array]) -> Array:
    return np.clip(inputs[0], call.args[1].value, call.args[2].value)


def _concat(call: Expr, inputs: list[Array]) -> Array:
    return np.concatenate(inputs, axis=int(call.attrs.axis or 0))


def _take(call: Expr, inputs: list[Array]) -> Array:
    axis = 0 if call.attrs.axis is None else int(call.attrs.axis)
    return np.take(inputs[0], inputs[1], axis=axis)


def _cast(call: Expr, inputs: list[Array]) -> Array:
    with np.errstate(invalid="ignore"):
        return inputs[0].astype(dtype_of(call))


def _reduce(function: Callable[..., Array]) -> Evaluator:
    def evaluate(call: Expr, inputs: list[Array]) -> Array:
        return function(inputs[0], axis=reduced_axes(call), keepdims=bool(call.attrs.keepdims))

    return evaluate


def _reshape(call: Expr, inputs: list[Array]) -> Array:
    return inputs[0].reshape(shape_of(call))


def _broadcast(call: Expr, inputs: list[Array]) -> Array:
    return np.broadcast_to(inputs[0], shape_of(call))


def _pad(call: Expr, inputs: list[Array]) -> Array:
    widths = np.reshape(ints(call.attrs.pad_width), (-1, 2))
    if call.attrs.pad_mode != "constant" or (widths < 0).any():
        raise NotImplementedError
    return np.pad(inputs[0], widths, constant_values=float(call.attrs.pad_value))


EVALUATORS: Mapping[str, Evaluator] = MappingProxyType(
    {
        "abs": _elementwise(np.abs),
        "add": _elementwise(np.add),
        "astype": _cast,
        "broadcast_to": _broadcast,
        "ceil": _elementwise(np.ceil),
        "clip": _clip,
        "concat": _concat,
        "cos": _elementwise(np.cos),
        "divide": _divide,
        "equal": _elementwise(np.equal),
        "erf": _elementwise(special.erf),
        "exp": _elementwise(np.exp),
        "expand_dims": _reshape,
        "flatten": _reshape,
        "floor": _elementwise(np.floor),
        "greater": _elementwise(np.greater),
        "greater_equal": _elementwise(np.greater_equal),
        "less": _elementwise(np.less),
        "less_equal": _elementwise(np.less_equal),
        "log": _elementwise(np.log),
        "logical_and": _elementwise(np.logical_and),
        "logical_not": _elementwise(np.logical_not),
        "logical_or": _elementwise(np.logical_or),
        "matmul": _elementwise(np.matmul),
        "max": _reduce(np.max),
        "maximum": _elementwise(np.maximum),
        "mean": _reduce(np.mean),
        "min": _reduce(np.min),
        "minimum": _elementwise(np.minimum),
        "multiply": _elementwise(np.multiply),
        "negative": _elementwise(np.negative),
        "nn.pad": _pad,
        "nn.relu": lambda _call, inputs: np.maximum(inputs[0], 0),
        "not_equal": _elementwise(np.not_equal),
        "permute_dims": lambda call, inputs: inputs[0].transpose(permutation(call)),
        "power": _elementwise(np.power),
        "reshape": _reshape,
        "round": _elementwise(np.round),
        "rsqrt": _elementwise(lambda x: 1 / np.sqrt(x)),
        "sigmoid": _elementwise(special.expit),
        "sin": _elementwise(np.sin),
        "sqrt": _elementwise(np.sqrt),
        "squeeze": _reshape,
        "strided_slice": _strided_slice,
        "subtract": _elementwise(np.subtract),
        "sum": _reduce(np.sum),
        "take": _take,
        "tanh": _elementwise(np.tanh),
        "where": _elementwise(np.where),
    }
)


def tensor_arguments(call: Expr) -> list[Expr]:
    """The call's tensor operands, those inside a tuple included."""
    found: list[Expr] = []
    for arg in call.args:
        if isinstance(arg, relax.Tuple) and op_name(call) == "concat":
            found.extend(arg.fields)
        elif isinstance(arg.ty, relax.TensorType):
            found.append(arg)
    return found


def evaluate(call: Expr, inputs: list[Array]) -> Array:
    """The value of a typed call on the arrays of its tensor arguments, in the call's dtype.

    Raises NotImplementedError for operators and attributes that are not known here.
    """
    evaluator = EVALUATORS.get(op_name(call))
    if evaluator is None:
        raise NotImplementedError(op_name(call))
    with np.errstate(all="ignore"):
        result = np.asarray(evaluator(call, inputs))
    if result.shape != shape_of(call):
        raise ValueError(f"{op_name(call)} gave {result.shape}, not {shape_of(call)}")
    return result.astype(dtype_of(call), copy=False)
