"""com.microsoft: older names of standard operators, and small ones of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import dropwhile
from typing import Any

from tvm import relax

from graphopt.frontend.converters.delegate import apply, optional, passed_on
from graphopt.frontend.converters.generators import range_, triangle
from graphopt.frontend.converters.padding import pad
from graphopt.frontend.converters.scatter import gather_nd
from graphopt.frontend.emit import Expr, NodeContext, Unsupported, shape_of

op = relax.op


def _standard(
    converter: Callable[[NodeContext], Any], *attributes: str
) -> Callable[[NodeContext], Expr]:
    """The standard operator of the same inputs; `attributes` are those that both have."""

    def convert(node: NodeContext) -> Expr:
        inputs = [optional(node, i) for i in range(len(node))]
        return apply(node, converter, inputs, passed_on(node, *attributes))

    return convert


def expand_dims(node: NodeContext) -> Expr:
    """ExpandDims: one more axis of extent 1, before `axis`."""
    x = node.input(0)
    (axis,) = node.ints(1, "the axis")
    rank = len(shape_of(x)) + 1
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} is out of range for rank {rank}")
    axis %= rank
    return node.reshape(x, (*shape_of(x)[:axis], 1, *shape_of(x)[axis:]))


def _stripped(node: NodeContext, index: int) -> tuple[int, ...]:
    """An input's shape without its leading extents of 1."""
    return tuple(dropwhile(lambda extent: extent == 1, shape_of(node.input(index))))


def _complex_product(conjugate: bool) -> Callable[[NodeContext], Expr]:
    """A·B, or A·conj(B), of numbers whose parts lie along the last axis of extent 2.

    The document is silent about unequal shapes, and ONNX Runtime's kernel repeats an operand
    rightly along leading axes only; other broadcasts are refused.
    """

    def convert(node: NodeContext) -> Expr:
        def parts(index: int) -> tuple[Expr, Expr]:
            x = node.input(index)
            last = len(shape_of(x)) - 1
            if shape_of(x)[last] != 2:
                raise Unsupported(f"input {index} has no last axis of 2 parts")
            real, imaginary = (node.slice(x, [last], [i], [i + 1]) for i in (0, 1))
            return real, imaginary

        short, long = sorted((_stripped(node, 0), _stripped(node, 1)), key=len)
        if long[len(long) - len(short) :] != short:
            raise Unsupported(f"factors of shapes {short} and {long} are not supported")
        (a, b), (c, d) = parts(0), parts(1)
        if conjugate:
            d = node.emit(op.negative(d))
        ac, bd = node.emit(op.multiply(a, c)), node.emit(op.multiply(b, d))
        ad, bc = node.emit(op.multiply(a, d)), node.emit(op.multiply(b, c))
        both = [node.emit(op.subtract(ac, bd)), node.emit(op.add(ad, bc))]
        return node.emit(op.concat(both, len(shape_of(both[0])) - 1))

    return convert


def pair_distances(node: NodeContext) -> Expr:
    """CDist: (squared) Euclidean distances of the rows of A (M,N) and B (K,N): (M,K)."""
    metric = node.string_attr("metric", "sqeuclidean")
    if metric not in ("euclidean", "sqeuclidean"):
        raise Unsupported(f"metric '{metric}' is not supported")
    a, b = node.input(0), node.input(1)
    (m, n), (k, _) = shape_of(a), shape_of(b)
    # Differences, not |a|² + |b|² − 2ab: that would cancel for rows that are close.
    gap = node.emit(op.subtract(node.reshape(a, (m, 1, n)), node.reshape(b, (1, k, n))))
    squares = node.emit(op.sum(node.emit(op.multiply(gap, gap)), [2], False))
    return squares if metric == "sqeuclidean" else node.emit(op.sqrt(squares))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("com.microsoft", name): converter
    for name, converter in {
        "CDist": pair_distances,
        "ComplexMul": _complex_product(False),
        "ComplexMulConj": _complex_product(True),
        "ExpandDims": expand_dims,
        "GatherND": _standard(gather_nd),
        "Pad": _standard(pad, "mode"),
        "Range": _standard(range_),
        "Trilu": _standard(triangle, "upper"),
    }.items()
}
