"""RoiAlign and MaxRoiPool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, shape_of
from graphopt.ops import regions


def _image(node: NodeContext) -> Expr:
    x = node.input(0)
    if len(shape_of(x)) != 4:
        raise Unsupported("only two spatial axes are supported")
    return x


def roi_align(node: NodeContext) -> Expr:
    """RoiAlign of operator sets 10, 16 and 22."""
    mode = node.string_attr("mode", "avg") or "avg"
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    coordinate = node.string_attr("coordinate_transformation_mode", default) or default
    if mode not in ("avg", "max") or coordinate not in ("half_pixel", "output_half_pixel"):
        raise Unsupported(f"mode '{mode}' with coordinates '{coordinate}' is unknown")
    return node.emit(
        regions.roi_align(
            _image(node),
            node.input(1),
            node.input(2),
            size=(node.int_attr("output_height", 1), node.int_attr("output_width", 1)),
            mode=mode,
            sampling_ratio=node.int_attr("sampling_ratio"),
            scale=node.float_attr("spatial_scale", 1.0),
            half_pixel=coordinate == "half_pixel",
        )
    )


def max_roi_pool(node: NodeContext) -> Expr:
    """MaxRoiPool."""
    size = node.int_list("pooled_shape") or []
    if len(size) != 2:
        raise Unsupported(f"pooled_shape {size} has not two entries")
    return node.emit(
        regions.max_roi_pool(
            _image(node),
            node.input(1),
            size=(size[0], size[1]),
            scale=node.float_attr("spatial_scale", 1.0),
        )
    )


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "RoiAlign"): roi_align,
    ("", "MaxRoiPool"): max_roi_pool,
}
