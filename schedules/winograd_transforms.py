"""The matrices of Winograd's minimal filtering F(m×m, 3×3), and their products as TIR.

Cook–Toom construction (Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray,
CVPR 2016) on the points 0, ±3/4, ±3/2 and infinity for m = 4, and 0, ±1, infinity for m = 2. With
3/4 and 3/2, which are exact in binary, the error of F(4×4) is a quarter of that with ±1, ±2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.conv_common import ceil_div
from schedules.interface import PrimExpr
from schedules.nest import Stmt

Matrix = tuple[tuple[float, ...], ...]
POINTS = {
    2: (0.0, 1.0, -1.0),
    4: (0.0, 0.75, -0.75, 1.5, -1.5),
    6: (0.0, 0.5, -0.5, 1.0, -1.0, 1.75, -1.75),
}


@dataclass(frozen=True)
class Transforms:
    """y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A for a patch d of (m+2)² inputs and m² outputs y."""

    data: Matrix  # Bᵀ, (m+2, m+2)
    weights: Matrix  # G, (m+2, 3)
    output: Matrix  # Aᵀ, (m, m+2)


def transforms(m: int) -> Transforms:
    """The matrices for output tiles of m × m; opposite points are neighbours."""
    points, size = POINTS[m], m + 2
    data, weights, output = np.zeros((size, size)), np.zeros((size, 3)), np.zeros((m, size))
    for j, point in enumerate(points):
        others = [q for q in points if q != point]
        data[j, :-1] = np.polynomial.polynomial.polyfromroots(others)
        scale = float(np.prod([point - q for q in others]))
        weights[j] = [point**k / scale for k in range(3)]
        output[:, j] = [point**k for k in range(m)]
    data[-1] = np.polynomial.polynomial.polyfromroots(points)
    weights[-1, -1] = output[-1, -1] = 1.0

    def frozen(matrix: np.ndarray[Any, Any]) -> Matrix:
        return tuple(tuple(float(x) for x in row) for row in matrix)

    return Transforms(frozen(data), frozen(weights), frozen(output))


@dataclass(frozen=True)
class WinogradWeights:
    """Weights (O, I, 3, 3) as G g Gᵀ in (O / panel, (m+2)², I, panel), computed in float64."""

    m: int
    panel: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Transform and pack weights of logical shape (O, I, 3, 3)."""
        g = np.array(transforms(self.m).weights)
        filters, channels = array.shape[:2]
        panels = ceil_div(filters, self.panel)
        padded = np.zeros((panels * self.panel, channels, 3, 3), np.float64)
        padded[:filters] = array
        # Two matrix products are far faster here than one einsum of three factors.
        transformed = (g @ padded @ g.T).reshape(panels, self.panel, channels, (self.m + 2) ** 2)
        return np.ascontiguousarray(transformed.transpose(0, 3, 2, 1), dtype=array.dtype)

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        return (ceil_div(shape[0], self.panel), (self.m + 2) ** 2, shape[1], self.panel)


Read = Callable[[int, PrimExpr], PrimExpr]
Store = Callable[[int, PrimExpr, PrimExpr], Stmt]


def _weighted(coefficients: dict[int, float], read: Read, x: PrimExpr) -> PrimExpr:
    total = None
    # A coefficient of 1 first, so that the rest becomes multiply-adds onto it.
    for k, c in sorted(coefficients.items(), key=lambda item: item[1] != 1.0):
        value = read(k, x)
        term = value if c == 1.0 else value * tirx.const(c, "float32")
        total = term if total is None else total + term
    return tirx.const(0.0, "float32") if total is None else total


def apply_data(matrix: Matrix, read: Read, store: Store, lanes: int) -> Stmt:
    """store(r, x, Σ matrix[r][k] · read(k, x)) for Bᵀ.

    The rows of opposite points share their even and odd parts, one as the sum, one the difference.
    """
    size = len(matrix)

    def vector(body: Callable[[PrimExpr], Stmt]) -> Stmt:
        return nest.vectorized(lanes, body)

    def plain(r: int) -> Stmt:
        row = {k: c for k, c in enumerate(matrix[r]) if c}
        return vector(lambda x: store(r, x, _weighted(row, read, x)))

    def pair(r: int) -> Stmt:
        parts = nest.buffer((2, lanes), "float32", "parts", "local")

        def part(parity: int) -> Stmt:
            row = {k: matrix[r][k] for k in range(parity, size, 2) if matrix[r][k]}
            return vector(lambda x: nest.write(parts, _weighted(row, read, x), parity, x))

        def both(x: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
            return nest.read(parts, 0, x), nest.read(parts, 1, x)

        return nest.sequence(
            nest.allocate(parts),
            part(0),
            part(1),
            vector(lambda x: store(r, x, both(x)[0] + both(x)[1])),
            vector(lambda x: store(r + 1, x, both(x)[0] - both(x)[1])),
        )

    return nest.sequence(plain(0), *map(pair, range(1, size - 1, 2)), plain(size - 1))


def apply_output(matrix: Matrix, read: Read, store: Store, lanes: int) -> Stmt:
    """store(r, x, Σ matrix[r][k] · read(k, x)) for Aᵀ.

    Columns of opposite points differ in sign only, so the sums and differences of their products
    are shared by all rows.
    """
    size = len(matrix[0])
    firsts = range(1, size - 1, 2)
    count = len(firsts)
    parts = nest.buffer((2, count, lanes), "float32", "parts", "local")

    def vector(body: Callable[[PrimExpr], Stmt]) -> Stmt:
        return nest.vectorized(lanes, body)

    def share(i: int) -> Stmt:
        k = firsts[i]
        return nest.sequence(
            vector(lambda x: nest.write(parts, read(k, x) + read(k + 1, x), 0, i, x)),
            vector(lambda x: nest.write(parts, read(k, x) - read(k + 1, x), 1, i, x)),
        )

    def output(r: int) -> Stmt:
        row = matrix[r]
        terms = {i: row[k] for i, k in enumerate(firsts)} | {count: row[0], count + 1: row[-1]}

        def shared(j: int, x: PrimExpr) -> PrimExpr:
            if j < count:
                return nest.read(parts, r % 2, j, x)
            return read(0 if j == count else size - 1, x)

        kept = {j: c for j, c in terms.items() if c}
        return vector(lambda x: store(r, x, _weighted(kept, shared, x)))

    return nest.sequence(
        nest.allocate(parts), *map(share, range(count)), *map(output, range(len(matrix)))
    )
