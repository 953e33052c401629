"""A matrix product and what follows it with constants, column by column: bias, scales, rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import tvm

from graphopt.passes.rewrite import View
from graphopt.passes.values import Array, Expr, constant, op_name, shape_of

_PRODUCTS = ("matmul", "graphopt.matmul_integer")
_QUANTIZED = ("graphopt.quantize", "graphopt.requantize", "graphopt.dequantize")
_STEPS = ("add", "multiply", "astype", *_QUANTIZED)


@dataclass(frozen=True)
class Chain:
    """f(product(x, w)) for a matrix w; f is a chain of steps whose other operands are constant.

    steps: the calls, innermost first. links: the variables from the chain's end to the product.
    """

    product: Expr
    steps: tuple[Expr, ...]
    links: tuple[Expr, ...]

    @property
    def columns(self) -> int:
        """Length of the last axis."""
        return shape_of(self.product)[-1]


def product_chain(view: View, expr: Expr) -> Chain | None:
    """The chain that computes `expr`, if one does."""
    steps: list[Expr] = []
    links = [expr]
    call = view.call(expr, *_STEPS, *_PRODUCTS)
    while call is not None and op_name(call) not in _PRODUCTS:
        if not all(map(view.is_constant, call.args[1:])):
            return None
        steps.append(call)
        links.append(call.args[0])
        call = view.call(links[-1], *_STEPS, *_PRODUCTS)
    if call is None or len(shape_of(call.args[1])) != 2:
        return None
    return Chain(call, tuple(reversed(steps)), tuple(links))


def varies_elsewhere(chain: Chain) -> bool:
    """Whether a step's constant has other axes than the columns."""
    for operand in (arg for step in chain.steps for arg in step.args[1:]):
        dims = shape_of(operand)
        vector = dims[-1:] == (chain.columns,) and prod(dims) == chain.columns
        if prod(dims) != 1 and not vector:
            return True
    return False


def rebuilt(
    view: View, chain: Chain, x: Expr, weight: Expr, rank: int, part: Callable[[Array], Array]
) -> Expr:
    """The chain on another x and weight, with a result of this rank.

    part: which columns of the vectors among the constants are left.
    """
    result = tvm.ir.Call(chain.product.op, [x, weight], chain.product.attrs)
    for step in chain.steps:
        # A quantization's parameters have the rank of what is quantized, or none.
        leading = rank - 1 if op_name(step) in _QUANTIZED else 0
        operands = []
        for arg in step.args[1:]:
            array = view.constant(arg)
            assert array is not None  # matched
            short = array.reshape(()) if array.size == 1 else part(array.reshape(-1))
            operands.append(constant(short.reshape((*[1] * leading, -1)) if short.ndim else short))
        result = tvm.ir.Call(step.op, [result, *operands], step.attrs)
    return result
