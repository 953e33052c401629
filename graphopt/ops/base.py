"""How Relax operators of our own are made: registered, called, their attributes read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm.ir import _ffi_api

Expr = Any


def register(name: str, inputs: int, infer: Callable[[Expr, Any], Any]) -> Any:
    """The op `name`, registered at most once per process; `inputs` is -1 if their number varies."""
    if name in tvm.ir.Op.list_op_names():
        return tvm.ir.Op.get(name)
    _ffi_api.RegisterOp(name, f"{name}; see schedules/README.md")
    op = tvm.ir.Op.get(name)
    op.set_num_inputs(inputs)
    op.set_attr("FInferType", infer)
    op.set_attr("FPurity", True)
    return op


def call_op(op: Any, args: tuple[Expr, ...], attrs: Mapping[str, Any]) -> Expr:
    """A call of an own operator; lists stand for tuples in `attrs`."""
    return tvm.ir.Call(op, list(args), attrs=tvm.ir.make_node("ir.DictAttrs", **attrs))


def attributes(call: Expr) -> dict[str, Any]:
    """Attributes of a call of one of these operators, as Python values (tuples for lists)."""
    return {key: _python(value) for key, value in call.attrs.items()}


def _python(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        return value
    if hasattr(value, "value"):  # IntImm, FloatImm
        value = value.value
    if isinstance(value, (int, float)):
        return value
    if hasattr(value, "__len__"):
        return tuple(_python(item) for item in value)
    return value


def ranked_shape(expr: Expr, name: str, rank: int) -> list[Any]:
    """The shape of an argument; ValueError if it is not of this rank."""
    shape = list(expr.ty.shape)
    if len(shape) != rank:
        raise ValueError(f"{name} has rank {len(shape)}, not {rank}")
    return shape


def check_shapes(call: Expr, wanted: Mapping[int, list[Any]], op: str) -> None:
    """ValueError if an argument of `call`, by index, has another shape."""
    for index, shape in wanted.items():
        given = [int(dim) for dim in call.args[index].ty.shape]
        if given != [int(dim) for dim in shape]:
            raise ValueError(f"{op}: argument {index} has shape {given}, not {shape}")
