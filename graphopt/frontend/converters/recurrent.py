"""LSTM and GRU, one graphopt.lstm or graphopt.gru per direction; RNN, unrolled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, dtype_of, shape_of
from graphopt.ops import recurrent as layers

op = relax.op

# An unrolled RNN has one set of operators per step.
_MAX_UNROLLED = 512


@dataclass(frozen=True)
class Layer:
    """What LSTM, GRU and RNN nodes have in common; x is (S,B,I)."""

    x: Expr
    hidden: int
    directions: tuple[bool, ...]  # True: backwards in time
    batch_first: bool

    @property
    def steps(self) -> int:
        return shape_of(self.x)[0]

    @property
    def batch(self) -> int:
        return shape_of(self.x)[1]


def _read_layer(node: NodeContext, activations: tuple[str, ...]) -> Layer:
    x = node.input(0)
    batch_first = bool(node.int_attr("layout"))
    if batch_first:
        x = node.transpose(x, (1, 0, 2))
    steps = shape_of(x)[0]
    direction = node.string_attr("direction", "forward") or "forward"
    known = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    if direction not in known:
        raise Unsupported(f"direction '{direction}' is unknown")
    directions = known[direction]
    stated = node.attribute("activations")
    if stated is not None:
        names = tuple(name.decode().lower() for name in stated)
        expected = tuple(name.lower() for name in activations) * len(directions)
        if names != expected:
            raise Unsupported(f"activations {', '.join(names)} are not supported")
    for name in ("activation_alpha", "activation_beta"):
        if node.attribute(name):
            raise Unsupported(f"{name} is not supported")
    if node.float_attr("clip", 0.0) > 0:
        raise Unsupported("clipping of the gates is not supported")
    hidden = node.int_attr("hidden_size", shape_of(node.input(2))[-1])
    if hidden != shape_of(node.input(2))[-1]:
        raise Unsupported(f"hidden_size is {hidden}, R has {shape_of(node.input(2))[-1]}")
    if shape_of(node.input(1))[0] != len(directions):
        raise Unsupported(f"W has not {len(directions)} directions")
    if node.has(4):
        lengths = node.array(4)
        if lengths is None or (lengths != steps).any():
            raise Unsupported(
                "sequences of different lengths are not supported",
                "Export without sequence_lens, or bind it to the full length.",
            )
    return Layer(x, hidden, directions, batch_first)


def _direction(node: NodeContext, index: int, direction: int, shape: tuple[int, ...]) -> Expr:
    """Part of a weight for one direction; zeros where the input is omitted."""
    dtype = dtype_of(node.input(0))
    if not node.has(index):
        return constant(np.zeros(shape), dtype)
    array = node.array(index)
    if array is not None:
        return constant(array[direction])
    value = node.input(index)
    return node.reshape(node.slice(value, [0], [direction], [direction + 1]), shape)


def _state(node: NodeContext, layer: Layer, index: int, direction: int) -> Expr:
    """Initial state (B,H) of one direction; (B,D,H) in the batch-first layout."""
    shape = (layer.batch, layer.hidden)
    if not layer.batch_first or not node.has(index):
        return _direction(node, index, direction, shape)
    value = node.slice(node.input(index), [1], [direction], [direction + 1])
    return node.reshape(value, shape)


def _outputs(node: NodeContext, layer: Layer, results: list[Expr], states: int) -> tuple[Any, ...]:
    """Y, Y_h (and Y_c) from the directions' (S + states, B, H) results."""
    steps, batch, hidden = layer.steps, layer.batch, layer.hidden
    axis = 2 if layer.batch_first else 1

    def sequence() -> Expr:
        parts = []
        for result in results:
            part = node.slice(result, [0], [0], [steps])
            if layer.batch_first:
                part = node.transpose(part, (1, 0, 2))
                parts.append(node.reshape(part, (batch, steps, 1, hidden)))
            else:
                parts.append(node.reshape(part, (steps, 1, batch, hidden)))
        return parts[0] if len(parts) == 1 else node.emit(op.concat(parts, axis))

    def last(offset: int) -> Expr:
        parts = []
        for result in results:
            part = node.slice(result, [0], [steps + offset], [steps + offset + 1])
            shape = (batch, 1, hidden) if layer.batch_first else (1, batch, hidden)
            parts.append(node.reshape(part, shape))
        if len(parts) == 1:
            return parts[0]
        return node.emit(op.concat(parts, 1 if layer.batch_first else 0))

    wanted = [sequence() if node.wants(0) else None]
    wanted.extend(last(i) if node.wants(i + 1) else None for i in range(states))
    return tuple(wanted)


