"""Determinants of square matrices."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, call_op, ranked_shape, register


def determinant(x: Expr) -> Expr:
    """Determinants of x (B,n,n) → (B,)."""
    return call_op(DETERMINANT, (x,), {})


def _infer(call: Expr, _: Any) -> Any:
    batch, rows, columns = (int(dim) for dim in ranked_shape(call.args[0], "x", 3))
    if rows != columns:
        raise ValueError(f"graphopt.determinant: {rows} rows and {columns} columns")
    return relax.TensorType([batch], call.args[0].ty.dtype)


DETERMINANT = register("graphopt.determinant", 1, _infer)
