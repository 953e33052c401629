"""Convolutions and products of dequantized operands on the integers, and what follows the sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes_graph import const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.ops.quantize import dequantize, quantize
from graphopt.passes.base import bindings_of, run_pipeline
from graphopt.passes.integer_convolutions import IntegerConvolutions
from graphopt.passes.integer_products import IntegerProducts
from graphopt.passes.pipeline import PIPELINE
from graphopt.passes.reciprocals import MultiplyByReciprocals
from graphopt.passes.values import array_of, dtype_of, op_name

nn = relax.op.nn
IMAGE = {"x": ((2, 4, 6, 5), "uint8")}
ROWS = {"x": ((2, 3, 8), "uint8")}
SCALE, ZERO = np.float32(0.05), 7


def whole(*shape, dtype="int8", seed=0):
    bounds = np.iinfo(dtype)
    return np.random.default_rng([seed, *shape]).integers(bounds.min, bounds.max + 1, shape)


def dq(x, scale=SCALE, zero=ZERO, dtype="uint8", **more):
    return dequantize(x, const(scale), const(zero, dtype), **more)


def weight(*shape, scale=0.01, zero=0, dtype="int8"):
    return dq(const(whole(*shape, dtype=dtype), dtype), scale, zero, dtype)


def per_filter(count, rank=4):
    return (np.abs(random(count)) * 0.01 + 0.002).reshape(-1, *[1] * (rank - 1))


def named(graph, kind):
    return next(b.value for b in bindings_of(graph) if op_name(b.value) == kind)


CONVOLUTIONS = {
    "plain": ({}, (6, 4, 3, 3)),
    "padded": ({"padding": [1, 2, 0, 1]}, (6, 4, 3, 3)),
    "strided": ({"strides": [2, 1], "padding": 1}, (6, 4, 3, 2)),
    "dilated": ({"dilation": [2, 1], "padding": 1}, (6, 4, 3, 3)),
    "grouped": ({"groups": 2, "padding": 1}, (6, 2, 3, 3)),
    "depthwise": ({"groups": 4, "padding": 1}, (4, 1, 3, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("scaled", ["whole", "filters"])
def test_convolutions(name, scaled):
    attrs, shape = CONVOLUTIONS[name]
    scale, zero = np.float32(0.01), 0
    if scaled == "filters":
        scale = per_filter(shape[0])
        zero = np.zeros_like(scale)
    graph = make(IMAGE, lambda x: nn.conv2d(dq(x), weight(*shape, scale=scale, zero=zero), **attrs))
    graph = fires(IntegerConvolutions(), graph, rewrites=1)
    assert kinds(graph) == ["graphopt.conv_integer", "add", "astype", "multiply"]
    assert named(graph, "graphopt.conv_integer").attrs["pad_value"] == ZERO
    assert dtype_of(named(graph, "graphopt.conv_integer").args[1]) == "int8"


def test_volumes():
    inputs = {"x": ((1, 2, 4, 4, 4), "uint8")}
    graph = make(inputs, lambda x: nn.conv3d(dq(x), weight(3, 2, 2, 2, 2), padding=1))
    assert kinds(fires(IntegerConvolutions(), graph))[0] == "graphopt.conv_integer"


def test_no_correction_without_a_zero_point():
    graph = make(IMAGE, lambda x: nn.conv2d(dq(x, zero=0), weight(6, 4, 3, 3), padding=1))
    graph = fires(IntegerConvolutions(), graph)
    assert kinds(graph) == ["graphopt.conv_integer", "astype", "multiply"]


def test_signed_data_is_shifted():
    inputs = {"x": ((2, 4, 6, 5), "int8")}
    data = lambda x: dq(x, zero=-3, dtype="int8")  # noqa: E731
    graph = make(inputs, lambda x: nn.conv2d(data(x), weight(6, 4, 3, 3), padding=1))
    graph = fires(IntegerConvolutions(), graph)
    call = named(graph, "graphopt.conv_integer")
    assert (dtype_of(call.args[0]), int(call.attrs["pad_value"])) == ("uint8", 125)


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 128), ("uint8", 127.0), ("int8", 0)])
def test_weights_become_int8(dtype, zero):
    values = np.clip(whole(6, 4, 3, 3, dtype=dtype), zero - 127, zero + 127)
    w = lambda: dq(const(values, dtype), 0.01, zero, dtype)  # noqa: E731
    graph = fires(IntegerConvolutions(), make(IMAGE, lambda x: nn.conv2d(dq(x), w())))
    array = array_of(named(graph, "graphopt.conv_integer").args[1])
    np.testing.assert_array_equal(array, values - int(zero))


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 3), ("int8", 100)])
def test_the_rest_of_a_zero_point_multiplies_sums_of_the_data(dtype, zero):
    w = lambda: weight(6, 4, 3, 3, zero=zero, dtype=dtype)  # noqa: E731
    graph = make(IMAGE, lambda x: nn.conv2d(dq(x), w(), padding=1))
    graph = fires(IntegerConvolutions(), graph, rewrites=1)
    assert kinds(graph).count("graphopt.conv_integer") == 2
    graph = make(IMAGE, lambda x: nn.conv2d(dq(x), weight(4, 1, 3, 3, zero=100), groups=4))
    fires(IntegerConvolutions(), graph, rewrites=1)

    def product(x):
        return relax.op.matmul(dq(x), weight(8, 5, zero=zero, dtype=dtype))

    graph = fires(IntegerProducts(), make(ROWS, product), rewrites=1)
    assert kinds(graph).count("graphopt.matmul_integer") == kinds(graph).count("sum") == 1


@pytest.mark.parametrize("rounded", [np.float32, np.float64])
def test_bias_of_whole_steps_joins_the_sums(rounded):
    """As an exporter rounds it: to a multiple of the float32 product of the scales."""
    scale = per_filter(6)
    steps = np.random.default_rng(0).integers(-5000, 5000, 6)
    unit = (SCALE * scale.reshape(-1).astype(rounded)).astype(np.float32)
    bias = (steps * unit).astype(np.float32).reshape(1, 6, 1, 1)

    def body(x):
        w = weight(6, 4, 3, 3, scale=scale, zero=np.zeros_like(scale))
        return relax.op.add(nn.conv2d(dq(x), w), const(bias))

    graph = fires(IntegerConvolutions(), make(IMAGE, body), rewrites=2)
    assert kinds(graph) == ["graphopt.conv_integer", "add", "astype", "multiply"]
    w = array_of(named(graph, "graphopt.conv_integer").args[1]).astype(int)
    wanted = steps - ZERO * w.sum(axis=(1, 2, 3))
    np.testing.assert_array_equal(array_of(named(graph, "add").args[1]).reshape(-1), wanted)


def test_other_biases_stay_floats():
    def body(x):
        return relax.op.add(nn.conv2d(dq(x), weight(6, 4, 3, 3)), const(random(1, 6, 1, 1)))

    graph = fires(IntegerConvolutions(), make(IMAGE, body), rewrites=1)
    assert kinds(graph) == ["graphopt.conv_integer", "add", "astype", "multiply", "add"]

    def huge(x):
        return relax.op.add(nn.conv2d(dq(x), weight(6, 4, 3, 3)), const(np.full((1, 6, 1, 1), 1e7)))

    assert kinds(fires(IntegerConvolutions(), make(IMAGE, huge), rewrites=1))[-1] == "add"


def test_a_biased_and_an_unbiased_use():
    def body(x):
        y = nn.conv2d(dq(x, zero=0), weight(6, 4, 3, 3))
        return [y, relax.op.add(y, const(np.float32(0.05 * 0.01 * 3)))]

    graph = fires(IntegerConvolutions(), make(IMAGE, body), rewrites=1)
    assert kinds(graph)[-1] == "add"


def conv(data, w, **attrs):
    return lambda x: nn.conv2d(data(x), w(x), **attrs)


def refused_convolutions():
    good = lambda _x: weight(6, 4, 3, 3)  # noqa: E731
    channels = const(np.full((1, 4, 1, 1), 0.1)), const(np.zeros((1, 4, 1, 1)), "uint8")
    inner = np.full((1, 4, 1, 1), 0.1)
    long = const(np.full((2, 70000, 1, 1), 127), "int8")
    yield conv(dq, lambda _x: const(random(6, 4, 3, 3))), "the weight is not quantized"
    yield conv(lambda x: relax.op.astype(x, "float32"), good), "the data is not quantized"
    yield conv(lambda x: dequantize(x, *channels), good), "more than one scale"
    yield conv(dq, lambda _x: weight(6, 4, 3, 3, scale=inner, zero=0 * inner)), "each filter"
    halves = lambda _x: weight(6, 2, 3, 3, zero=100)  # noqa: E731
    yield conv(dq, halves, groups=2), "a zero point, less which"
    shifted = lambda _x: weight(6, 4, 3, 3, zero=np.full((1, 4, 1, 1), 3.0))  # noqa: E731
    yield conv(dq, shifted), "zero points of the weight are not one for each filter"
    yield conv(dq, lambda _x: weight(6, 4, 3, 3, dtype="int16")), "are no bytes"
    yield conv(dq, lambda _x: weight(6, 4, 3, 3, scale=-0.1)), "not a positive number"
    yield conv(dq, lambda _x: weight(6, 4, 3, 3, scale=np.inf)), "not a positive number"
    wide = lambda x: relax.op.broadcast_to(relax.op.sum(x, keepdims=True), (1, 70000, 2, 2))  # noqa: E731
    yield conv(lambda x: dq(wide(x)), lambda _x: dq(long, zero=0, dtype="int8")), "sums of this"

    def computed(x):
        return dequantize(x, relax.op.max(relax.op.astype(x, "float32")), const(0, "uint8"))

    yield conv(computed, good), "computed at run time"


@pytest.mark.parametrize(("body", "reason"), list(refused_convolutions()))
def test_convolutions_that_stay_floats(body, reason):
    refuses(IntegerConvolutions(), make(IMAGE, body), reason)


def test_other_layouts_and_types():
    inputs = {"x": ((2, 6, 5, 4), "uint8")}

    def body(x):
        return nn.conv2d(dq(x), weight(3, 3, 4, 5), data_layout="NHWC", kernel_layout="HWIO")

    refuses(IntegerConvolutions(), make(inputs, body), "another layout")

    def half(x):
        w = relax.op.astype(weight(6, 4, 3, 3), "float16")
        return nn.conv2d(dequantize(x, const(0.1), const(0, "uint8"), dtype="float16"), w)

    refuses(IntegerConvolutions(), make(IMAGE, half), "dequantized to float16")


def test_floats_are_no_business_of_these_passes():
    refuses(
        IntegerConvolutions(),
        make({"x": (1, 4, 6, 6)}, lambda x: nn.conv2d(x, const(random(2, 4, 3, 3)))),
    )
    refuses(
        IntegerProducts(), make({"x": (2, 4)}, lambda x: relax.op.matmul(x, const(random(4, 3))))
    )


@pytest.mark.parametrize("shape", [(8, 5), (2, 8, 5), (1, 8, 5)])
@pytest.mark.parametrize("scaled", ["whole", "columns"])
def test_products(shape, scaled):
    scale, zero = np.float32(0.01), 0
    if scaled == "columns":
        scale = (np.abs(random(5)) * 0.01 + 0.002).reshape((1,) * (len(shape) - 1) + (5,))
        zero = np.zeros_like(scale)

    def body(x):
        return relax.op.matmul(dq(x), weight(*shape, scale=scale, zero=zero))

    graph = fires(IntegerProducts(), make(ROWS, body), rewrites=1)
    assert kinds(graph) == ["graphopt.matmul_integer", "add", "astype", "multiply"]


def test_bias_of_a_product():
    def body(x):
        y = relax.op.matmul(dq(x), weight(8, 5))
        return relax.op.add(y, const(np.arange(5) * np.float32(0.05 * 0.01)))

    graph = fires(IntegerProducts(), make(ROWS, body), rewrites=2)
    assert kinds(graph) == ["graphopt.matmul_integer", "add", "astype", "multiply"]


def test_scales_of_rows_of_a_weight():
    def body(x):
        scale = np.abs(random(8, 1)) + 0.1
        return relax.op.matmul(dq(x), weight(8, 5, scale=scale, zero=np.zeros_like(scale)))

    refuses(IntegerProducts(), make(ROWS, body), "each column")


def sums(x, zero=0):
    return nn.conv2d(dq(x, zero=zero), weight(6, 4, 3, 3), padding=1)


def q(x, scale=0.3, zero=9):
    return quantize(x, const(scale), const(zero, "uint8"))


def integers(body):
    return IntegerConvolutions().run(make(IMAGE, body)).graph


def test_quantized_sums_are_multiplied_once():
    graph = fires(MultiplyByReciprocals(), integers(lambda x: q(sums(x, ZERO))), rewrites=3)
    assert kinds(graph) == ["graphopt.conv_integer", "add", "graphopt.requantize"]
    multiplier = array_of(named(graph, "graphopt.requantize").args[1])
    np.testing.assert_allclose(multiplier, 0.05 * 0.01 / 0.3, rtol=1e-6)


def test_a_residual_and_an_activation_between():
    def body(x):
        residual = dq(relax.op.concat([x, x], axis=1), zero=3)
        residual = relax.op.strided_slice(residual, [1], [0], [6], [1])
        return q(nn.relu(relax.op.add(sums(x), residual)))

    graph = fires(MultiplyByReciprocals(), integers(body))
    assert kinds(graph)[-1] == "graphopt.requantize"


def test_divisions_of_what_was_quantized_before_stay():
    """Sums of numbers on two grids fall between two integers all the time."""

    def body(x):
        y = dq(q(sums(x)), 0.3, 9)
        return q(relax.op.add(y, y))

    graph = MultiplyByReciprocals().run(integers(body))
    assert kinds(graph.graph)[-1] == "graphopt.quantize"
    assert any("ties" in refusal.reason for refusal in graph.refusals)
    refuses(MultiplyByReciprocals(), make(IMAGE, lambda x: q(dq(x))), "no integer sums")


def test_a_scale_that_is_far_from_one():
    refuses(MultiplyByReciprocals(), integers(lambda x: q(sums(x), scale=3.3e38)))


def test_the_pipeline_leaves_one_chain():
    """int8 from end to end: data to uint8, batch normalisation into the multiplier, relu away."""

    def q8(x, scale, zero=-5):
        return quantize(x, const(np.float32(scale)), const(zero, "int8"))

    def dq8(x, scale, zero=-5):
        return dq(x, scale, zero, "int8")

    def body(x):
        y = nn.conv2d(dq8(q8(x, 0.02), 0.02), weight(6, 4, 3, 3), padding=1)
        y = relax.op.multiply(relax.op.add(y, const(random(1, 6, 1, 1))), const(random(1, 6, 1, 1)))
        y = dq8(q8(nn.relu(relax.op.add(y, const(random(1, 6, 1, 1)))), 0.1), 0.1)
        return nn.conv2d(y, weight(2, 6, 1, 1))

    before = make({"x": (2, 4, 6, 5)}, body)
    graph, _ = run_pipeline(before, PIPELINE)
    assert kinds(graph) == [
        "graphopt.quantize", "graphopt.conv_integer", "add", "astype", "multiply", "add",
        "graphopt.requantize", "graphopt.conv_integer", "add", "astype", "multiply",
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    groups=st.sampled_from([1, 2, 4]),
    zero=st.integers(0, 255),
    log_scale=st.floats(-12, 4),
)
def test_any_convolution(seed, kernel, padding, strides, groups, zero, log_scale):
    scale = np.exp(np.random.default_rng(seed).uniform(-6, 2, (4, 1, 1, 1))).astype(np.float32)

    def body(x):
        w = weight(4, 4 // groups, *kernel, scale=scale, zero=np.zeros_like(scale))
        data = dq(x, np.float32(np.exp(log_scale)), zero)
        return nn.conv2d(data, w, strides=strides, padding=padding, groups=groups)

    fires(IntegerConvolutions(), make(IMAGE, body), rewrites=1)
