"""A function of one byte, as a table."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, call_op, register


def lookup(x: Expr, table: Expr) -> Expr:
    """table[x] of int8 or uint8 numbers x, of any shape.

    table is of 8 bits, (256,); a negative number's place is 256 more.
    """
    return call_op(LOOKUP, (x, table), {})


def _infer(call: Expr, _: Any) -> Any:
    x, table = call.args
    if [int(dim) for dim in table.ty.shape] != [256] or str(x.ty.dtype) not in ("int8", "uint8"):
        raise ValueError(f"graphopt.lookup: {x.ty.dtype} in a table of {table.ty.shape}")
    return relax.TensorType(list(x.ty.shape), table.ty.dtype)


LOOKUP = register("graphopt.lookup", 2, _infer)
