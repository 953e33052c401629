"""Constant weights of 8 bits less their zero points, which may leave 8 bits, as products take them.

Products take signed bytes. Where a weight less its zero point is none, the zero point's part stays
behind: it is the same for all terms of a sum, so that it multiplies the sum of the data alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ByteWeights:
    """Weights as `integers` (int8), and `rest` (int32), which is to be added to each.

    rest: None for none, else of the zero point's shape. total: their sum, int32.
    """

    integers: Array
    rest: Array | None
    total: Array


def byte_weights(codes: Array, zero: Array) -> ByteWeights:
    """`codes` (int8 or uint8) less `zero`, which broadcasts, exactly."""
    total = codes.astype(np.int32) - zero.astype(np.int32)
    if total.size == 0 or (total.min() >= -128 and total.max() <= 127):
        return ByteWeights(total.astype(np.int8), None, total)
    shift = 128 if codes.dtype == np.uint8 else 0
    integers = (codes.astype(np.int32) - shift).astype(np.int8)
    return ByteWeights(integers, shift - zero.astype(np.int32), total)


def wrapped(values: Array) -> Array:
    """int64 numbers as int32, wrapping as sums in kernels do."""
    return np.asarray((values & 0xFFFFFFFF).astype(np.uint32).view(np.int32))
