"""Operators that read or write where other tensors say; indices may count from the end."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, register

REDUCTIONS = ("none", "add", "mul", "max", "min")


def scatter_elements(data: Expr, indices: Expr, updates: Expr, axis: int, reduction: str) -> Expr:
    """`data` with elements replaced by, or combined with, `updates` of the shape of `indices`.

    Each goes to its own coordinates but for `axis`, where the index is. Updates of one element are
    applied in order; indices out of range are left out.
    """
    attrs = {"axis": axis, "reduction": reduction}
    return call_op(SCATTER_ELEMENTS, (data, indices, updates), attrs)


def scatter_nd(data: Expr, indices: Expr, updates: Expr, reduction: str) -> Expr:
    """`data` with slices replaced by, or combined with, `updates`, in order.

    Shapes: data (D…), indices (T…, k), updates (T…, D[k:]…). Indices out of range are left out.
    """
    return call_op(SCATTER_ND, (data, indices, updates), {"reduction": reduction})


def gather_elements(data: Expr, indices: Expr, axis: int) -> Expr:
    """Elements of `data` at their own coordinates but for `axis`, where the index is."""
    return call_op(GATHER_ELEMENTS, (data, indices), {"axis": axis})


def gather_nd(data: Expr, indices: Expr, batch_dims: int) -> Expr:
    """Slices of `data` (B…, D…) at index tuples (B…, T…, k): (B…, T…, D[k:]…)."""
    return call_op(GATHER_ND, (data, indices), {"batch_dims": batch_dims})


def reverse_sequence(x: Expr, lengths: Expr, batch_axis: int, time_axis: int) -> Expr:
    """x with the first lengths[b] steps of each batch entry reversed."""
    attrs = {"batch_axis": batch_axis, "time_axis": time_axis}
    return call_op(REVERSE_SEQUENCE, (x, lengths), attrs)


def tensor_scatter(past: Expr, update: Expr, starts: Expr, axis: int, circular: bool) -> Expr:
    """`past` (B, …) with `update` written along `axis` from starts[b] on, wrapping if circular."""
    return call_op(TENSOR_SCATTER, (past, update, starts), {"axis": axis, "circular": circular})


def _infer_same(call: Expr, _: Any) -> Any:
    return call.args[0].ty


def _infer_gather_elements(call: Expr, _: Any) -> Any:
    return relax.TensorType(list(call.args[1].ty.shape), call.args[0].ty.dtype)


def _infer_gather_nd(call: Expr, _: Any) -> Any:
    data, indices = (list(arg.ty.shape) for arg in call.args)
    depth = int(indices[-1])
    shape = [*indices[:-1], *data[int(attributes(call)["batch_dims"]) + depth :]]
    return relax.TensorType(shape, call.args[0].ty.dtype)


SCATTER_ELEMENTS = register("graphopt.scatter_elements", 3, _infer_same)
SCATTER_ND = register("graphopt.scatter_nd", 3, _infer_same)
GATHER_ELEMENTS = register("graphopt.gather_elements", 2, _infer_gather_elements)
GATHER_ND = register("graphopt.gather_nd", 2, _infer_gather_nd)
REVERSE_SEQUENCE = register("graphopt.reverse_sequence", 2, _infer_same)
TENSOR_SCATTER = register("graphopt.tensor_scatter", 3, _infer_same)
