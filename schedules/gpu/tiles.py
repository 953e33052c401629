"""A matrix product on a device, as its loop nests see it: operands, tiling, tests at the edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from schedules.gpu.tilings import Product, Tiling, ceildiv
from schedules.interface import PrimExpr
from schedules.nest import Stmt


class Operand(Protocol):
    """Reads one side of a product."""

    def prepare(self, group: PrimExpr, lines: Callable[[int], PrimExpr], count: int) -> Stmt | None:
        """What a thread computes once about the `count` lines that it reads, lines(0), …"""
        ...

    def value(self, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr) -> PrimExpr:
        """The element of `line` (a row or column) at `step` of the reduction, for both inside the
        product; `slot` is the line's number among those that were prepared."""
        ...


Finish = Callable[[PrimExpr, PrimExpr, PrimExpr, PrimExpr], Stmt]
"""Stores a sum: (value, group, row, column)."""


@dataclass(frozen=True)
class Tiles:
    """The nest of a product.

    left, right: the operands. packed: whether each lies in blocks of lines padded with zeros, so
    that its lines and steps need no test (`right` then is read in place in a loop).
    """

    product: Product
    tiling: Tiling
    left: Operand
    right: Operand
    left_packed: bool
    right_packed: bool
    left_steps_first: bool
    right_steps_first: bool

    def blocks(self) -> tuple[int, int, int]:
        """Groups, and blocks along rows and columns."""
        p, t = self.product, self.tiling
        return p.groups, ceildiv(p.rows, t.height), ceildiv(p.columns, t.width)

    def element(
        self, right: bool, group: PrimExpr, step: PrimExpr, line: PrimExpr, slot: PrimExpr
    ) -> PrimExpr:
        """An element as a number of the sums' type, zero outside the product."""
        p, t = self.product, self.tiling
        operand, packed = (
            (self.right, self.right_packed) if right else (self.left, self.left_packed)
        )
        lines, block = (p.columns, t.width) if right else (p.rows, t.height)
        value = operand.value(group, step, line, slot)
        value = value if str(value.ty.dtype) == p.dtype else tirx.Cast(p.dtype, value)
        tests = []
        if lines % block and not packed:
            tests.append(line < lines)
        if p.steps % t.depth:
            tests.append(step < p.steps)
        return guarded(tests, value, p.dtype)


def guarded(tests: list[PrimExpr], value: PrimExpr, dtype: str) -> PrimExpr:
    """`value` where all tests hold, else zero; nothing is read where they do not."""
    if not tests:
        return value
    test = tests[0]
    for each in tests[1:]:
        test = tirx.all(test, each)
    return tirx.if_then_else(test, value, tirx.const(0, dtype))