def lstm(node: NodeContext) -> tuple[Any, ...]:
    """LSTM without peepholes."""
    layer = _read_layer(node, ("Sigmoid", "Tanh", "Tanh"))
    if node.int_attr("input_forget"):
        raise Unsupported("input_forget=1 is not supported")
    if node.has(7):
        peepholes = node.array(7)
        if peepholes is None or peepholes.any():
            raise Unsupported("peephole connections are not supported")
    size, hidden = shape_of(layer.x)[2], layer.hidden
    results = []
    for i, backwards in enumerate(layer.directions):
        results.append(
            node.emit(
                layers.lstm(
                    layer.x,
                    _direction(node, 1, i, (4 * hidden, size)),
                    _direction(node, 2, i, (4 * hidden, hidden)),
                    _direction(node, 3, i, (8 * hidden,)),
                    _state(node, layer, 5, i),
                    _state(node, layer, 6, i),
                    hidden=hidden,
                    reverse=backwards,
                )
            )
        )
    return _outputs(node, layer, results, 2)


def gru(node: NodeContext) -> tuple[Any, ...]:
    """GRU, with the reset gate before or after the recurrent product."""
    layer = _read_layer(node, ("Sigmoid", "Tanh"))
    before = bool(node.int_attr("linear_before_reset"))
    size, hidden = shape_of(layer.x)[2], layer.hidden
    results = []
    for i, backwards in enumerate(layer.directions):
        results.append(
            node.emit(
                layers.gru(
                    layer.x,
                    _direction(node, 1, i, (3 * hidden, size)),
                    _direction(node, 2, i, (3 * hidden, hidden)),
                    _direction(node, 3, i, (6 * hidden,)),
                    _state(node, layer, 5, i),
                    hidden=hidden,
                    reverse=backwards,
                    linear_before_reset=before,
                )
            )
        )
    return _outputs(node, layer, results, 1)


def rnn(node: NodeContext) -> tuple[Any, ...]:
    """Elman RNN with tanh, one step after the other."""
    layer = _read_layer(node, ("Tanh",))
    if layer.steps > _MAX_UNROLLED:
        raise Unsupported(f"an RNN over {layer.steps} steps is not supported")
    size, hidden = shape_of(layer.x)[2], layer.hidden
    results = []
    for i, backwards in enumerate(layer.directions):
        w = node.transpose(_direction(node, 1, i, (hidden, size)), (1, 0))
        r = node.transpose(_direction(node, 2, i, (hidden, hidden)), (1, 0))
        b = _direction(node, 3, i, (2 * hidden,))
        bias = node.emit(
            op.add(node.slice(b, [0], [0], [hidden]), node.slice(b, [0], [hidden], [2 * hidden]))
        )
        inputs = node.emit(op.add(node.emit(op.matmul(layer.x, w)), bias))
        state = _state(node, layer, 5, i)
        steps: list[Expr] = [None] * layer.steps
        for t in range(layer.steps)[:: -1 if backwards else 1]:
            row = node.reshape(node.slice(inputs, [0], [t], [t + 1]), (layer.batch, hidden))
            total = node.emit(op.add(row, node.emit(op.matmul(state, r))))
            state = node.emit(op.tanh(total))
            steps[t] = node.reshape(state, (1, layer.batch, hidden))
        final = node.reshape(state, (1, layer.batch, hidden))
        results.append(node.emit(op.concat([*steps, final], 0)))
    return _outputs(node, layer, results, 1)


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "LSTM"): lstm,
    ("", "GRU"): gru,
    ("", "RNN"): rnn,
}
