"""Reading images at positions that are computed at run time."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, check_shapes, ranked_shape, register

SAMPLE_METHODS = ("nearest", "linear", "cubic")
SAMPLE_PADDINGS = ("zeros", "border", "reflection")


def grid_sample(
    x: Expr,
    grid: Expr,
    *,
    spatial: tuple[int, ...],
    method: str,
    padding: str,
    align_corners: bool,
) -> Expr:
    """x at the positions of a grid, as ONNX GridSample reads it.

    Shapes: x (N,C,S) with S = prod(spatial), grid (N,P,D) of floats, D = len(spatial), the last
    axis' coordinate first, −1 … 1 over the image → (N,C,P). Raises ValueError for unknown modes.
    """
    if method not in SAMPLE_METHODS:
        raise ValueError(f"method {method!r} is not one of {SAMPLE_METHODS}")
    if padding not in SAMPLE_PADDINGS:
        raise ValueError(f"padding {padding!r} is not one of {SAMPLE_PADDINGS}")
    attrs = {
        "spatial": list(spatial),
        "method": method,
        "padding": padding,
        "align_corners": align_corners,
    }
    return call_op(GRID_SAMPLE, (x, grid), attrs)


def deform_columns(
    x: Expr,
    offset: Expr,
    mask: Expr | None,
    *,
    spatial: tuple[int, int],
    out: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    before: tuple[int, int],
    dilation: tuple[int, int],
) -> Expr:
    """The inputs of each tap of a deformable convolution, bilinearly sampled, zeros outside.

    Shapes: x (N,C,H·W), offset (N,G,K,2,P) as (rows, columns), mask (N,G,K,P) with
    K = prod(kernel), P = prod(out), C a multiple of G → (N,C,K,P). Source: Zhu et al., Deformable
    ConvNets v2, 2019.
    """
    attrs = {
        "spatial": list(spatial),
        "out": list(out),
        "kernel": list(kernel),
        "strides": list(strides),
        "before": list(before),
        "dilation": list(dilation),
    }
    return call_op(DEFORM_COLUMNS, (x, offset) if mask is None else (x, offset, mask), attrs)


def _infer_grid_sample(call: Expr, _: Any) -> Any:
    batch, channels, size = ranked_shape(call.args[0], "x", 3)
    batches, points, rank = (int(dim) for dim in ranked_shape(call.args[1], "grid", 3))
    spatial = attributes(call)["spatial"]
    if batches != int(batch) or rank != len(spatial) or int(size) != prod(spatial):
        raise ValueError("graphopt.grid_sample: x, the grid and the image do not fit together")
    return relax.TensorType([batch, channels, points], call.args[0].ty.dtype)


def _infer_deform_columns(call: Expr, _: Any) -> Any:
    batch, channels, _size = (int(dim) for dim in ranked_shape(call.args[0], "x", 3))
    groups = int(ranked_shape(call.args[1], "offset", 5)[1])
    attrs = attributes(call)
    taps, points = prod(attrs["kernel"]), prod(attrs["out"])
    wanted = {1: [batch, groups, taps, 2, points], 2: [batch, groups, taps, points]}
    given = {index: wanted[index] for index in range(1, len(call.args))}
    check_shapes(call, {0: [batch, channels, prod(attrs["spatial"])], **given}, "deform_columns")
    if channels % groups:
        raise ValueError(f"deform_columns: {channels} channels in {groups} offset groups")
    return relax.TensorType([batch, channels, taps, points], call.args[0].ty.dtype)


GRID_SAMPLE = register("graphopt.grid_sample", 2, _infer_grid_sample)
DEFORM_COLUMNS = register("graphopt.deform_columns", -1, _infer_deform_columns)
