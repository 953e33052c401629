"""The converters by (domain, op_type), gathered from one module per family of operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from graphopt.frontend.converters import (
    activation,
    convolution,
    elementwise,
    generators,
    indexing,
    linear_algebra,
    movement,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resize,
)
from graphopt.frontend.emit import NodeContext

Converter = Callable[[NodeContext], Any]
"""Emits a node: returns its output, or a tuple of them (None for one that was not asked for)."""

CONVERTERS: Mapping[tuple[str, str], Converter] = MappingProxyType(
    {
        (domain, op_type): converter
        for family in (
            activation,
            convolution,
            elementwise,
            generators,
            indexing,
            linear_algebra,
            movement,
            normalization,
            pooling,
            quantization,
            recurrent,
            reduction,
            resize,
        )
        for (domain, op_type), converter in family.CONVERTERS.items()
    }
)
