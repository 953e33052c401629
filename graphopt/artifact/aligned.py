"""Memory for weights, at addresses that kernels take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Of weights, in bytes."""


def empty_aligned(size: int) -> NDArray[np.uint8]:
    """`size` bytes of any content, the first at a multiple of ALIGNMENT."""
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]
