"""ONNX Resize: of images, and along one axis by tables."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, check_shapes, ranked_shape, register

RESIZE_METHODS = ("nearest", "linear", "cubic")
RESIZE_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "tf_half_pixel_for_nn",
    "asymmetric",
    "align_corners",
)
RESIZE_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def resize2d(
    x: Expr,
    *,
    size: tuple[int, int],
    scales: tuple[float, float],
    method: str = "nearest",
    coordinate: str = "half_pixel",
    rounding: str = "round_prefer_floor",
    cubic_a: float = -0.75,
    exclude_outside: bool = False,
) -> Expr:
    """Resize x (N,C,H,W) to (N,C,*size) as ONNX Resize does.

    `scales` are output/input as the model states them: they, not the sizes, map coordinates
    (floor(H·scale) rounds). Edges are clamped. Raises ValueError for unknown modes.
    """
    if method not in RESIZE_METHODS:
        raise ValueError(f"method {method!r} is not one of {RESIZE_METHODS}")
    if coordinate not in RESIZE_COORDINATES:
        raise ValueError(f"coordinate {coordinate!r} is not one of {RESIZE_COORDINATES}")
    if rounding not in RESIZE_ROUNDINGS:
        raise ValueError(f"rounding {rounding!r} is not one of {RESIZE_ROUNDINGS}")
    attrs = {
        "size": list(size),
        "scales": [float(scale) for scale in scales],
        "method": method,
        "coordinate": coordinate,
        "rounding": rounding,
        "cubic_a": float(cubic_a),
        "exclude_outside": exclude_outside,
    }
    return call_op(RESIZE2D, (x,), attrs)


def resample(x: Expr, positions: Expr, weights: Expr) -> Expr:
    """Weighted sums along axis 1: out[a,i,b] = Σ_t weights[t,i] · x[a, positions[t,i], b].

    Shapes: x (A,S,B) of floats, positions (T,O) int32 in [0, S), weights (T,O) float32 → (A,O,B).
    """
    return call_op(RESAMPLE, (x, positions, weights), {})


def _infer_resample(call: Expr, _: Any) -> Any:
    outer, _size, inner = ranked_shape(call.args[0], "x", 3)
    taps, length = ranked_shape(call.args[1], "positions", 2)
    check_shapes(call, {2: [taps, length]}, "graphopt.resample")
    return relax.TensorType([outer, length, inner], call.args[0].ty.dtype)


def _infer_resize2d(call: Expr, _: Any) -> Any:
    batch, channels, _, _ = ranked_shape(call.args[0], "x", 4)
    height, width = attributes(call)["size"]
    return relax.TensorType([batch, channels, height, width], call.args[0].ty.dtype)


RESIZE2D = register("graphopt.resize2d", 1, _infer_resize2d)
RESAMPLE = register("graphopt.resample", 3, _infer_resample)
