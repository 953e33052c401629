"""The converters by (domain, op_type), gathered from one module per family of operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from graphopt.frontend.converters import (
    activation,
    casts,
    columns,
    contrib_attention,
    contrib_bits,
    contrib_decoder,
    contrib_fused,
    contrib_normalization,
    contrib_other,
    convolution,
    einsum,
    elementwise,
    generators,
    indexing,
    linear_algebra,
    linear_attention,
    ml,
    movement,
    normalization,
    optimisers,
    ordering,
    padding,
    pooling,
    quantization,
    quantized_elementwise,
    quantized_products,
    recurrent,
    reduction,
    regions,
    resize,
    sampling,
    scatter,
    selection,
    signal,
    text,
    trees,
)
from graphopt.frontend.emit import NodeContext

Converter = Callable[[NodeContext], Any]
"""Emits a node: returns its output, or a tuple of them (None for one that was not asked for)."""

CONVERTERS: Mapping[tuple[str, str], Converter] = MappingProxyType(
    {
        (domain, op_type): converter
        for family in (
            activation,
            casts,
            columns,
            contrib_attention,
            contrib_bits,
            contrib_decoder,
            contrib_fused,
            contrib_normalization,
            contrib_other,
            convolution,
            einsum,
            elementwise,
            generators,
            indexing,
            linear_algebra,
            linear_attention,
            ml,
            movement,
            normalization,
            ordering,
            optimisers,
            padding,
            pooling,
            quantization,
            quantized_elementwise,
            quantized_products,
            recurrent,
            reduction,
            regions,
            resize,
            sampling,
            scatter,
            selection,
            signal,
            text,
            trees,
        )
        for (domain, op_type), converter in family.CONVERTERS.items()
    }
)
