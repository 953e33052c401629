"""Pooling of regions of interest, whose corners are computed at run time."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, check_shapes, ranked_shape, register


def roi_align(
    x: Expr,
    rois: Expr,
    batch_indices: Expr,
    *,
    size: tuple[int, int],
    mode: str,
    sampling_ratio: int,
    scale: float,
    half_pixel: bool,
) -> Expr:
    """Mean or maximum of bilinear samples in each bin of each region, as ONNX RoiAlign.

    Shapes: x (N,C,H,W), rois (R,4) as (x1,y1,x2,y2), batch_indices (R,) of integers → (R,C,*size).
    mode: "avg" or "max". sampling_ratio: samples per bin and axis, 0 for as many as the bin has
    pixels. Source: He et al., Mask R-CNN, 2017.
    """
    attrs = {
        "size": list(size),
        "mode": mode,
        "sampling_ratio": sampling_ratio,
        "scale": float(scale),
        "half_pixel": half_pixel,
    }
    return call_op(ROI_ALIGN, (x, rois, batch_indices), attrs)


def max_roi_pool(x: Expr, rois: Expr, *, size: tuple[int, int], scale: float) -> Expr:
    """Maximum of the pixels in each bin of each region, as ONNX MaxRoiPool; 0 for an empty bin.

    Shapes: x (N,C,H,W), rois (R,5) as (batch,x1,y1,x2,y2) → (R,C,*size). Source: Girshick, Fast
    R-CNN, 2015.
    """
    return call_op(MAX_ROI_POOL, (x, rois), {"size": list(size), "scale": float(scale)})


def _infer(columns: int) -> Any:
    def infer(call: Expr, _: Any) -> Any:
        channels = ranked_shape(call.args[0], "x", 4)[1]
        regions = ranked_shape(call.args[1], "rois", 2)[0]
        indices = {2: [regions]} if len(call.args) > 2 else {}
        check_shapes(call, {1: [regions, columns], **indices}, call.op.name)
        shape = [regions, channels, *attributes(call)["size"]]
        return relax.TensorType(shape, call.args[0].ty.dtype)

    return infer


ROI_ALIGN = register("graphopt.roi_align", 3, _infer(4))
MAX_ROI_POOL = register("graphopt.max_roi_pool", 2, _infer(5))
