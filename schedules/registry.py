"""All kernel families of CPUs, and those of devices. Every candidate of every family for a target
competes; the order only breaks ties."""

from __future__ import annotations

from schedules import (
    arg_extremum,
    attention,
    batched_matmul,
    conv_bytes,
    conv_bytes_depthwise,
    conv_bytes_narrow,
    conv_bytes_winograd,
    conv_bytes_words,
    conv_depthwise,
    conv_direct,
    conv_generic,
    conv_grouped,
    conv_grouped_narrow,
    conv_integer,
    conv_lines,
    conv_pointwise,
    conv_transposed,
    conv_upsample,
    conv_winograd,
    determinant,
    elementwise,
    gather,
    gemm,
    gemv,
    linear_attention,
    lookup,
    matmul_byte_pairs,
    matmul_bytes,
    matmul_nbits,
    matmul_nbits_digits,
    matmul_nbits_rows,
    movement,
    ngrams,
    nms,
    norm,
    overlap,
    pool_indices,
    pooling,
    recurrent,
    reduce,
    regions,
    resample,
    resize,
    sampling,
    scan,
    scatter,
    selection,
    softmax,
    topk,
    transpose,
    trees,
    unique,
)
from schedules.gpu import attention as gpu_attention
from schedules.gpu import conv as gpu_conv
from schedules.gpu import conv_dp4a as gpu_conv_dp4a
from schedules.gpu import conv_lines as gpu_conv_lines
from schedules.gpu import direct as gpu_direct
from schedules.gpu import matmul as gpu_matmul
from schedules.gpu import matmul_dp4a as gpu_matmul_dp4a
from schedules.gpu import movement as gpu_movement
from schedules.gpu import norm as gpu_norm
from schedules.gpu import pooling as gpu_pooling
from schedules.gpu import recurrent as gpu_recurrent
from schedules.gpu import reduce as gpu_reduce
from schedules.gpu import resize as gpu_resize
from schedules.gpu import scan as gpu_scan
from schedules.gpu import softmax as gpu_softmax
from schedules.gpu import tensor_cores as gpu_tensor_cores
from schedules.gpu import topk as gpu_topk
from schedules.gpu import transpose as gpu_transpose
from schedules.gpu.generic import on_device
from schedules.interface import Family, TargetTraits

FAMILIES: tuple[Family, ...] = (
    conv_direct.candidates,
    conv_pointwise.candidates,
    conv_winograd.candidates,
    conv_depthwise.candidates,
    conv_grouped.candidates,
    conv_grouped_narrow.candidates,
    conv_bytes.candidates,
    conv_bytes_narrow.candidates,
    conv_bytes_winograd.candidates,
    conv_bytes_depthwise.candidates,
    conv_bytes_words.candidates,
    conv_integer.candidates,
    conv_transposed.candidates,
    conv_upsample.candidates,
    conv_lines.candidates,
    conv_generic.candidates,
    matmul_bytes.candidates,
    matmul_byte_pairs.candidates,
    gemm.candidates,
    gemv.candidates,
    matmul_nbits_digits.candidates,
    matmul_nbits_rows.candidates,
    matmul_nbits.candidates,
    batched_matmul.candidates,
    attention.candidates,
    recurrent.candidates,
    linear_attention.candidates,
    softmax.candidates,
    norm.candidates,
    reduce.candidates,
    pooling.candidates,
    resize.candidates,
    resample.candidates,
    sampling.candidates,
    overlap.candidates,
    regions.candidates,
    determinant.candidates,
    trees.candidates,
    ngrams.candidates,
    movement.candidates,
    lookup.candidates,
    transpose.candidates,
    topk.candidates,
    arg_extremum.candidates,
    scan.candidates,
    scatter.elements_candidates,
    scatter.nd_candidates,
    gather.candidates,
    selection.candidates,
    unique.candidates,
    nms.candidates,
    pool_indices.candidates,
    elementwise.candidates,
)

_LOOPS: tuple[Family, ...] = (
    conv_lines.candidates,
    conv_generic.candidates,
    conv_integer.candidates,
    gemm.candidates,
    matmul_nbits.candidates,
    batched_matmul.candidates,
    recurrent.candidates,
    linear_attention.candidates,
    reduce.candidates,
    pooling.candidates,
    resize.candidates,
    resample.candidates,
    sampling.candidates,
    overlap.candidates,
    regions.candidates,
    determinant.candidates,
    trees.candidates,
    ngrams.candidates,
    movement.candidates,
    lookup.candidates,
    topk.candidates,
    arg_extremum.candidates,
    scan.candidates,
    scatter.elements_candidates,
    scatter.nd_candidates,
    gather.candidates,
    selection.candidates,
    unique.candidates,
    nms.candidates,
    pool_indices.candidates,
    elementwise.candidates,
)
"""Families for CPUs whose kernels devices can run, too."""

GPU_FAMILIES: tuple[Family, ...] = (
    gpu_tensor_cores.candidates,
    gpu_conv_dp4a.candidates,
    gpu_matmul_dp4a.candidates,
    gpu_direct.candidates,
    gpu_conv.candidates,
    gpu_conv_lines.candidates,
    gpu_matmul.candidates,
    gpu_attention.candidates,
    gpu_softmax.candidates,
    gpu_norm.candidates,
    gpu_reduce.candidates,
    gpu_transpose.candidates,
    gpu_movement.candidates,
    gpu_pooling.candidates,
    gpu_resize.candidates,
    gpu_scan.candidates,
    gpu_topk.candidates,
    gpu_recurrent.candidates,
    *(on_device(family) for family in _LOOPS),
)


def families(traits: TargetTraits) -> tuple[Family, ...]:
    """The families of a target."""
    return FAMILIES if traits.gpu is None else GPU_FAMILIES


UNFUSED = frozenset(("arg_extremum", "scan", "scatter_elements", "scatter_nd"))
"""Kinds with one output whose kernels take no epilogue."""
