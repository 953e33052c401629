"""Relax operators of our own: what Relax lacks and a kernel family computes as one piece.

schedules/README.md defines what each computes. `attributes(call)` reads a call's attributes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.ir import _ffi_api

Expr = Any

RESIZE_METHODS = ("nearest", "linear", "cubic")
RESIZE_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
RESIZE_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def lstm(
    x: Expr, w: Expr, r: Expr, b: Expr, h0: Expr, c0: Expr, *, hidden: int, reverse: bool
) -> Expr:
    """One direction of an LSTM with gates in ONNX order (i, o, f, c).

    Shapes: x (S,B,I), w (4H,I), r (4H,H), b (8H), h0 and c0 (B,H) → (S+2,B,H): the hidden states
    in the input's time order, then the last h, then the last c.
    """
    return _call(LSTM, (x, w, r, b, h0, c0), {"hidden": hidden, "reverse": reverse})


def gru(
    x: Expr,
    w: Expr,
    r: Expr,
    b: Expr,
    h0: Expr,
    *,
    hidden: int,
    reverse: bool,
    linear_before_reset: bool,
) -> Expr:
    """One direction of a GRU with gates in ONNX order (z, r, h).

    Shapes: x (S,B,I), w (3H,I), r (3H,H), b (6H), h0 (B,H) → (S+1,B,H): the hidden states in the
    input's time order, then the last h.
    """
    attrs = {"hidden": hidden, "reverse": reverse, "linear_before_reset": linear_before_reset}
    return _call(GRU, (x, w, r, b, h0), attrs)


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
    return _call(RESIZE2D, (x,), attrs)


def attributes(call: Expr) -> dict[str, Any]:
    """Attributes of a call of one of these operators, as Python values (tuples for lists)."""
    return {key: _python(value) for key, value in call.attrs.items()}


def _python(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        return value
    if hasattr(value, "value"):  # IntImm, FloatImm
        value = value.value
    if isinstance(value, (int, float)):
        return value
    if hasattr(value, "__len__"):
        return tuple(_python(item) for item in value)
    return value


def _call(op: Any, args: tuple[Expr, ...], attrs: Mapping[str, Any]) -> Expr:
    return tvm.ir.Call(op, list(args), attrs=tvm.ir.make_node("ir.DictAttrs", **attrs))


def _shape(expr: Expr, name: str, rank: int) -> list[Any]:
    shape = list(expr.ty.shape)
    if len(shape) != rank:
        raise ValueError(f"{name} has rank {len(shape)}, not {rank}")
    return shape


def _check(call: Expr, wanted: Mapping[int, list[Any]], op: str) -> None:
    for index, shape in wanted.items():
        given = [int(dim) for dim in call.args[index].ty.shape]
        if given != [int(dim) for dim in shape]:
            raise ValueError(f"{op}: argument {index} has shape {given}, not {shape}")


def _infer_lstm(call: Expr, _: Any) -> Any:
    steps, batch, inputs = _shape(call.args[0], "x", 3)
    h = int(attributes(call)["hidden"])
    state = [batch, h]
    wanted = {1: [4 * h, inputs], 2: [4 * h, h], 3: [8 * h], 4: state, 5: state}
    _check(call, wanted, "graphopt.lstm")
    return relax.TensorType([steps + 2, batch, h], call.args[0].ty.dtype)


def _infer_gru(call: Expr, _: Any) -> Any:
    steps, batch, inputs = _shape(call.args[0], "x", 3)
    h = int(attributes(call)["hidden"])
    wanted = {1: [3 * h, inputs], 2: [3 * h, h], 3: [6 * h], 4: [batch, h]}
    _check(call, wanted, "graphopt.gru")
    return relax.TensorType([steps + 1, batch, h], call.args[0].ty.dtype)


def _infer_resize2d(call: Expr, _: Any) -> Any:
    batch, channels, _, _ = _shape(call.args[0], "x", 4)
    height, width = attributes(call)["size"]
    return relax.TensorType([batch, channels, height, width], call.args[0].ty.dtype)


def register(name: str, inputs: int, infer: Callable[[Expr, Any], Any]) -> Any:
    """The op `name`, registered at most once per process; `inputs` is -1 if their number varies."""
    if name in tvm.ir.Op.list_op_names():
        return tvm.ir.Op.get(name)
    _ffi_api.RegisterOp(name, f"{name}; see schedules/README.md")
    op = tvm.ir.Op.get(name)
    op.set_num_inputs(inputs)
    op.set_attr("FInferType", infer)
    op.set_attr("FPurity", True)
    return op


LSTM = register("graphopt.lstm", 6, _infer_lstm)
GRU = register("graphopt.gru", 5, _infer_gru)
RESIZE2D = register("graphopt.resize2d", 1, _infer_resize2d)
