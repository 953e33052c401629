"""Relax calls as operations of the dataflow: kernel kinds, scalar operations and views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphopt.lowering.dataflow import Action, Anchor, Pointwise, View
from graphopt.ops.base import attributes
from schedules.interface import Attr, TensorSig

Translator = Callable[[Any, TensorSig, TensorSig], "Action | None"]
"""(call, signature of the first input, of the output) → action; None where it cannot serve."""


def translate(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
    """The action of a Relax operator call, or None where only TVM's legalisation can serve."""
    name = call.op.name
    if name in _POINTWISE:
        return Pointwise(_POINTWISE[name])
    if name in _VIEWS:
        return View()
    if name in _TRANSLATORS:
        return _TRANSLATORS[name](call, source, result)
    # Our own Relax ops carry the attributes of the kernel kind of their name.
    if is_own(call):
        return Anchor(name.removeprefix(_OWN), tuple(sorted(attributes(call).items())))
    return None


def is_own(call: Any) -> bool:
    """Whether a call is of an operator of ours, which may have several outputs."""
    return bool(call.op.name.startswith(_OWN))


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _number(expr: Any) -> float | int:
    value = getattr(expr, "value", expr)
    return value if isinstance(value, (int, float)) else float(value)


def _conv2d(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
    attrs = call.attrs
    if attrs.data_layout != "NCHW" or attrs.kernel_layout not in ("OIHW", "IOHW"):
        return None
    if (source.dtype, result.dtype) not in (("float32",) * 2, ("float16", "float32")):
        return None
    found: list[tuple[str, Attr]] = [
        ("strides", _ints(attrs.strides)),
        ("padding", _ints(attrs.padding)),
        ("dilation", _ints(attrs.dilation)),
        ("groups", int(attrs.groups)),
    ]
    if call.op.name == "relax.nn.conv2d":
        return Anchor("conv2d", tuple(found))
    found.append(("output_padding", _ints(attrs.output_padding)))
    return Anchor("conv2d_transpose", tuple(found))


def _pool(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
    attrs = call.attrs
    if attrs.layout != "NCHW":
        return None
    found: list[tuple[str, Attr]] = [
        ("kernel", _ints(attrs.pool_size)),
        ("strides", _ints(attrs.strides)),
        ("padding", _ints(attrs.padding)),
        ("dilation", _ints(attrs.dilation)),
    ]
    if call.op.name == "relax.nn.max_pool2d":
        return Anchor("max_pool2d", tuple(found))
    found.append(("count_include_pad", bool(attrs.count_include_pad)))
    return Anchor("avg_pool2d", tuple(found))


def _adaptive_pool(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
    if result.shape[2:] != (1, 1):
        return None
    return Anchor("reduce", (("function", "mean"), ("axes", (2, 3)), ("keepdims", True)))


def _reduce(function: str) -> Translator:
    def translator(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
        rank = len(source.shape)
        axes = call.attrs.axis
        found = tuple(range(rank)) if axes is None else tuple(a % rank for a in _ints(axes))
        keepdims = bool(call.attrs.keepdims)
        if not found:
            return None
        return Anchor(
            "reduce",
            (("function", function), ("axes", tuple(sorted(found))), ("keepdims", keepdims)),
        )

    return translator


def _normalised_axis(kind: str) -> Translator:
    def translator(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
        return Anchor(kind, (("axis", int(call.attrs.axis) % len(source.shape)),))

    return translator


def _norm(kind: str) -> Translator:
    def translator(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
        rank = len(source.shape)
        axes = tuple(axis % rank for axis in _ints(call.attrs.axes))
        if axes != tuple(range(rank - len(axes), rank)):
            return None
        return Anchor(kind, (("axes", axes), ("epsilon", float(call.attrs.epsilon))))

    return translator


def _transpose(call: Any, source: TensorSig, result: TensorSig) -> Action:
    rank = len(source.shape)
    given = call.attrs.axes
    axes = tuple(reversed(range(rank))) if given is None else tuple(a % rank for a in _ints(given))
    moved = [axis for axis in axes if source.shape[axis] != 1]
    return View() if moved == sorted(moved) else Anchor("transpose", (("axes", axes),))


def _slice(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
    rank = len(source.shape)
    axes, begin, end = (tuple(int(_number(v)) for v in field) for field in call.args[1:4])
    strides = (
        tuple(int(_number(v)) for v in call.args[4]) if len(call.args) > 4 else (1,) * len(axes)
    )
    begins, steps = [0] * rank, [1] * rank
    for axis, first, step in zip(axes, begin, strides, strict=True):
        extent = source.shape[axis % rank]
        low, high = (0, extent) if step > 0 else (-1, extent - 1)
        first = first + extent if first < 0 else first
        begins[axis % rank], steps[axis % rank] = min(max(first, low), high), step
    del end  # the output's shape says where it ends
    if source.shape == result.shape and min(steps) > 0:
        return View()
    return Anchor("slice", (("begin", tuple(begins)), ("strides", tuple(steps))))


def _pad(call: Any, source: TensorSig, result: TensorSig) -> Action:
    width = _ints(call.attrs.pad_width)
    mode = _PAD_MODES[str(call.attrs.pad_mode)]
    value = float(call.attrs.pad_value)
    return Anchor("pad", (("before", width[::2]), ("mode", mode), ("value", value)))


def _take(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
    if call.attrs.axis is None:
        return None
    return Anchor("take", (("axis", int(call.attrs.axis) % len(source.shape)),))


def _clip(call: Any, source: TensorSig, result: TensorSig) -> Action:
    low, high = _number(call.args[1]), _number(call.args[2])
    return Pointwise("clip", (("min", low), ("max", high)))


def _cast(call: Any, source: TensorSig, result: TensorSig) -> Action:
    return Pointwise("cast", (("dtype", result.dtype),))


def _leaky(call: Any, source: TensorSig, result: TensorSig) -> Action:
    return Pointwise("leaky_relu", (("alpha", float(call.attrs.alpha)),))


def _softplus(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
    return Pointwise("softplus") if float(call.attrs.beta) == 1.0 else None


def _hard_sigmoid(call: Any, source: TensorSig, result: TensorSig) -> Action:
    return Pointwise("hard_sigmoid", tuple(sorted(attributes(call).items())))


def _concat(call: Any, source: TensorSig, result: TensorSig) -> Action:
    return Anchor("concat", (("axis", int(call.attrs.axis) % len(result.shape)),))


def _matmul(call: Any, source: TensorSig, result: TensorSig) -> Action | None:
    second = call.args[1].ty.shape
    if len(source.shape) < 2 or len(second) < 2:
        return None
    return Anchor("matmul", (("transpose_b", False),))


def _matmul_integer(call: Any, source: TensorSig, result: TensorSig) -> Action:
    attrs = attributes(call)
    transposed = ("transpose_b", attrs["transpose_b"])
    if not any(attrs["zeros"]):
        return Anchor("matmul", (transposed,))
    return Anchor("matmul_offset", (transposed, ("zeros", attrs["zeros"])))


def _scalar(call: Any, source: TensorSig, result: TensorSig) -> Action:
    return Pointwise(call.op.name.removeprefix(_OWN), tuple(sorted(attributes(call).items())))


_OWN = "graphopt."

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}

_VIEWS = frozenset({"relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten"})

_SAME_NAME = """
    abs negative exp log sqrt rsqrt sigmoid tanh erf floor ceil round sign sin cos tan asin acos
    atan sinh cosh asinh acosh atanh logical_not bitwise_not isnan isinf add subtract multiply
    divide maximum minimum power floor_mod floor_divide equal not_equal less less_equal greater
    greater_equal logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor left_shift
    right_shift where
"""

_POINTWISE: Mapping[str, str] = {
    **{f"relax.{name}": name for name in _SAME_NAME.split()},
    "relax.mod": "fmod",
    "relax.nn.relu": "relu",
    "relax.nn.silu": "silu",
    "relax.nn.gelu": "gelu",
    "relax.nn.gelu_tanh": "gelu_tanh",
    "relax.broadcast_to": "identity",
    "graphopt.hard_swish": "hard_swish",
}

_TRANSLATORS: Mapping[str, Translator] = {
    "relax.nn.conv2d": _conv2d,
    "relax.nn.conv2d_transpose": _conv2d,
    "relax.nn.max_pool2d": _pool,
    "relax.nn.avg_pool2d": _pool,
    "relax.nn.adaptive_avg_pool2d": _adaptive_pool,
    "relax.matmul": _matmul,
    "relax.nn.softmax": _normalised_axis("softmax"),
    "relax.nn.log_softmax": _normalised_axis("log_softmax"),
    "relax.nn.layer_norm": _norm("layer_norm"),
    "relax.nn.rms_norm": _norm("rms_norm"),
    **{f"relax.{name}": _reduce(name) for name in ("sum", "mean", "max", "min", "prod")},
    "relax.permute_dims": _transpose,
    "relax.strided_slice": _slice,
    "relax.nn.pad": _pad,
    "relax.take": _take,
    "relax.concat": _concat,
    "relax.clip": _clip,
    "relax.nn.relu6": lambda *_: Pointwise("clip", (("min", 0.0), ("max", 6.0))),
    "relax.astype": _cast,
    "relax.nn.leakyrelu": _leaky,
    "relax.nn.softplus": _softplus,
    "graphopt.hard_sigmoid": _hard_sigmoid,
    "graphopt.matmul_integer": _matmul_integer,
    **{f"graphopt.{name}": _scalar for name in ("quantize", "dequantize", "requantize")},
    **{f"graphopt.{name}": _scalar for name in ("decode_float", "encode_float", "bitcast")},
}
