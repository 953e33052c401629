"""Seeded input values for a program of which only the signature is known."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from graphopt.codegen.plan import TensorSpec
from graphopt.runtime.memory import numpy_dtype

Array = np.ndarray[Any, Any]


def random_inputs(
    specs: tuple[TensorSpec, ...], shapes: Mapping[str, tuple[int, ...]], seed: int = 0
) -> dict[str, Array]:
    """One array per input, the same for the same seed.

    Floats are standard normal, integers 0 or 1 (whatever they index, it has such rows), masks and
    booleans ones.
    """
    made: dict[str, Array] = {}
    for spec in specs:
        dtype, size = numpy_dtype(spec.dtype), shapes[spec.name]
        rng = np.random.default_rng((seed, zlib.crc32(spec.name.encode())))
        if dtype.kind in "iu" and "mask" not in spec.name.lower():
            made[spec.name] = rng.integers(0, 2, size).astype(dtype)
        elif dtype.kind in "iub":
            made[spec.name] = np.ones(size, dtype)
        else:
            made[spec.name] = rng.standard_normal(size, np.float32).astype(dtype)
    return made
