"""LSTM, GRU and RNN: one operator of ours per direction, over all time steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from graphopt.frontend.emit import Expr, NodeContext, Unsupported, constant, dtype_of, shape_of
from graphopt.ops import recurrent as layers
from graphopt.ops.recurrent import Activation, CellOptions

op = relax.op

# Activations: whether they have an alpha and a beta, and their defaults. Without a default the
# value must be given: the standard and runtimes disagree on what it is otherwise.
_ACTIVATIONS: Mapping[str, tuple[tuple[bool, float | None], tuple[bool, float | None]]] = {
    "relu": ((False, 0.0), (False, 0.0)),
    "tanh": ((False, 0.0), (False, 0.0)),
    "sigmoid": ((False, 0.0), (False, 0.0)),
    "softsign": ((False, 0.0), (False, 0.0)),
    "softplus": ((False, 0.0), (False, 0.0)),
    "affine": ((True, None), (True, None)),
    "leakyrelu": ((True, 0.01), (False, 0.0)),
    "thresholdedrelu": ((True, None), (False, 0.0)),
    "scaledtanh": ((True, None), (True, None)),
    "hardsigmoid": ((True, 0.2), (True, 0.5)),
    "elu": ((True, 1.0), (False, 0.0)),
}


@dataclass(frozen=True)
class Layer:
    """What LSTM, GRU and RNN nodes have in common; x is (S,B,I)."""

    x: Expr
    hidden: int
    directions: tuple[CellOptions, ...]
    batch_first: bool

    @property
    def steps(self) -> int:
        return shape_of(self.x)[0]

    @property
    def batch(self) -> int:
        return shape_of(self.x)[1]


def _read_layer(node: NodeContext, activations: tuple[str, ...]) -> Layer:
    x = node.input(0)
    if len(shape_of(x)) != 3:
        raise Unsupported(f"X has shape {shape_of(x)}, not three dimensions")
    batch_first = bool(node.int_attr("layout"))
    if batch_first:
        x = node.transpose(x, (1, 0, 2))
    steps, batch, _ = shape_of(x)
    if steps == 0 or batch == 0:
        raise Unsupported("a sequence without steps, or an empty batch, is not supported")
    node.ignore("output_sequence")  # of operator set 1: whether the first output is wanted
    direction = node.string_attr("direction", "forward").lower()
    known = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    if direction not in known:
        raise Unsupported(f"direction '{direction}' is unknown")
    reverse = known[direction]
    per_direction = _activations(node, activations, len(reverse))
    clip = node.float_attr("clip", 0.0)
    hidden = node.int_attr("hidden_size", shape_of(node.input(2))[1 if _transposed(node) else 2])
    for i, name in ((1, "W"), (2, "R")):
        shape = shape_of(node.input(i))
        if len(shape) != 3 or shape[0] != len(reverse):
            raise Unsupported(f"{name} has shape {shape}, not ({len(reverse)}, …, …)")
    lengths = _lengths(node, steps, batch)
    options = tuple(
        CellOptions(hidden, backwards, chosen, clip, lengths)
        for backwards, chosen in zip(reverse, per_direction, strict=True)
    )
    return Layer(x, hidden, options, batch_first)


def _transposed(node: NodeContext) -> bool:
    return node.op_type == "DynamicQuantizeLSTM"


def _activations(
    node: NodeContext, default: tuple[str, ...], directions: int
) -> list[tuple[Activation, ...]]:
    """The activations of each direction; parameters are consumed by those that have them."""
    stated = node.attribute("activations")
    names = default * directions if stated is None else tuple(
        (name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)).lower()
        for name in stated
    )  # fmt: skip
    if len(names) != len(default) * directions:
        raise Unsupported(f"{len(names)} activations are given, {len(default) * directions} needed")
    given = {
        name: iter([float(v) for v in node.attribute(name) or ()])
        for name in ("activation_alpha", "activation_beta")
    }
    found: list[Activation] = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise Unsupported(f"activation {name} is unknown")
        values = []
        for (has, otherwise), queue in zip(_ACTIVATIONS[name], given.values(), strict=True):
            value = next(queue, otherwise) if has else 0.0
            if value is None:
                raise Unsupported(f"activation {name} needs its alpha and beta stated")
            values.append(value)
        found.append((name, values[0], values[1]))
    width = len(default)
    return [tuple(found[i * width : (i + 1) * width]) for i in range(directions)]


def _lengths(node: NodeContext, steps: int, batch: int) -> Expr | None:
    """Steps of each sequence; None where all have the full length."""
    if not node.has(4):
        return None
    if shape_of(node.input(4)) != (batch,):
        raise Unsupported(f"sequence_lens has shape {shape_of(node.input(4))}, not ({batch},)")
    known = node.array(4)
    if known is not None:
        if (known < 0).any() or (known > steps).any():
            raise Unsupported(f"sequence_lens are not within 0 and {steps}")
        if (known == steps).all():
            return None
    return node.cast(node.input(4), "int32")


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
    """LSTM."""
    layer = _read_layer(node, ("sigmoid", "tanh", "tanh"))
    size, hidden = shape_of(layer.x)[2], layer.hidden
    input_forget = node.flag_attr("input_forget")
    results = []
    for i, options in enumerate(layer.directions):
        results.append(
            node.emit(
                layers.lstm(
                    layer.x,
                    _direction(node, 1, i, (4 * hidden, size)),
                    _direction(node, 2, i, (4 * hidden, hidden)),
                    _direction(node, 3, i, (8 * hidden,)),
                    _state(node, layer, 5, i),
                    _state(node, layer, 6, i),
                    options,
                    peepholes=_peepholes(node, i, hidden),
                    input_forget=input_forget,
                )
            )
        )
    return _outputs(node, layer, results, 2)


def _peepholes(node: NodeContext, direction: int, hidden: int) -> Expr | None:
    if not node.has(7):
        return None
    known = node.array(7)
    if known is not None and not known.any():
        return None
    return _direction(node, 7, direction, (3 * hidden,))


def dynamic_quantize_lstm(node: NodeContext) -> tuple[Any, ...]:
    """com.microsoft's LSTM with weights in 8 bits.

    The input, all steps at once, and at every step the state that enters the recurrent product are
    rounded to 256 levels, as ONNX Runtime does; the products are summed in float. It rounds the
    state of several sequences with common levels, where here each sequence has its own.
    """
    layer = _read_layer(node, ("sigmoid", "tanh", "tanh"))
    size, hidden = shape_of(layer.x)[2], layer.hidden
    input_forget = node.flag_attr("input_forget")
    x = _rounded(node, layer.x)
    results = []
    for i, options in enumerate(layer.directions):
        results.append(
            node.emit(
                layers.lstm(
                    x,
                    _dequantized(node, 1, 8, i, (size, 4 * hidden)),
                    _dequantized(node, 2, 10, i, (hidden, 4 * hidden)),
                    _direction(node, 3, i, (8 * hidden,)),
                    _state(node, layer, 5, i),
                    _state(node, layer, 6, i),
                    options,
                    peepholes=_peepholes(node, i, hidden),
                    input_forget=input_forget,
                    quantized_state=True,
                )
            )
        )
    return _outputs(node, layer, results, 2)


def _rounded(node: NodeContext, x: Expr) -> Expr:
    """x to the nearest of 256 even levels over its range, which includes 0."""
    axes, zero = list(range(len(shape_of(x)))), node.scalar(0, x)
    high = node.emit(op.maximum(node.emit(op.max(x, axes, False)), zero))
    low = node.emit(op.minimum(node.emit(op.min(x, axes, False)), zero))
    span = node.emit(op.divide(node.emit(op.subtract(high, low)), node.scalar(255, x)))
    step = node.emit(op.where(node.emit(op.equal(span, zero)), node.scalar(1, x), span))
    shift = node.emit(op.divide(node.emit(op.negative(low)), step))
    point = node.emit(op.clip(node.emit(op.round(shift)), 0, 255))
    level = node.emit(op.add(node.emit(op.round(node.emit(op.divide(x, step)))), point))
    offset = node.emit(op.subtract(node.emit(op.clip(level, 0, 255)), point))
    return node.emit(op.multiply(offset, step))


def _dequantized(
    node: NodeContext, index: int, scale: int, direction: int, shape: tuple[int, int]
) -> Expr:
    """Weights (K,4H) of one direction, per tensor or per column, as float (4H,K)."""
    weights = node.known(index, "a quantized weight")
    factor, zero = node.known(scale, "a scale"), node.known(scale + 1, "a zero point")
    if weights.shape[1:] != shape:
        raise Unsupported(f"a weight has shape {weights.shape}, not (…, {shape[0]}, {shape[1]})")
    if factor.shape not in ((len(weights),), (len(weights), shape[1])):
        raise Unsupported(f"a scale has shape {factor.shape}")
    levels = weights[direction].astype(np.float32) - zero[direction].astype(np.float32)
    return constant(np.ascontiguousarray((levels * factor[direction]).T), dtype_of(node.input(0)))


def gru(node: NodeContext) -> tuple[Any, ...]:
    """GRU, with the reset gate before or after the recurrent product."""
    layer = _read_layer(node, ("sigmoid", "tanh"))
    before = node.flag_attr("linear_before_reset")
    size, hidden = shape_of(layer.x)[2], layer.hidden
    results = []
    for i, options in enumerate(layer.directions):
        results.append(
            node.emit(
                layers.gru(
                    layer.x,
                    _direction(node, 1, i, (3 * hidden, size)),
                    _direction(node, 2, i, (3 * hidden, hidden)),
                    _direction(node, 3, i, (6 * hidden,)),
                    _state(node, layer, 5, i),
                    options,
                    linear_before_reset=before,
                )
            )
        )
    return _outputs(node, layer, results, 1)


def rnn(node: NodeContext) -> tuple[Any, ...]:
    """Elman RNN."""
    layer = _read_layer(node, ("tanh",))
    size, hidden = shape_of(layer.x)[2], layer.hidden
    results = []
    for i, options in enumerate(layer.directions):
        results.append(
            node.emit(
                layers.rnn(
                    layer.x,
                    _direction(node, 1, i, (hidden, size)),
                    _direction(node, 2, i, (hidden, hidden)),
                    _direction(node, 3, i, (2 * hidden,)),
                    _state(node, layer, 5, i),
                    options,
                )
            )
        )
    return _outputs(node, layer, results, 1)


CONVERTERS: Mapping[tuple[str, str], Callable[[NodeContext], Any]] = {
    ("", "LSTM"): lstm,
    ("", "GRU"): gru,
    ("", "RNN"): rnn,
    ("com.microsoft", "DynamicQuantizeLSTM"): dynamic_quantize_lstm,
}
