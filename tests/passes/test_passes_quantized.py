"""Dequantizations and quantizations on the move: behind and in front of what moves numbers."""

from __future__ import annotations

import numpy as np
import pytest
from passes_graph import const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.ops.narrow import bitcast
from graphopt.ops.quantize import conv_integer, dequantize, matmul_integer, quantize
from graphopt.ops.resize import resize2d
from graphopt.passes.absorb_shifts import AbsorbShifts
from graphopt.passes.base import bindings_of
from graphopt.passes.dequantize_moves import SinkDequantize
from graphopt.passes.fold_dequantized import FoldDequantized
from graphopt.passes.quantize_moves import HoistQuantize
from graphopt.passes.signs import NormalizeSigns
from graphopt.passes.values import array_of, dtype_of, op_name, scalar_of

BYTES = {"x": ((1, 4, 6, 6), "uint8")}
SIGNED = {"x": ((1, 4, 6, 6), "int8")}
FLOATS = {"x": (1, 4, 6, 6)}
nn = relax.op.nn
DEQUANTIZE, QUANTIZE = "graphopt.dequantize", "graphopt.quantize"


def dq(x, scale=0.05, zero=7, dtype="uint8"):
    return dequantize(x, const(scale), const(zero, dtype))


def q(x, scale=0.05, zero=7, dtype="uint8", **limits):
    return quantize(x, const(scale), const(zero, dtype), **limits)


def whole(*shape, dtype="int8", seed=0):
    bounds = np.iinfo(dtype)
    values = np.random.default_rng([seed, *shape]).integers(bounds.min, bounds.max + 1, shape)
    return const(values, dtype)


def enlarged(x):
    return resize2d(x, size=(12, 12), scales=(2.0, 2.0), coordinate="asymmetric", rounding="floor")


MOVEMENTS = {
    "reshape": lambda x: relax.op.reshape(x, (4, 36)),
    "permute_dims": lambda x: relax.op.permute_dims(x, [0, 2, 3, 1]),
    "strided_slice": lambda x: relax.op.strided_slice(x, [1], [0], [3], [2]),
    "broadcast_to": lambda x: relax.op.broadcast_to(x, (3, 4, 6, 6)),
    "take": lambda x: relax.op.take(x, const([2, 0], "int64"), axis=1),
    "nn.max_pool2d": lambda x: nn.max_pool2d(x, (3, 3), (2, 2), (1, 1)),
    "nn.pad": lambda x: nn.pad(x, [0, 0, 0, 0, 1, 2, 2, 1], "constant", 0.0),
    "graphopt.resize2d": enlarged,
}


@pytest.mark.parametrize("kind", MOVEMENTS)
def test_dequantize_goes_behind(kind):
    graph = fires(SinkDequantize(), make(BYTES, lambda x: MOVEMENTS[kind](dq(x))), rewrites=1)
    assert kinds(graph) == [kind, DEQUANTIZE]


@pytest.mark.parametrize("kind", MOVEMENTS)
def test_quantize_goes_in_front(kind):
    graph = fires(HoistQuantize(), make(FLOATS, lambda x: q(MOVEMENTS[kind](x))), rewrites=1)
    assert kinds(graph) == [QUANTIZE, kind]


@pytest.mark.parametrize("kind", MOVEMENTS)
def test_both_cancel_across_a_movement(kind):
    graph = make(BYTES, lambda x: q(MOVEMENTS[kind](dq(x))))
    graph = fires(HoistQuantize(), fires(SinkDequantize(), graph))
    assert kinds(graph) == [kind]
    assert dtype_of(bindings_of(graph)[0].var) == "uint8"


def test_padding_with_a_number():
    """1.5 is 30 steps above the zero point; 1.51 is between two integers."""

    def body(value):
        return lambda x: nn.pad(dq(x), [0, 0, 0, 0, 1, 1, 1, 1], "constant", value)

    graph = fires(SinkDequantize(), make(BYTES, body(1.5)))
    assert bindings_of(graph)[0].value.attrs.pad_value == 37
    refuses(SinkDequantize(), make(BYTES, body(1.51)), "no integer stands for")
    refuses(SinkDequantize(), make(BYTES, body(-1.5)), "no integer stands for")
    back = make(FLOATS, lambda x: q(nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], "constant", 1.51)))
    refuses(HoistQuantize(), back, "no integer stands for")


