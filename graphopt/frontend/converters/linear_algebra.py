"""Matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import relax

from graphopt.frontend.converters.elementwise import is_float
from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    shape_of,
)

op = relax.op


def lifted_product(
    node: NodeContext, a: Expr, b: Expr, product: Callable[[Expr, Expr], Expr]
) -> Expr:
    """NumPy's matmul by a `product` of operands of rank ≥ 2, to which vectors are lifted."""
    rank_a, rank_b = len(shape_of(a)), len(shape_of(b))
    if rank_a == 1:
        a = node.reshape(a, (1, *shape_of(a)))
    if rank_b == 1:
        b = node.reshape(b, (*shape_of(b), 1))
    result = product(a, b)
    shape = list(shape_of(result))
    if rank_b == 1:
        del shape[-1]
    if rank_a == 1:
        del shape[-1 if rank_b == 1 else -2]
    return node.reshape(result, shape)


def matrix_product(node: NodeContext, a: Expr, b: Expr) -> Expr:
    """NumPy's matmul; kernels see rank ≥ 2 only."""

    def product(a: Expr, b: Expr) -> Expr:
        if shape_of(a)[-1] != shape_of(b)[-2]:
            raise Unsupported(f"{shape_of(a)} and {shape_of(b)} cannot be multiplied")
        return node.emit(op.matmul(a, b))

    return lifted_product(node, a, b, product)


def matmul(node: NodeContext) -> Expr:
    """MatMul."""
    return matrix_product(node, node.input(0), node.input(1))


def gemm(node: NodeContext) -> Expr:
    """alpha·A·B + beta·C; transposes and factors of constants are folded into them."""
    alpha, beta = node.float_attr("alpha", 1.0), node.float_attr("beta", 1.0)
    if not is_float(node.input(0)) and (alpha % 1 or beta % 1):
        raise Unsupported(f"factors {alpha} and {beta} of {dtype_of(node.input(0))} products")
    a = _operand(node, 0, node.flag_attr("transA"), 1.0)
    fold_alpha = node.array(1) is not None
    b = _operand(node, 1, node.flag_attr("transB"), alpha if fold_alpha else 1.0)
    result = matrix_product(node, a, b)
    if alpha != 1.0 and not fold_alpha:
        result = node.emit(op.multiply(result, node.scalar(alpha, result)))
    if not node.has(2) or beta == 0.0:
        return result
    return node.emit(op.add(result, _operand(node, 2, False, beta)))


def _operand(node: NodeContext, index: int, transposed: bool, factor: float) -> Expr:
    array = node.array(index)
    if array is not None:
        if transposed:
            array = array.T
        return constant(array * array.dtype.type(factor) if factor != 1.0 else array)
    value = node.input(index)
    if transposed:
        value = node.transpose(value, (1, 0))
    if factor != 1.0:
        value = node.emit(op.multiply(value, node.scalar(factor, value)))
    return value


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "MatMul"): matmul,
    ("", "Gemm"): gemm,
}
