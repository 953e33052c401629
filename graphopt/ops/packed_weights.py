"""Products with constant weights of few bits, which stay packed: the operator, and its operands."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, register

Array = np.ndarray[Any, Any]

WIDTHS = (2, 4, 8)
"""Bits that a weight may have."""


def matmul_nbits(
    a: Expr, b: Expr, scales: Expr, zeros: Expr | None, *, bits: int, block: int, zero: float = 0.0
) -> Expr:
    """a (…,M,K) times a matrix of unsigned integers of `bits` (2, 4 or 8) → (…,M,N) as a.

    b is uint8 (K', N) with 8/bits consecutive k in a byte, the first in the lowest bits; K' covers
    whole blocks of `block` k. Row k of the matrix is (b[k] − zeros[g]) · scales[g] with g =
    k // block; scales are float32 (K'·(8/bits)/block, N), zeros likewise or uint8. Without zeros,
    `zero` is subtracted everywhere.
    """
    operands = (a, b, scales) if zeros is None else (a, b, scales, zeros)
    attrs = {"bits": int(bits), "block": int(block), "zero": float(zero)}
    return call_op(MATMUL_NBITS, operands, attrs)


def matmul_codes(a: Expr, codes: Array, scales: Array, zeros: Array, *, bits: int) -> Expr:
    """matmul_nbits of unpacked weights.

    Args:
        codes: uint8 (K', N), each below 2^bits; K' is a whole number of blocks and of bytes.
        scales, zeros: float32 (blocks, N).
    """
    block = codes.shape[0] // scales.shape[0]
    points: Expr | None = None
    zero = float(zeros.flat[0]) if zeros.size else 0.0
    if (zeros != zero).any():
        whole = ((zeros == np.round(zeros)) & (zeros >= 0) & (zeros <= 255)).all()
        points, zero = _constant(zeros.astype(np.uint8) if whole else zeros), 0.0
    packed = _constant(packed_rows(codes, bits))
    return matmul_nbits(a, packed, _constant(scales), points, bits=bits, block=block, zero=zero)


def packed_rows(codes: Array, bits: int) -> Array:
    """Codes (K,N) as bytes (K·bits/8,N): consecutive k in a byte, the first in the lowest bits."""
    each = 8 // bits
    parts = codes.reshape(codes.shape[0] // each, each, codes.shape[1])
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, -1, 1)
    return np.asarray(np.bitwise_or.reduce(parts << shifts, axis=1), np.uint8)


def _constant(array: Array) -> Expr:
    return relax.const(np.ascontiguousarray(array), array.dtype.name)


def _shape(expr: Expr) -> tuple[int, ...]:
    return tuple(int(dim) for dim in expr.ty.shape)


def _infer(call: Expr, _: Any) -> Any:
    a, b, scales, *zeros = map(_shape, call.args)
    attrs = attributes(call)
    depth = b[0] * (8 // attrs["bits"])
    if len(b) != 2 or len(a) < 2 or depth < a[-1] or depth % attrs["block"]:
        raise ValueError(f"graphopt.matmul_nbits: {a} and {b} do not fit together")
    if scales != (depth // attrs["block"], b[1]) or any(shape != scales for shape in zeros):
        raise ValueError(f"graphopt.matmul_nbits: scales {scales} and zeros {zeros} do not fit")
    return relax.TensorType([*a[:-1], b[1]], call.args[0].ty.dtype)


MATMUL_NBITS = register("graphopt.matmul_nbits", -1, _infer)