def test_concatenations():
    """Of one scale, integers are concatenated; with others, each part is brought to one."""
    inputs = {"x": ((1, 4, 6, 6), "uint8"), "y": ((1, 2, 6, 6), "uint8")}

    def joined(*others):
        return lambda x, y: relax.op.concat([dq(x), dq(y, *others)], axis=1)

    graph = fires(SinkDequantize(), make(inputs, joined()), rewrites=1)
    assert kinds(graph) == ["concat", DEQUANTIZE]
    refuses(SinkDequantize(), make(inputs, joined(0.06)))
    refuses(SinkDequantize(), make(inputs, joined(0.05, 8)))

    graph = fires(HoistQuantize(), make(inputs, lambda x, y: q(joined(0.06)(x, y))))
    assert kinds(graph) == [DEQUANTIZE, QUANTIZE, "concat"]


def test_parts_of_a_split():
    def body(x):
        parts = relax.op.split(dq(x), 2, axis=1)
        return [relax.TupleGetItem(parts, 0), relax.TupleGetItem(parts, 1)]

    graph = fires(SinkDequantize(), make(BYTES, body))
    assert kinds(graph).count("split") == kinds(graph).count("item") == 2
    assert all(dtype_of(b.var) == "uint8" for b in bindings_of(graph) if "item" in b.var.name)


def test_scales_of_channels_stay():
    def body(x):
        per = dequantize(
            x, const(random(1, 4, 1, 1) ** 2 + 1), const(np.zeros((1, 4, 1, 1)), "uint8")
        )
        return relax.op.permute_dims(per, [0, 2, 3, 1])

    refuses(SinkDequantize(), make(BYTES, body))


@pytest.mark.parametrize("scale", [(), (5, 1, 1)])
def test_views_and_transposes_of_weights(scale):
    """A one-dimensional convolution's weight, per filter."""
    scales, zeros = np.abs(random(*scale)) + 0.1, np.zeros(scale, np.int8)

    def body(x):
        weight = dequantize(whole(5, 4, 3), const(scales), const(zeros, "int8"))
        lifted = relax.op.reshape(weight, (5, 4, 1, 3))
        return relax.op.add(relax.op.permute_dims(lifted, [1, 0, 2, 3]), x)

    graph = fires(SinkDequantize(), make({"x": (1,)}, body), rewrites=2)
    assert kinds(graph) == [DEQUANTIZE, "add"]


def test_a_weight_is_not_viewed_across_its_scales():
    scales = const(np.abs(random(6, 1)) + 0.1)

    def body(x):
        weight = dequantize(whole(6, 4), scales, const(np.zeros((6, 1)), "int8"))
        return relax.op.add(relax.op.reshape(weight, (3, 8)), x)

    refuses(SinkDequantize(), make({"x": (1,)}, body))


def test_relu_of_integers():
    def body(x):
        return nn.conv2d(nn.relu(dq(x)), const(random(2, 4, 3, 3)))

    graph = fires(SinkDequantize(), make(BYTES, body))
    assert kinds(graph) == ["maximum", DEQUANTIZE, "nn.conv2d"]
    refuses(SinkDequantize(), make(BYTES, lambda x: nn.relu(dq(x))))


@pytest.mark.parametrize(
    ("bound", "low", "high"),
    [
        (nn.relu, 7, 255),
        (lambda x: relax.op.clip(x, 0, 6), 7, 127),
        (lambda x: relax.op.clip(x, -0.12, 1e9), 5, 255),
        (lambda x: relax.op.clip(x, -1e9, 0.074), 0, 8),
    ],
)
def test_bounds_become_limits(bound, low, high):
    graph = fires(HoistQuantize(), make(FLOATS, lambda x: q(bound(x))), rewrites=1)
    assert kinds(graph) == [QUANTIZE]
    attrs = dict(bindings_of(graph)[0].value.attrs.items())
    assert (int(attrs["low"]), int(attrs["high"])) == (low, high)


