"""Matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    shape_of,
)

op = relax.op


def matrix_product(node: NodeContext, a: Expr, b: Expr) -> Expr:
    """NumPy's matmul; vectors are lifted to matrices, so that kernels see rank ≥ 2 only."""
    rank_a, rank_b = len(shape_of(a)), len(shape_of(b))
    if rank_a == 1:
        a = node.reshape(a, (1, *shape_of(a)))
    if rank_b == 1:
        b = node.reshape(b, (*shape_of(b), 1))
    if shape_of(a)[-1] != shape_of(b)[-2]:
        raise Unsupported(f"{shape_of(a)} and {shape_of(b)} cannot be multiplied")
    result = node.emit(op.matmul(a, b))
    shape = list(shape_of(result))
    if rank_b == 1:
        del shape[-1]
    if rank_a == 1:
        del shape[-1 if rank_b == 1 else -2]
    return node.reshape(result, shape)


def matmul(node: NodeContext) -> Expr:
    """MatMul."""
    return matrix_product(node, node.input(0), node.input(1))


def gemm(node: NodeContext) -> Expr:
    """alpha·A·B + beta·C; transposes and factors of constants are folded into them."""
    alpha, beta = node.float_attr("alpha", 1.0), node.float_attr("beta", 1.0)
    a = _operand(node, 0, bool(node.int_attr("transA")), 1.0)
    fold_alpha = node.array(1) is not None
    b = _operand(node, 1, bool(node.int_attr("transB")), alpha if fold_alpha else 1.0)
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


def matmul_integer(node: NodeContext) -> Expr:
    """(A − a_zero)·(B − b_zero) in int32."""
    a = _shifted(node, 0, 2, -2)
    b = _shifted(node, 1, 3, -1)
    return matrix_product(node, a, b)


def _shifted(node: NodeContext, index: int, zero_index: int, axis: int) -> Expr:
    array, zero = node.array(index), node.array(zero_index)
    if node.has(zero_index) and zero is None:
        raise Unsupported("a zero point that is computed at run time is not supported")
    rank = len(shape_of(node.input(index)))
    if zero is not None and zero.ndim == 1 and zero.size > 1:
        shape = [1] * rank
        shape[axis] = zero.size
        zero = zero.reshape(shape)
    wide = None if zero is None else zero.astype(np.int32)
    if wide is not None and wide.size == 1:
        wide = wide.reshape(())
    if array is not None:
        shifted = array.astype(np.int32)
        return constant(shifted if wide is None else shifted - wide)
    value = node.cast(node.input(index), "int32")
    if wide is None or not wide.any():
        return value
    return node.emit(op.subtract(value, constant(wide)))


def einsum(node: NodeContext) -> Expr:
    """Einsum: as a batched matrix product where it is one, else by Relax's own operator."""
    equation = node.string_attr("equation").replace(" ", "")
    operands = node.inputs()
    product = _einsum_as_matmul(node, equation, operands)
    if product is not None:
        return product
    if "->" not in equation:
        letters = sorted(set(equation) - {",", "."})
        once = [letter for letter in letters if equation.count(letter) == 1]
        equation += "->" + ("..." if "..." in equation else "") + "".join(once)
    return node.emit(op.einsum(relax.Tuple(operands), equation))


def _einsum_as_matmul(node: NodeContext, equation: str, operands: list[Expr]) -> Expr | None:
    """Two operands, no ellipsis and no repeated or privately summed index: batch, M, K, N."""
    if "..." in equation or "->" not in equation or len(operands) != 2:
        return None
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    if len(terms) != 2 or any(len(set(t)) != len(t) for t in (*terms, output)):
        return None
    left, right = terms
    if len(left) != len(shape_of(operands[0])) or len(right) != len(shape_of(operands[1])):
        return None
    size: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, dim in zip(term, shape_of(operand), strict=True):
            if size.setdefault(letter, dim) != dim:
                return None  # broadcasting of 1
    batch = [c for c in left if c in right and c in output]
    summed = [c for c in left if c in right and c not in output]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    if not summed or any(c not in output for c in (*rows, *columns)):
        return None

    def count(letters: list[str]) -> int:
        return int(np.prod([size[c] for c in letters], dtype=np.int64))

    def arranged(operand: Expr, term: str, order: list[str], shape: tuple[int, ...]) -> Expr:
        return node.reshape(node.transpose(operand, [term.index(c) for c in order]), shape)

    lead = [size[c] for c in batch]
    a = arranged(operands[0], left, batch + rows + summed, (*lead, count(rows), count(summed)))
    b = arranged(
        operands[1], right, batch + summed + columns, (*lead, count(summed), count(columns))
    )
    order = batch + rows + columns
    result = node.reshape(node.emit(op.matmul(a, b)), [size[c] for c in order])
    return node.transpose(result, [order.index(c) for c in output])


def fused_matmul(node: NodeContext) -> Expr:
    """com.microsoft FusedMatMul: alpha·A'·B' with transposes of the last two axes."""
    if node.int_attr("transBatchA") or node.int_attr("transBatchB"):
        raise Unsupported("transposed batch axes are not supported")
    sides = []
    for index, name in enumerate(("transA", "transB")):
        value = node.input(index)
        rank = len(shape_of(value))
        if node.int_attr(name) and rank >= 2:
            value = node.transpose(value, [*range(rank - 2), rank - 1, rank - 2])
        sides.append(value)
    result = matrix_product(node, sides[0], sides[1])
    alpha = node.float_attr("alpha", 1.0)
    if alpha == 1.0:
        return result
    return node.emit(op.multiply(result, constant(alpha, dtype_of(result))))


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "MatMul"): matmul,
    ("", "Gemm"): gemm,
    ("", "MatMulInteger"): matmul_integer,
    ("", "Einsum"): einsum,
    ("com.microsoft", "FusedMatMul"): fused_matmul,
}
