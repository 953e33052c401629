"""Resize and Upsample, as graphopt.resize2d."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import floor, prod
from typing import Any

from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, normal_axis, shape_of
from graphopt.ops.resize import RESIZE_COORDINATES, RESIZE_METHODS, RESIZE_ROUNDINGS, resize2d

op = relax.op


def resize(node: NodeContext) -> Expr:
    """Resize along at most two axes."""
    x = node.input(0)
    shape = shape_of(x)
    if node.opset < 11:
        # Version 10 is what version 11 calls asymmetric, with floor in nearest mode.
        mode = node.string_attr("mode", "nearest")
        scales = [float(s) for s in node.known(1, "scales").reshape(-1)]
        return _resize(node, x, _scaled(shape, scales), scales, mode, "asymmetric", "floor")
    mode = node.string_attr("mode", "nearest")
    coordinate = node.string_attr("coordinate_transformation_mode", "half_pixel")
    rounding = node.string_attr("nearest_mode", "round_prefer_floor")
    if node.int_attr("antialias"):
        raise Unsupported("antialias=1 is not supported")
    node.ignore("extrapolation_value")  # used by tf_crop_and_resize only, which is refused
    cubic_a = node.float_attr("cubic_coeff_a", -0.75)
    exclude = bool(node.int_attr("exclude_outside"))
    policy = node.string_attr("keep_aspect_ratio_policy", "stretch")
    stated = node.int_list("axes")
    axes = list(range(len(shape)))
    if stated is not None:
        axes = [normal_axis(axis, len(shape)) for axis in stated]
    size, scales = list(shape), [1.0] * len(shape)
    if _given(node, 3):
        wanted = node.ints(3, "sizes")
        if len(wanted) != len(axes):
            raise Unsupported(f"sizes has {len(wanted)} entries for {len(axes)} axes")
        wanted = _keep_aspect(policy, [shape[axis] for axis in axes], wanted)
        for axis, extent in zip(axes, wanted, strict=True):
            size[axis], scales[axis] = extent, extent / shape[axis]
        if policy != "stretch":
            # One scale for all axes, before rounding: ONNX maps coordinates with it.
            raise Unsupported(f"keep_aspect_ratio_policy='{policy}' is not supported")
    elif _given(node, 2):
        factors = [float(s) for s in node.known(2, "scales").reshape(-1)]
        if len(factors) != len(axes):
            raise Unsupported(f"scales has {len(factors)} entries for {len(axes)} axes")
        for axis, factor in zip(axes, factors, strict=True):
            size[axis], scales[axis] = floor(shape[axis] * factor), factor
    else:
        raise Unsupported("neither scales nor sizes is given")
    return _resize(node, x, size, scales, mode, coordinate, rounding, cubic_a, exclude)


def _given(node: NodeContext, index: int) -> bool:
    """Whether an optional input is there; exporters also write it as an empty tensor."""
    if not node.has(index):
        return False
    known = node.array(index)
    return known is None or known.size > 0


def _keep_aspect(policy: str, shape: list[int], wanted: list[int]) -> list[int]:
    if policy not in ("stretch", "not_larger", "not_smaller"):
        raise Unsupported(f"keep_aspect_ratio_policy='{policy}' is unknown")
    return wanted


def _scaled(shape: tuple[int, ...], scales: list[float]) -> list[int]:
    if len(scales) != len(shape):
        raise Unsupported(f"scales has {len(scales)} entries for {len(shape)} axes")
    return [floor(dim * scale) for dim, scale in zip(shape, scales, strict=True)]


def _resize(
    node: NodeContext,
    x: Expr,
    size: list[int],
    scales: list[float],
    mode: str,
    coordinate: str,
    rounding: str,
    cubic_a: float = -0.75,
    exclude: bool = False,
) -> Expr:
    shape = shape_of(x)
    rank = len(shape)
    if mode not in RESIZE_METHODS:
        raise Unsupported(f"mode '{mode}' is not supported")
    if coordinate not in RESIZE_COORDINATES:
        raise Unsupported(f"coordinate_transformation_mode='{coordinate}' is not supported")
    if rounding not in RESIZE_ROUNDINGS:
        raise Unsupported(f"nearest_mode='{rounding}' is not supported")
    if min(size) < 1:
        raise Unsupported(f"{shape} would be resized to {size}")
    moving = [i for i in range(rank) if scales[i] != 1.0 or size[i] != shape[i]]
    if not moving:
        return x
    if len(moving) > 2:
        raise Unsupported(f"resizing {len(moving)} axes is not supported")
    still = [i for i in range(rank) if i not in moving]
    order = [*still, *moving]
    plain = rank == 4 and set(moving) <= {2, 3}
    if plain:
        moving, order = [2, 3], list(range(4))
    last = [1] * (2 - len(moving)) + [shape[i] for i in moving]
    lead = shape[:2] if plain else (1, prod(shape[i] for i in still))
    moved = node.reshape(node.transpose(x, order), (*lead, *last))
    target = [1] * (2 - len(moving)) + [size[i] for i in moving]
    factors = [1.0] * (2 - len(moving)) + [scales[i] for i in moving]
    result = node.emit(
        resize2d(
            moved,
            size=(target[0], target[1]),
            scales=(factors[0], factors[1]),
            method=mode,
            coordinate=coordinate,
            rounding=rounding,
            cubic_a=cubic_a,
            exclude_outside=exclude,
        )
    )
    if plain:
        return result
    result = node.reshape(result, [size[i] for i in order])
    return node.transpose(result, [order.index(i) for i in range(rank)])


def upsample(node: NodeContext) -> Expr:
    """Upsample of operator sets 7 and 9: Resize with asymmetric coordinates."""
    x = node.input(0)
    mode = node.string_attr("mode", "nearest")
    if node.has(1):
        scales = [float(s) for s in node.known(1, "scales").reshape(-1)]
    else:
        scales = [float(s) for s in node.attribute("scales") or ()]
    return _resize(node, x, _scaled(shape_of(x), scales), scales, mode, "asymmetric", "floor")


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "Resize"): resize,
    ("", "Upsample"): upsample,
}
