"""Winograd's F(2×2, 3×3) in integers: the transforms of filters, data and products.

From Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). Filters are taken
twice as large along each axis, so that everything is whole; so are the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from schedules.byte_halves import PAIRS
from schedules.conv_common import ceil_div
from schedules.interface import PrimExpr
from schedules.nest import Stmt

OUT, IN = 2, 4
POINTS = IN * IN
_FILTER = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.int32)
"""Twice the transform of a filter's axis."""


@dataclass(frozen=True)
class TransformedWeights:
    """Packs int8 (O,C,3,3) as (panels, 16, depth / 2, panel, 4): of pairs of channels of a filter,
    four times its transform, as the bytes of 16-bit integers."""

    depth: int
    panel: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        panels, _, pairs, panel, _ = self.packed_shape(array.shape)
        wide = np.zeros((panels * panel, self.depth, IN, IN), "<i2")
        wide[: array.shape[0], : array.shape[1]] = _FILTER @ array.astype(np.int32) @ _FILTER.T
        split = wide.reshape(panels, panel, pairs, PAIRS, POINTS)
        return np.ascontiguousarray(split.transpose(0, 4, 2, 1, 3)).view(np.int8)

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        panels = ceil_div(shape[0], self.panel)
        return (panels, POINTS, self.depth // PAIRS, self.panel, 2 * PAIRS)


class Held:
    """Statements that bind values, so that each is computed once."""

    def __init__(self, kind: str) -> None:
        self.kind, self.stmts = kind, list[Stmt]()

    def __call__(self, value: PrimExpr) -> PrimExpr:
        var = tirx.Var("held", self.kind)
        self.stmts.append(tirx.Bind(var, value))
        return var


def transformed(line: Sequence[PrimExpr], held: Held) -> list[PrimExpr]:
    """The transform of four numbers of the image."""
    a, b, c, d = line
    return [held(value) for value in (a - c, b + c, c - b, b - d)]


def results(line: Sequence[PrimExpr]) -> list[PrimExpr]:
    """Two results of four products."""
    a, b, c, d = line
    return [a + b + c, b - c - d]