def test_bounds_between_integers():
    graph = make(BYTES, lambda x: q(relax.op.clip(dq(x), -0.1, 1)))
    graph = fires(HoistQuantize(), graph)
    assert kinds(graph) == ["maximum", "minimum"]
    assert [scalar_of(b.value.args[1]) for b in bindings_of(graph)[:2]] == [5, 27]


def test_what_is_used_as_floats_is_not_quantized_early():
    def body(x):
        y = nn.relu(x)
        z = relax.op.reshape(x, (4, 36))
        return [q(y), y, q(z), z]

    refuses(HoistQuantize(), make(FLOATS, body), "used as floats")


def test_parts_are_quantized_by_themselves():
    """Each with its scale: the whole would be quantized once for each."""

    def body(x):
        y = relax.op.exp(x)
        halves = [relax.op.strided_slice(y, [1], [i], [i + 2], [1]) for i in (0, 2)]
        return [q(half, 0.1 * (i + 1)) for i, half in enumerate(halves)]

    refuses(HoistQuantize(), make(FLOATS, body), "other parts")


def test_quantize_with_other_parameters_stays():
    refuses(HoistQuantize(), make(BYTES, lambda x: q(dq(x), 0.06)))
    refuses(HoistQuantize(), make(BYTES, lambda x: q(dq(x), zero=8)))
    refuses(HoistQuantize(), make(BYTES, lambda x: q(dq(x), dtype="int8")))


def test_signs_between_quantize_and_dequantize():
    def body(x):
        y = MOVEMENTS["nn.max_pool2d"](q(x, dtype="int8", zero=-3))
        y = nn.pad(y, [0, 0, 0, 0, 1, 1, 1, 1], "constant", -3.0)
        return dq(relax.op.concat([y, whole(1, 2, 5, 5)], axis=1), dtype="int8", zero=-3)

    graph = fires(NormalizeSigns(), make(FLOATS, body))
    assert kinds(graph) == [QUANTIZE, "nn.max_pool2d", "nn.pad", "concat", DEQUANTIZE]
    assert all(dtype_of(b.var) in ("uint8", "float32") for b in bindings_of(graph)[:-1])
    assert bindings_of(graph)[2].value.attrs.pad_value == 125
    zeros = [scalar_of(bindings_of(graph)[i].value.args[2]) for i in (0, 4)]
    assert zeros == [125, 125]


def test_signed_outputs_stay_signed():
    def body(x):
        y = q(x, dtype="int8", zero=-3)
        return [y, dq(y, dtype="int8", zero=-3)]

    graph = fires(NormalizeSigns(), make(FLOATS, body))
    assert sorted(kinds(graph)) == sorted([QUANTIZE, DEQUANTIZE, "bitwise_xor", "graphopt.bitcast"])
    refuses(NormalizeSigns(), make(FLOATS, lambda x: q(x, dtype="int8", zero=-3)))


def test_signed_inputs_beside_others():
    """A concatenation of an input and a quantized tensor: the input is shifted."""

    def body(x, y):
        joined = relax.op.concat([y, q(x, dtype="int8", zero=-3)], axis=1)
        return dq(joined, dtype="int8", zero=-3)

    graph = fires(NormalizeSigns(), make(FLOATS | {"y": ((1, 2, 6, 6), "int8")}, body))
    assert [k for k in kinds(graph) if "graphopt" not in k] == ["bitwise_xor", "concat"]
    refuses(NormalizeSigns(), make(SIGNED, lambda x: dq(x, dtype="int8", zero=-3)))


