"""Discrete Fourier transforms of the rows of matrices, as products with tables of cos and sin.

Short rows are one product. Longer ones are split as n = n₁·n₂ (Cooley and Tukey, 1965): products of
length n₁, a multiplication by twiddle factors, transforms of length n₂. Lengths with a large prime
factor become a cyclic convolution of a power of two (Bluestein, 1970).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, constant, dtype_of, shape_of
from graphopt.frontend.model import Array

op = relax.op

_MAX_SHORT = 512
"""Up to this length one product is faster than its parts with the transpositions between them."""
_MAX_TABLE = 1024
"""The longest row for which a table of all n² factors is stored."""
_MAX_FACTOR = 128
"""Longest first part of a split: a product of length n₁ costs n₁ per element."""


@dataclass(frozen=True)
class Rows:
    """Complex rows: real and imaginary parts (R, n) each; the latter None where all are zero."""

    re: Expr
    im: Expr | None

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.re)


@dataclass(frozen=True)
class Transform:
    """X[k] = scale · Σ x[j] · e^(sign·2πi·jk/n) for k < kept; `real` asks for the real part alone.

    `window` (n), if given, multiplies x.
    """

    n: int
    sign: int
    kept: int
    scale: float = 1.0
    real: bool = False
    window: Array | None = None

    def apply(self, node: NodeContext, x: Rows) -> Rows:
        """The transform of rows of length n, as rows of length `kept`."""
        first = _first_factor(self.n)
        if self.n <= _MAX_SHORT or (first == 1 and self.n <= _MAX_TABLE):
            return self._product(node, x)
        if self.window is not None:
            x = _map(node, x, self.window)
        plain = Transform(self.n, self.sign, self.kept, self.scale, self.real)
        return plain._bluestein(node, x) if first == 1 else plain._split(node, x, first)

    def table(self) -> tuple[Array, Array]:
        """scale·window·cos and scale·window·sign·sin of 2π·jk/n, (n, kept) each, in float64."""
        turns = np.outer(np.arange(self.n), np.arange(self.kept)) % self.n
        angle = 2 * np.pi / self.n * turns
        factor = self.scale * (1.0 if self.window is None else self.window[:, None])
        return factor * np.cos(angle), factor * (self.sign * np.sin(angle))

    def _product(self, node: NodeContext, x: Rows) -> Rows:
        cos, sin = self.table()
        re = _matmul(node, x.re, cos)
        if x.im is not None:
            re = node.emit(op.subtract(re, _matmul(node, x.im, sin)))
        if self.real:
            return Rows(re, None)
        im = _matmul(node, x.re, sin)
        if x.im is not None:
            im = node.emit(op.add(im, _matmul(node, x.im, cos)))
        return Rows(re, im)

    def _split(self, node: NodeContext, x: Rows, n1: int) -> Rows:
        # j = n2·j1 + j2 and k = k1 + n1·k2.
        rows, n2 = x.shape[0], self.n // n1
        columns = _each(
            lambda v: node.reshape(
                node.transpose(node.reshape(v, (rows, n1, n2)), (0, 2, 1)), (rows * n2, n1)
            ),
            x,
        )
        inner = Transform(n1, self.sign, n1).apply(node, columns)
        turns = np.outer(np.arange(n2), np.arange(n1)) % self.n
        angle = 2 * np.pi / self.n * turns
        inner = _each(lambda v: node.reshape(v, (rows, n2, n1)), inner)
        inner = _multiply(node, inner, np.cos(angle), self.sign * np.sin(angle))
        turned = _each(lambda v: node.reshape(node.transpose(v, (0, 2, 1)), (rows * n1, n2)), inner)
        kept = -(-self.kept // n1)
        outer = Transform(n2, self.sign, kept, self.scale, self.real).apply(node, turned)
        result = _each(
            lambda v: node.reshape(
                node.transpose(node.reshape(v, (rows, n1, kept)), (0, 2, 1)), (rows, n1 * kept)
            ),
            outer,
        )
        return _each(lambda v: node.slice(v, [1], [0], [self.kept]), result)

    def _bluestein(self, node: NodeContext, x: Rows) -> Rows:
        # jk = (j² + k² − (k − j)²) / 2 turns the sum into a convolution with a chirp.
        length = 1 << (2 * self.n - 2).bit_length()
        half = np.arange(self.n, dtype=np.int64)
        angle = np.pi / self.n * (half * half % (2 * self.n))
        cos, sin = np.cos(angle), self.sign * np.sin(angle)
        chirp = np.zeros(length, np.complex128)
        chirp[: self.n] = cos - 1j * sin
        chirp[length - self.n + 1 :] = chirp[1 : self.n][::-1]
        spectrum = np.fft.fft(chirp)
        padded = _each(
            lambda v: node.emit(op.nn.pad(v, (0, 0, 0, length - self.n))),
            _multiply(node, x, cos, sin),
        )
        there = Transform(length, -1, length).apply(node, padded)
        product = _multiply(node, there, spectrum.real, spectrum.imag)
        back = Transform(length, 1, self.kept, self.scale / length).apply(node, product)
        result = _multiply(node, back, cos[: self.kept], sin[: self.kept])
        return Rows(result.re, None) if self.real else result


def half_to_real(node: NodeContext, x: Rows, n: int) -> Expr:
    """The real rows of length n whose transforms begin with x (R, n // 2 + 1)."""
    kept = n // 2 + 1
    if n <= _MAX_SHORT or (_first_factor(n) == 1 and n <= _MAX_TABLE):
        weight = np.full(kept, 2.0)
        weight[0] = 1.0
        if n % 2 == 0:
            weight[-1] = 1.0
        angle = 2 * np.pi / n * (np.outer(np.arange(kept), np.arange(n)) % n)
        factor = weight[:, None] / n
        re = _matmul(node, x.re, factor * np.cos(angle))
        if x.im is None:
            return re
        return node.emit(op.subtract(re, _matmul(node, x.im, factor * np.sin(angle))))
    # The other half is the conjugate of this one, backwards.
    position = np.arange(n)
    mirrored = np.where(position < kept, position, n - position)
    sign = np.where(position < kept, 1.0, -1.0)
    # The imaginary parts of the ends belong to no real signal.
    sign[0] = 0.0
    if n % 2 == 0:
        sign[kept - 1] = 0.0

    def whole(value: Expr) -> Expr:
        return node.emit(op.take(value, constant(mirrored, "int64"), 1, mode="fast"))

    im = None
    if x.im is not None:
        im = node.emit(op.multiply(whole(x.im), constant(sign, dtype_of(x.im))))
    return Transform(n, 1, n, 1.0 / n, real=True).apply(node, Rows(whole(x.re), im)).re


def _first_factor(n: int) -> int:
    """The divisor of n nearest to √n and at most _MAX_FACTOR; 1 if there is none of use."""
    best = 1
    for factor in range(2, min(_MAX_FACTOR, int(n**0.5) + 1) + 1):
        if n % factor == 0:
            best = factor
    # What remains must be short, or splittable itself, else its own table would be too large.
    rest = n // best
    return best if rest <= _MAX_TABLE or _first_factor_exists(rest) else 1


def _first_factor_exists(n: int) -> bool:
    """Whether n is a product of factors that have tables."""
    for factor in range(2, _MAX_FACTOR + 1):
        while n % factor == 0:
            n //= factor
    return n <= _MAX_TABLE


def _matmul(node: NodeContext, x: Expr, matrix: Array) -> Expr:
    return node.emit(op.matmul(x, constant(matrix, dtype_of(x))))


def _each(function: object, x: Rows) -> Rows:
    assert callable(function)
    return Rows(function(x.re), None if x.im is None else function(x.im))


def _map(node: NodeContext, x: Rows, factor: Array) -> Rows:
    """x times real factors that broadcast to it."""
    return _each(lambda v: node.emit(op.multiply(v, constant(factor, dtype_of(v)))), x)


def _multiply(node: NodeContext, x: Rows, cos: Array, sin: Array) -> Rows:
    """x times the complex numbers cos + i·sin, which broadcast to it."""
    c, s = constant(cos, dtype_of(x.re)), constant(sin, dtype_of(x.re))
    re, im = node.emit(op.multiply(x.re, c)), node.emit(op.multiply(x.re, s))
    if x.im is None:
        return Rows(re, im)
    re = node.emit(op.subtract(re, node.emit(op.multiply(x.im, s))))
    return Rows(re, node.emit(op.add(im, node.emit(op.multiply(x.im, c)))))
