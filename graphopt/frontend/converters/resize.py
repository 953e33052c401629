"""Resize and Upsample: images by graphopt.resize2d, other axes and modes one axis after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import floor, prod
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import (
    Expr,
    NodeContext,
    Unsupported,
    constant,
    dtype_of,
    normal_axis,
    shape_of,
)
from graphopt.frontend.resampling import AxisResize
from graphopt.ops.resize import (
    RESIZE_COORDINATES,
    RESIZE_METHODS,
    RESIZE_ROUNDINGS,
    resample,
    resize2d,
)

op = relax.op

_CROP = "tf_crop_and_resize"


@dataclass(frozen=True)
class _Style:
    """How one Resize maps coordinates and combines what it finds there."""

    method: str
    coordinate: str
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    extrapolation: float = 0.0

    @property
    def by_tables(self) -> bool:
        """Whether graphopt.resize2d cannot do it."""
        return self.antialias or self.coordinate == _CROP


def resize(node: NodeContext) -> Expr:
    """Resize of all operator sets, along any axes."""
    x = node.input(0)
    shape = shape_of(x)
    method = node.string_attr("mode", "nearest")
    if node.opset < 11:
        # Version 10 is what version 11 calls asymmetric, with floor in nearest mode.
        scales = [float(s) for s in node.known(1, "scales").reshape(-1)]
        return _upsampled(node, x, method, scales)
    style = _Style(
        method,
        node.string_attr("coordinate_transformation_mode", "half_pixel"),
        node.string_attr("nearest_mode", "round_prefer_floor"),
        node.float_attr("cubic_coeff_a", -0.75),
        node.flag_attr("exclude_outside"),
        node.flag_attr("antialias") and method != "nearest",
        node.float_attr("extrapolation_value"),
    )
    stated = node.int_list("axes")
    axes = list(range(len(shape)))
    if stated is not None:
        axes = [normal_axis(axis, len(shape)) for axis in stated]
    policy = node.string_attr("keep_aspect_ratio_policy", "stretch")
    extents = [shape[axis] for axis in axes]
    if _given(node, 3):
        sizes, scales = _from_sizes(policy, extents, node.ints(3, "sizes"))
    elif _given(node, 2):
        scales = [float(s) for s in node.known(2, "scales").reshape(-1)]
        sizes = _scaled(extents, scales)
        _check_fractions(style.coordinate, extents, scales, sizes)
    else:
        raise Unsupported("neither scales nor sizes is given")
    regions = _regions(node, len(axes)) if style.coordinate == _CROP else [(0.0, 1.0)] * len(axes)
    plan = {
        axis: AxisResize(extent, size, scale, style.coordinate, *region)
        for axis, extent, size, scale, region in zip(
            axes, extents, sizes, scales, regions, strict=True
        )
    }
    return _apply(node, x, plan, style)


def _given(node: NodeContext, index: int) -> bool:
    """Whether an optional input is there; exporters also write it as an empty tensor."""
    if not node.has(index):
        return False
    known = node.array(index)
    return known is None or known.size > 0


def _from_sizes(
    policy: str, extents: list[int], wanted: list[int]
) -> tuple[list[int], list[float]]:
    """Output sizes and scales; a policy other than stretch has one scale for all axes."""
    if len(wanted) != len(extents):
        raise Unsupported(f"sizes has {len(wanted)} entries for {len(extents)} axes")
    scales = [size / extent for size, extent in zip(wanted, extents, strict=True)]
    if policy == "stretch":
        return wanted, scales
    if policy not in ("not_larger", "not_smaller"):
        raise Unsupported(f"keep_aspect_ratio_policy='{policy}' is unknown")
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [floor(scale * extent + 0.5) for extent in extents], [scale] * len(extents)


def _scaled(extents: list[int], scales: list[float]) -> list[int]:
    if len(scales) != len(extents):
        raise Unsupported(f"scales has {len(scales)} entries for {len(extents)} axes")
    return [floor(extent * scale) for extent, scale in zip(extents, scales, strict=True)]


def _check_fractions(
    coordinate: str, extents: list[int], scales: list[float], sizes: list[int]
) -> None:
    # The standard's own implementation puts the last output at extent·scale − 1, ONNX Runtime and
    # PyTorch at the rounded size − 1.
    if coordinate not in ("align_corners", _CROP):
        return
    for extent, scale, size in zip(extents, scales, sizes, strict=True):
        if size > 1 and abs(extent * scale - size) > 1e-4 * size:
            raise Unsupported(
                f"{coordinate} by a scale that gives {extent * scale:g} elements is ambiguous: "
                "ONNX and ONNX Runtime differ",
                "State sizes instead of scales.",
            )


def _regions(node: NodeContext, count: int) -> list[tuple[float, float]]:
    roi = node.known(1, "the region of interest").reshape(-1)
    if len(roi) != 2 * count:
        raise Unsupported(f"roi has {len(roi)} entries for {count} axes")
    return [(float(roi[i]), float(roi[count + i])) for i in range(count)]


def _apply(node: NodeContext, x: Expr, plan: Mapping[int, AxisResize], style: _Style) -> Expr:
    if style.method not in RESIZE_METHODS:
        raise Unsupported(f"mode '{style.method}' is unknown")
    if style.coordinate not in (*RESIZE_COORDINATES, _CROP):
        raise Unsupported(f"coordinate_transformation_mode='{style.coordinate}' is unknown")
    if style.rounding not in RESIZE_ROUNDINGS:
        raise Unsupported(f"nearest_mode='{style.rounding}' is unknown")
    if any(axis.out < 1 for axis in plan.values()):
        raise Unsupported(f"{shape_of(x)} would be resized to an empty tensor")
    moving = {
        index: axis
        for index, axis in sorted(plan.items())
        if axis.scale != 1.0 or axis.out != axis.size or (axis.start, axis.end) != (0.0, 1.0)
    }
    if not moving:
        return x
    dtype = dtype_of(x)
    integral = not dtype.startswith("float")
    image = len(shape_of(x)) == 4 and set(moving) <= {2, 3} and not style.by_tables
    if dtype == "bool" or (integral and style.method != "nearest" and not image):
        # Between passes nothing is rounded.
        x = node.cast(x, "uint8" if style.method == "nearest" else "float32")
    if image:
        x = _image(node, x, moving, style)
    else:
        for index, axis in moving.items():
            x = _along(node, x, index, axis, style)
    return _restored(node, x, dtype, style)


def _restored(node: NodeContext, x: Expr, dtype: str, style: _Style) -> Expr:
    """`x` as `dtype`; overshooting filters saturate."""
    if dtype_of(x) == dtype:
        return x
    if dtype not in ("bool",) and (style.antialias or style.method == "cubic"):
        limits = np.iinfo(dtype)
        x = node.emit(op.clip(node.emit(op.round(x)), float(limits.min), float(limits.max)))
    return node.cast(x, dtype)


def _image(node: NodeContext, x: Expr, moving: Mapping[int, AxisResize], style: _Style) -> Expr:
    """Both spatial axes of (N,C,H,W) at once."""
    height, width = shape_of(x)[2:]
    rows = moving.get(2, AxisResize(height, height, 1.0, style.coordinate))
    columns = moving.get(3, AxisResize(width, width, 1.0, style.coordinate))
    return node.emit(
        resize2d(
            x,
            size=(rows.out, columns.out),
            scales=(rows.scale, columns.scale),
            method=style.method,
            coordinate=style.coordinate,
            rounding=style.rounding,
            cubic_a=style.cubic_a,
            exclude_outside=style.exclude_outside,
        )
    )


def _along(node: NodeContext, x: Expr, index: int, axis: AxisResize, style: _Style) -> Expr:
    """One axis, between what lies before and behind it."""
    shape = shape_of(x)
    before, behind = prod(shape[:index]), prod(shape[index + 1 :])
    target = (*shape[:index], axis.out, *shape[index + 1 :])
    if not style.by_tables:
        last = behind == 1
        view = (1, before, 1, axis.size) if last else (1, before, axis.size, behind)
        pair = {3: axis} if last else {2: axis}
        return node.reshape(_image(node, node.reshape(x, view), pair, style), target)
    view3 = node.reshape(x, (before, axis.size, behind))
    if style.method == "nearest":
        y = node.emit(op.take(view3, constant(axis.nearest(style.rounding)), 1))
    else:
        positions, weights = axis.weighted(
            style.method, style.antialias, style.cubic_a, style.exclude_outside
        )
        y = node.emit(resample(view3, constant(positions), constant(weights)))
    y = node.reshape(y, target)
    inside = axis.inside()
    if style.coordinate == _CROP and not inside.all():
        mask = constant(inside.reshape(axis.out, *[1] * (len(shape) - index - 1)))
        y = node.emit(op.where(mask, y, node.scalar(style.extrapolation, y)))
    return y


def upsample(node: NodeContext) -> Expr:
    """Upsample of all operator sets: Resize with asymmetric coordinates."""
    x = node.input(0)
    if node.has(1):
        scales = [float(s) for s in node.known(1, "scales").reshape(-1)]
    elif node.has_attribute("height_scale"):
        scales = [1.0, 1.0, node.float_attr("height_scale"), node.float_attr("width_scale")]
    else:
        scales = [float(s) for s in node.attribute("scales") or ()]
    return _upsampled(node, x, node.string_attr("mode", "nearest"), scales)


def _upsampled(node: NodeContext, x: Expr, method: str, scales: list[float]) -> Expr:
    """Resize before operator set 11, which leaves the rounding open: ONNX Runtime's."""
    shape = shape_of(x)
    sizes = _scaled(list(shape), scales)
    plan = {i: AxisResize(shape[i], sizes[i], scales[i], "asymmetric") for i in range(len(shape))}
    # Upsample-1 called it bilinear.
    style = _Style("linear" if method == "bilinear" else method, "asymmetric", "floor")
    if method == "nearest":
        shrinking = {i: axis for i, axis in plan.items() if axis.scale < 1}
        x = _apply(node, x, shrinking, replace(style, rounding="ceil"))
        plan = {i: axis for i, axis in plan.items() if axis.scale >= 1}
    return _apply(node, x, plan, style)


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Resize"): resize,
    ("", "Upsample"): upsample,
}
