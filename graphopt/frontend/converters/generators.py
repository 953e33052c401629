"""Operators whose result follows from shapes and constants alone, mostly too large to be folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, prod
from typing import Any

import numpy as np
from onnx import numpy_helper
from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    check_generated,
    constant,
    dtype_of,
    numpy_dtype,
    shape_of,
)

op = relax.op


def triangle(node: NodeContext) -> Expr:
    """Trilu: the upper or lower triangle, zeros elsewhere."""
    x = node.input(0)
    rows, columns = shape_of(x)[-2:]
    check_generated(rows * columns)
    offset = node.ints(1, "k")[0] if node.has(1) else 0
    distance = np.arange(columns)[None, :] - np.arange(rows)[:, None]
    kept = distance >= offset if node.flag_attr("upper", 1) else distance <= offset
    if dtype_of(x) == "bool":
        return node.emit(op.logical_and(x, constant(kept)))
    return node.emit(op.where(constant(kept), x, node.scalar(0, x)))


def shape_value(node: NodeContext) -> Expr:
    """Shape of a value, which is static here."""
    shape = shape_of(node.input(0))
    part = shape[node.int_attr("start") : node.int_attr("end", len(shape))]
    return constant(np.array(part, np.int64))


def size_value(node: NodeContext) -> Expr:
    """Number of elements."""
    return constant(np.array(prod(shape_of(node.input(0))), np.int64))


def constant_of_shape(node: NodeContext) -> Expr:
    """A filled tensor that was too large to be worth storing before."""
    value = node.attribute("value")
    fill = np.float32(0) if value is None else _fill(value)
    shape = tuple(node.ints(0, "the shape"))
    base = constant(np.full((1,) * len(shape), fill))
    return node.emit(op.broadcast_to(base, shape)) if shape else constant(np.array(fill))


def _fill(tensor: Any) -> Any:
    return numpy_helper.to_array(tensor).reshape(-1)[0]


def eye_like(node: NodeContext) -> Expr:
    """Ones on a diagonal."""
    x = node.input(0)
    rows, columns = shape_of(x)
    check_generated(rows * columns)
    dtype = numpy_dtype(node.int_attr("dtype")) if node.has_attribute("dtype") else dtype_of(x)
    return constant(np.eye(rows, columns, node.int_attr("k")), dtype)


def range_(node: NodeContext) -> Expr:
    """Range with constant bounds that was too large to be stored before."""
    start, limit, delta = (node.known(i, "a bound of Range").reshape(-1)[0] for i in range(3))
    if not delta or not np.isfinite([float(start), float(limit), float(delta)]).all():
        raise Unsupported(f"Range from {start} to {limit} by {delta} has no end")
    check_generated(ceil((float(limit) - float(start)) / float(delta)))
    return constant(np.arange(start, limit, delta, dtype=start.dtype))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Trilu"): triangle,
    ("", "Shape"): shape_value,
    ("", "Size"): size_value,
    ("", "ConstantOfShape"): constant_of_shape,
    ("", "EyeLike"): eye_like,
    ("", "Range"): range_,
}
