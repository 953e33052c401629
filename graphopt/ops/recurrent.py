"""Recurrent layers: one direction, all time steps in one operator."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, check_shapes, ranked_shape, register


def lstm(
    x: Expr, w: Expr, r: Expr, b: Expr, h0: Expr, c0: Expr, *, hidden: int, reverse: bool
) -> Expr:
    """One direction of an LSTM with gates in ONNX order (i, o, f, c).

    Shapes: x (S,B,I), w (4H,I), r (4H,H), b (8H), h0 and c0 (B,H) → (S+2,B,H): the hidden states
    in the input's time order, then the last h, then the last c.
    """
    return call_op(LSTM, (x, w, r, b, h0, c0), {"hidden": hidden, "reverse": reverse})


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
    return call_op(GRU, (x, w, r, b, h0), attrs)


def _infer_lstm(call: Expr, _: Any) -> Any:
    steps, batch, inputs = ranked_shape(call.args[0], "x", 3)
    h = int(attributes(call)["hidden"])
    state = [batch, h]
    wanted = {1: [4 * h, inputs], 2: [4 * h, h], 3: [8 * h], 4: state, 5: state}
    check_shapes(call, wanted, "graphopt.lstm")
    return relax.TensorType([steps + 2, batch, h], call.args[0].ty.dtype)


def _infer_gru(call: Expr, _: Any) -> Any:
    steps, batch, inputs = ranked_shape(call.args[0], "x", 3)
    h = int(attributes(call)["hidden"])
    wanted = {1: [3 * h, inputs], 2: [3 * h, h], 3: [6 * h], 4: [batch, h]}
    check_shapes(call, wanted, "graphopt.gru")
    return relax.TensorType([steps + 1, batch, h], call.args[0].ty.dtype)


LSTM = register("graphopt.lstm", 6, _infer_lstm)
GRU = register("graphopt.gru", 5, _infer_gru)
