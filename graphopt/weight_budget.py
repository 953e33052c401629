"""How many bytes packed weights may take."""

from __future__ import annotations

SMALL_BYTES = 1 << 20
"""Constants count for at least as much: so little is worth no slower kernel."""


def allowed_bytes(constant_bytes: int, growth: float) -> int:
    """Bytes that the packed weights of constants may take.

    Args:
        growth: times the bytes of the constants; 1 allows no growth, however small they are.
    """
    return constant_bytes + int((growth - 1) * max(constant_bytes, SMALL_BYTES))
