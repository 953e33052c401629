"""Operators along one axis: the largest elements and where they are, running sums and products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, normal_axis, shape_of
from graphopt.ops import ordering


def top_k(node: NodeContext) -> tuple[Expr | None, ...]:
    """The k largest or smallest along an axis, and where they were."""
    x = node.input(0)
    axis = normal_axis(node.int_attr("axis", -1), len(shape_of(x)))
    length = shape_of(x)[axis]
    k = node.int_attr("k") if node.opset < 10 else node.ints(1, "k")[0]
    largest = node.flag_attr("largest", 1)
    node.ignore("sorted")  # sorted results are right for both values
    if not 0 <= k <= length:
        raise Unsupported(f"k={k} is out of range for an axis of {length}")
    both = node.emit(ordering.topk(x, k, axis, largest))
    return tuple(
        node.emit(relax.TupleGetItem(both, i), i) if node.wants(i) else None for i in range(2)
    )


def _arg(function: str) -> Callable[[NodeContext], Expr]:
    def convert(node: NodeContext) -> Expr:
        x = node.input(0)
        shape = shape_of(x)
        axis = normal_axis(node.int_attr("axis"), len(shape))
        last = node.flag_attr("select_last_index")
        found = node.emit(ordering.arg_extremum(x, function, axis, last))
        if node.flag_attr("keepdims", 1):
            return found
        return node.reshape(found, (*shape[:axis], *shape[axis + 1 :]))

    return convert


def _scan(function: str) -> Callable[[NodeContext], Expr]:
    def convert(node: NodeContext) -> Expr:
        x = node.input(0)
        axis = normal_axis(node.ints(1, "axis")[0], len(shape_of(x)))
        exclusive, reverse = node.flag_attr("exclusive"), node.flag_attr("reverse")
        return node.emit(ordering.scan(x, function, axis, exclusive=exclusive, reverse=reverse))

    return convert


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "TopK"): top_k,
    ("", "ArgMax"): _arg("max"),
    ("", "ArgMin"): _arg("min"),
    ("", "CumSum"): _scan("sum"),
    ("", "CumProd"): _scan("prod"),
}
