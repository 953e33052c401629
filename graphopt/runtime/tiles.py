"""Asks the system for the tile registers of AMX, which a process may not use unasked."""

from __future__ import annotations

import ctypes
from functools import cache

# Linux on x86-64: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), for all threads from now on.
_ARCH_PRCTL = 158
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18


@cache
def tiles_allowed() -> bool:
    """Whether this process, and those that it forks, may use tile registers; asks for it once."""
    system = ctypes.CDLL(None)
    try:
        return int(system.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0
    except AttributeError:  # not Linux
        return False
