"""Reads expressions as polynomials and products, so that a pattern matches in any written order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose

from tvm import relax

from graphopt.passes.rewrite import View
from graphopt.passes.values import Expr, op_name

Polynomial = Mapping[int, float]  # coefficient by power of x

MAX_DEGREE = 3
MAX_DEPTH = 10


def close(left: float, right: float) -> bool:
    """Equality of exported constants: they are float32, some written with six or seven digits."""
    return isclose(left, right, rel_tol=1e-5, abs_tol=1e-12)


def polynomial(view: View, expr: Expr, x: Expr, depth: int = MAX_DEPTH) -> Polynomial | None:
    """`expr` as a polynomial in the variable `x` with scalar coefficients, or None."""
    if isinstance(expr, relax.Var) and expr.same_as(x):
        return {1: 1.0}
    constant = view.scalar(expr)
    if constant is not None:
        return {0: constant}
    call = view.producer(expr)
    kind = "" if call is None else op_name(call)
    if depth == 0 or kind not in ("add", "subtract", "multiply", "divide"):
        return None
    left = polynomial(view, call.args[0], x, depth - 1)  # type: ignore[union-attr]
    right = None if left is None else polynomial(view, call.args[1], x, depth - 1)  # type: ignore[union-attr]
    if left is None or right is None:
        return None
    if kind == "multiply":
        return _times(left, right)
    if kind == "divide":
        divisor = right.get(0, 0.0)
        if set(right) != {0} or divisor == 0.0:
            return None
        return {power: value / divisor for power, value in left.items()}
    sign = -1.0 if kind == "subtract" else 1.0
    return {p: left.get(p, 0.0) + sign * right.get(p, 0.0) for p in {*left, *right}}


def _times(left: Polynomial, right: Polynomial) -> Polynomial | None:
    product: dict[int, float] = {}
    for p, a in left.items():
        for q, b in right.items():
            product[p + q] = product.get(p + q, 0.0) + a * b
    return product if max(product) <= MAX_DEGREE else None


def is_polynomial(found: Polynomial | None, wanted: Polynomial) -> bool:
    """Whether `found` has the coefficients `wanted` and no others."""
    if found is None:
        return False
    return all(close(found.get(p, 0.0), wanted.get(p, 0.0)) for p in {*found, *wanted})


@dataclass(frozen=True)
class Product:
    """coefficient · factors[0] · factors[1] · …"""

    coefficient: float
    factors: tuple[Expr, ...]


def product(view: View, expr: Expr, atom: Expr | None = None, depth: int = MAX_DEPTH) -> Product:
    """`expr` as a product, not looking inside the variable `atom`."""
    constant = view.scalar(expr)
    if constant is not None:
        return Product(constant, ())
    call = None if atom is not None and expr.same_as(atom) else view.call(expr, "multiply")
    if call is None or depth == 0:
        return Product(1.0, (expr,))
    left = product(view, call.args[0], atom, depth - 1)
    right = product(view, call.args[1], atom, depth - 1)
    return Product(left.coefficient * right.coefficient, left.factors + right.factors)


def subproducts(view: View, expr: Expr, depth: int = MAX_DEPTH) -> Iterator[Expr]:
    """The variables in the tree of multiplications that ends in `expr`, without itself."""
    call = view.call(expr, "multiply")
    if call is None or depth == 0:
        return
    for operand in call.args:
        if isinstance(operand, relax.Var):
            yield operand
            yield from subproducts(view, operand, depth - 1)


def scaled_by(view: View, root: Expr, x: Expr, factor: Expr) -> float | None:
    """c where `root` is c · x · factor, or None."""
    found = product(view, root, x)
    if len(found.factors) != 2:
        return None
    first, second = found.factors
    fits = (first.same_as(x) and second.same_as(factor)) or (
        first.same_as(factor) and second.same_as(x)
    )
    return found.coefficient if fits else None
