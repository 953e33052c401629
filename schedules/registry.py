"""All kernel families. Every candidate of every family competes; the order only breaks ties."""

from __future__ import annotations

from schedules import (
    attention,
    batched_matmul,
    conv_depthwise,
    conv_direct,
    conv_generic,
    conv_grouped,
    conv_pointwise,
    conv_transposed,
    conv_upsample,
    conv_winograd,
    elementwise,
    gemm,
    gemv,
    movement,
    norm,
    pooling,
    recurrent,
    reduce,
    resize,
    softmax,
    transpose,
)
from schedules.interface import Family

FAMILIES: tuple[Family, ...] = (
    conv_direct.candidates,
    conv_pointwise.candidates,
    conv_winograd.candidates,
    conv_depthwise.candidates,
    conv_grouped.candidates,
    conv_transposed.candidates,
    conv_upsample.candidates,
    conv_generic.candidates,
    gemm.candidates,
    gemv.candidates,
    batched_matmul.candidates,
    attention.candidates,
    recurrent.candidates,
    softmax.candidates,
    norm.candidates,
    reduce.candidates,
    pooling.candidates,
    resize.candidates,
    movement.candidates,
    transpose.candidates,
    elementwise.candidates,
)