def test_limits_move_with_the_sign():
    """An int4 that is kept in int8."""
    graph = make(FLOATS, lambda x: dq(q(x, 1.0, 0, "int8", low=-8, high=7), 1.0, 0, "int8"))
    graph = fires(NormalizeSigns(), graph)
    attrs = dict(bindings_of(graph)[0].value.attrs.items())
    assert (int(attrs["low"]), int(attrs["high"])) == (120, 135)


def test_constants_are_dequantized_but_for_weights():
    def body(x):
        scale = const(np.abs(random(3, 1, 1, 1)) + 0.1)
        weight = dequantize(whole(3, 4, 1, 1), scale, const(np.zeros((3, 1, 1, 1)), "int8"))
        bias = dequantize(const([[[5]], [[6]], [[7]]], "int32"), const(0.1), const(0, "int32"))
        return relax.op.add(nn.conv2d(dq(x), weight), bias)

    graph = fires(FoldDequantized(weights=False), make(BYTES, body), rewrites=1)
    assert kinds(graph).count(DEQUANTIZE) == 2
    assert kinds(fires(FoldDequantized(), graph, rewrites=1)).count(DEQUANTIZE) == 1


def test_second_operands_are_signed():
    """What products have only as their second operand; the first is unsigned."""
    inputs = {"x": (2, 4, 6), "y": (2, 6, 5)}

    def body(x, y):
        first = dq(q(x, zero=-3, dtype="int8"), zero=-3, dtype="int8")
        second = relax.op.permute_dims(q(relax.op.permute_dims(y, [0, 2, 1])), [0, 2, 1])
        return relax.op.matmul(first, dq(second))

    graph = fires(NormalizeSigns(), make(inputs, body))
    made = [dtype_of(b.var) for b in bindings_of(graph) if op_name(b.value) == QUANTIZE]
    assert sorted(made) == ["int8", "uint8"]
    assert not {"bitwise_xor", "graphopt.bitcast"} & set(kinds(graph))


def shift(x):
    return bitcast(relax.op.bitwise_xor(x, const(128, "uint8")), dtype="int8")


def test_what_is_only_read_shifted_is_made_so():
    graph = make(FLOATS, lambda x: shift(relax.op.reshape(q(x), (4, 36))))
    refuses(NormalizeSigns(), graph)
    graph = fires(AbsorbShifts(), graph)
    assert kinds(graph) == [QUANTIZE, "reshape"]
    assert dtype_of(bindings_of(graph)[0].var) == "int8"


def test_what_is_also_read_as_it_is_stays():
    def body(x):
        y = relax.op.reshape(q(x), (4, 36))
        return [shift(y), y]

    refuses(AbsorbShifts(), make(FLOATS, body))


@pytest.mark.parametrize("kind", ["convolution", "product"])
def test_sums_over_signed_data(kind):
    """As operators come that were quantized before import."""

    def body(x):
        y = q(x, dtype="int8", zero=-3)
        if kind == "product":
            sums = matmul_integer(y, whole(6, 5))
            return relax.op.add(sums, const(np.arange(5), "int32"))
        attrs = {"strides": (1, 2), "padding": (1, 0, 2, 1), "dilation": (1, 1), "groups": 2}
        sums = conv_integer(y, whole(6, 2, 3, 3), **attrs, pad_value=-3)
        return relax.op.add(sums, const(np.arange(6).reshape(1, 6, 1, 1), "int32"))

    graph = fires(NormalizeSigns(), make(FLOATS, body))
    assert [k.removeprefix("graphopt.") for k in kinds(graph)][1:] in (
        ["matmul_integer", "add"],
        ["conv_integer", "add"],
    )
    assert dtype_of(bindings_of(graph)[0].var) == "uint8"


def test_constants_are_quantized():
    x = const([[-100.0, 0.0], [0.125, np.nan]])
    graph = make({"x": ((2, 2), "uint8")}, lambda y: relax.op.maximum(y, q(x, 0.05, 7)))
    graph = fires(FoldDequantized(), graph)
    np.testing.assert_array_equal(array_of(bindings_of(graph)[0].value.args[1]), [[0, 7], [9, 0]])
