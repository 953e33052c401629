"""BLAKE2b in C, for the sources that travel without graphopt: C libraries and graphopt.hpp."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal


def blake2b_source(storage: Literal["static", "inline"]) -> str:
    """blake2b.inc, its functions `static` for C or `inline` for C++."""
    text = files("graphopt.codegen.c_library").joinpath("blake2b.inc").read_text("utf-8")
    return text.replace("@FUNCTION@", storage)
