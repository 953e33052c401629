"""Recurrent layers: one direction, all time steps in one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import relax

from graphopt.ops.base import Expr, attributes, call_op, check_shapes, ranked_shape, register

Activation = tuple[str, float, float]
"""ONNX name in lower case, alpha and beta (0 where it has none)."""


@dataclass(frozen=True)
class CellOptions:
    """What the layers have in common beside their sizes.

    Attributes:
        hidden: units of the state.
        reverse: from the last step to the first.
        activations: ONNX's f, g, h (LSTM), f, g (GRU) or f (RNN).
        clip: bound of what the gates' activations take; 0 for none.
        lengths: steps of each sequence of the batch, (B) int32, or None for all. Y is zero past
            the end of a sequence, and the last states are those at its end (zero if it is empty).
    """

    hidden: int
    reverse: bool
    activations: tuple[Activation, ...]
    clip: float = 0.0
    lengths: Expr | None = None

    def attrs(self) -> dict[str, Any]:
        """As attributes of the operators."""
        return {
            "hidden": self.hidden,
            "reverse": self.reverse,
            "activations": [list(each) for each in self.activations],
            "clip": float(self.clip),
            "lengths": self.lengths is not None,
        }


def lstm(
    x: Expr,
    w: Expr,
    r: Expr,
    b: Expr,
    h0: Expr,
    c0: Expr,
    options: CellOptions,
    *,
    peepholes: Expr | None = None,
    input_forget: bool = False,
    quantized_state: bool = False,
) -> Expr:
    """One direction of an LSTM with gates in ONNX order (i, o, f, c).

    Shapes: x (S,B,I), w (4H,I), r (4H,H), b (8H), h0 and c0 (B,H), peepholes (3H) → (S+2,B,H): the
    hidden states in the input's time order, then the last h, then the last c. Weights may be
    computed at run time. With `quantized_state` the recurrent product takes each sequence's h
    rounded to 256 levels, as DynamicQuantizeLinear does, at every step.
    """
    optional = [extra for extra in (options.lengths, peepholes) if extra is not None]
    attrs = {
        **options.attrs(),
        "peepholes": peepholes is not None,
        "input_forget": input_forget,
        "quantized_state": quantized_state,
    }
    return call_op(LSTM, (x, w, r, b, h0, c0, *optional), attrs)


def gru(
    x: Expr,
    w: Expr,
    r: Expr,
    b: Expr,
    h0: Expr,
    options: CellOptions,
    *,
    linear_before_reset: bool,
) -> Expr:
    """One direction of a GRU with gates in ONNX order (z, r, h).

    Shapes: x (S,B,I), w (3H,I), r (3H,H), b (6H), h0 (B,H) → (S+1,B,H): the hidden states in the
    input's time order, then the last h.
    """
    optional = () if options.lengths is None else (options.lengths,)
    attrs = {**options.attrs(), "linear_before_reset": linear_before_reset}
    return call_op(GRU, (x, w, r, b, h0, *optional), attrs)


def rnn(x: Expr, w: Expr, r: Expr, b: Expr, h0: Expr, options: CellOptions) -> Expr:
    """One direction of an Elman RNN: x (S,B,I), w (H,I), r (H,H), b (2H), h0 (B,H) → (S+1,B,H)."""
    optional = () if options.lengths is None else (options.lengths,)
    return call_op(RNN, (x, w, r, b, h0, *optional), options.attrs())


def _infer(name: str, gates: int, states: int) -> Any:
    def infer(call: Expr, _: Any) -> Any:
        steps, batch, inputs = ranked_shape(call.args[0], "x", 3)
        attrs = attributes(call)
        h = int(attrs["hidden"])
        wanted = {1: [gates * h, inputs], 2: [gates * h, h], 3: [2 * gates * h]}
        wanted.update({4 + i: [batch, h] for i in range(states)})
        count = 4 + states
        if attrs["lengths"]:
            wanted[count], count = [batch], count + 1
        if attrs.get("peepholes", False):
            wanted[count] = [3 * h]
        check_shapes(call, wanted, f"graphopt.{name}")
        return relax.TensorType([steps + states, batch, h], call.args[0].ty.dtype)

    return infer


LSTM = register("graphopt.lstm", -1, _infer("lstm", 4, 2))
GRU = register("graphopt.gru", -1, _infer("gru", 3, 1))
RNN = register("graphopt.rnn", -1, _infer("rnn", 1, 1))
