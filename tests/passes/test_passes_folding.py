"""Scales, shifts, batch normalisation and padding folded into convolutions, products, pooling."""

from __future__ import annotations

import numpy as np
import pytest
from passes_graph import assert_same_function, const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.passes.base import run_pipeline
from graphopt.passes.fold_affine import FoldAffine
from graphopt.passes.fold_padding import FoldPadding
from graphopt.passes.pipeline import PIPELINE

X = {"x": (2, 4, 6, 6)}
add, mul, matmul = relax.op.add, relax.op.multiply, relax.op.matmul
CHANNELS = (1, 6, 1, 1)


def conv(x, groups=1, padding=1, channels=4, size=3):
    weight = const(random(6, channels // groups, size, size))
    return relax.op.nn.conv2d(x, weight, padding=padding, groups=groups)


def transposed(x, groups=1):
    weight = const(random(4, 6 // groups, 3, 3))
    return relax.op.nn.conv2d_transpose(x, weight, strides=2, groups=groups)


ANCHORS = {
    "conv": conv,
    "grouped": lambda x: conv(x, groups=2),
    "transposed": transposed,
    "grouped transposed": lambda x: transposed(x, groups=2),
}


@pytest.mark.parametrize("anchor", ANCHORS.values(), ids=ANCHORS)
@pytest.mark.parametrize("factor", [(), CHANNELS, (6, 1, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_scale_after(anchor, factor, biased):
    def body(x):
        y = anchor(x)
        y = add(y, const(random(*CHANNELS, seed=1))) if biased else y
        return mul(y, const(random(*factor, seed=2)))

    graph = fires(FoldAffine(), make(X, body), rewrites=1)
    assert "multiply" not in kinds(graph)
    assert len(kinds(graph)) == 1 + biased


@pytest.mark.parametrize("anchor", ANCHORS.values(), ids=ANCHORS)
def test_scale_before(anchor):
    """Zeros stay zeros, so that padding is no obstacle."""
    graph = fires(FoldAffine(), make(X, lambda x: anchor(mul(x, const(random(1, 4, 1, 1))))))
    assert len(kinds(graph)) == 1


@pytest.mark.parametrize("groups", [1, 2])
def test_shift_before(groups):
    def body(x):
        return conv(add(x, const(random(1, 4, 1, 1))), groups=groups, padding=0)

    graph = fires(FoldAffine(), make(X, body))
    assert kinds(graph) == ["nn.conv2d", "add"]


def test_shift_before_padding():
    def body(x):
        return conv(add(x, const(random(1, 4, 1, 1))))

    refuses(FoldAffine(), make(X, body), "padding's zeros")


@pytest.mark.parametrize("shape", [(), (5,), (1, 1, 5)])
def test_scale_after_matmul(shape):
    def body(x):
        y = add(matmul(x, const(random(4, 5))), const(random(5)))
        return mul(y, const(random(*shape, seed=1)))

    graph = fires(FoldAffine(), make({"x": (2, 3, 4)}, body))
    assert kinds(graph) == ["matmul", "add"]


def test_affine_before_matmul():
    def body(x):
        y = add(mul(x, const(random(4))), const(random(4, seed=1)))
        return matmul(y, const(random(4, 5)))

    graph = fires(FoldAffine(), make({"x": (2, 3, 4)}, body), rewrites=2)
    assert kinds(graph) == ["matmul", "add"]


def test_weights_are_rounded_once():
    """The folded weight is the float64 product, rounded to float32."""
    weight, factor = random(6, 4, 1, 1), random(6, 1, 1, seed=3)

    def body(x):
        return mul(relax.op.nn.conv2d(x, const(weight)), const(factor))

    def expected(x):
        wide = weight.astype(np.float64) * factor.astype(np.float64)[..., None]
        return relax.op.nn.conv2d(x, const(wide.astype(np.float32)))

    fires(FoldAffine(), make(X, body), make(X, expected), rewrites=1)


def test_nodes_are_united():
    def body(x):
        return mul(add(conv(x), const(random(*CHANNELS))), const(2.0))

    graph = fires(FoldAffine(), make(X, body))
    everyone = {"n:nn.conv2d#1", "n:add#1", "n:multiply#1"}
    assert [set(ids) for ids in graph.sites.values()] == [everyone, everyone]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: mul(conv(x), const(random(1, 1, 6, 6))), "other axes than the channels"),
        (lambda x: mul(conv(x), const(random(1, 6, 6, 1))), "other axes than the channels"),
        (lambda x: mul(conv(x), const(random(2, 1, 1, 1))), "other axes than the channels"),
        (lambda x: conv(mul(x, const(random(6, 6)))), "other axes than the channels"),
        (lambda x: mul(conv(x), const(np.inf)), "not finite"),
    ],
)
def test_factors_that_are_not_per_channel(body, reason):
    refuses(FoldAffine(), make(X, body), reason)


@pytest.mark.parametrize("position", ["conv", "bias", "input"])
def test_values_used_elsewhere(position):
    def body(x):
        if position == "input":
            scaled = mul(x, const(2.0))
            return [conv(scaled), scaled]
        y = conv(x)
        z = add(y, const(random(*CHANNELS)))
        return [mul(z, const(2.0)), y if position == "conv" else z]

    refuses(FoldAffine(), make(X, body), "used elsewhere")


def test_other_layouts():
    def body(x):
        weight = const(random(3, 3, 6, 5))
        y = relax.op.nn.conv2d(x, weight, data_layout="NHWC", kernel_layout="HWIO")
        return mul(y, const(random(5)))

    refuses(FoldAffine(), make(X, body), "another layout")


def test_products_of_two_activations():
    refuses(FoldAffine(), make({"x": (4, 4)}, lambda x: mul(matmul(x, x), const(2.0))))


def batch_norm(x, training=False, axis=1, channels=6):
    params = [const(np.abs(random(channels, seed=i)) + 0.1) for i in range(4)]
    result = relax.op.nn.batch_norm(x, *params, axis=axis, epsilon=1e-3, training=training)
    return relax.TupleGetItem(result, 0)


@pytest.mark.parametrize("anchor", ANCHORS.values(), ids=ANCHORS)
def test_batch_norm(anchor):
    graph = fires(FoldAffine(), make(X, lambda x: batch_norm(anchor(x))))
    assert len(kinds(graph)) == 2
    assert kinds(graph)[1] == "add"


def test_batch_norm_in_training():
    body = make(X, lambda x: batch_norm(conv(x), training=True))
    refuses(FoldAffine(), body, "training")


def test_conv_bias_batch_norm_leaves_one_addition():
    """The pipeline on conv, bias, batch norm, relu; and again with the norm in front."""

    def body(x):
        y = add(conv(x), const(random(*CHANNELS)))
        y = relax.op.nn.relu(batch_norm(y))
        y = relax.op.nn.conv2d(batch_norm(y), const(random(4, 6, 1, 1)))
        return add(y, const(random(1, 4, 1, 1)))

    before = make(X, body)
    graph, _ = run_pipeline(before, PIPELINE)
    assert kinds(graph) == ["nn.conv2d", "add", "nn.relu", "nn.conv2d", "add"]
    assert_same_function(before, graph)


PAD = [0, 0, 0, 0, 1, 2, 3, 0]  # top 1, bottom 2, left 3


def padded(x, widths=PAD, mode="constant", value=0.0):
    return relax.op.nn.pad(x, widths, mode, value)


def test_padding_into_convolution():
    weight = random(6, 4, 3, 3)

    def body(x):
        return relax.op.nn.conv2d(padded(x), const(weight), padding=(1, 1, 1, 1), strides=2)

    def expected(x):
        return relax.op.nn.conv2d(x, const(weight), padding=(2, 4, 3, 1), strides=2)

    fires(FoldPadding(), make(X, body), make(X, expected), rewrites=1)


def test_padding_in_front_of_a_view():
    """A causal convolution over time, which runs as a two-dimensional one."""
    weight = random(6, 4, 1, 3)

    def body(x):
        y = relax.op.nn.pad(x, [0, 0, 0, 0, 2, 0])
        return relax.op.nn.conv2d(relax.op.reshape(y, (2, 4, 1, 10)), const(weight))

    def expected(x):
        y = relax.op.reshape(x, (2, 4, 1, 8))
        return relax.op.nn.conv2d(y, const(weight), padding=(0, 2, 0, 0))

    inputs = {"x": (2, 4, 8)}
    fires(FoldPadding(), make(inputs, body), make(inputs, expected), rewrites=1)


def test_padding_in_front_of_a_view_that_merges_axes():
    def body(x):
        y = relax.op.nn.pad(x, [0, 0, 0, 0, 1, 0])
        return relax.op.nn.conv2d(relax.op.reshape(y, (1, 8, 1, 9)), const(random(6, 8, 1, 3)))

    refuses(FoldPadding(), make({"x": (2, 4, 8)}, body))


def test_padding_into_average():
    """The explicit zeros were counted, so they still are."""

    def body(x):
        return relax.op.nn.avg_pool2d(padded(x), (2, 2))

    def expected(x):
        return relax.op.nn.avg_pool2d(x, (2, 2), padding=(1, 3, 2, 0), count_include_pad=True)

    fires(FoldPadding(), make(X, body), make(X, expected), rewrites=1)


def test_padding_into_maximum():
    def body(x):
        return relax.op.nn.max_pool2d(padded(x, value=-np.inf), (5, 5), strides=(2, 2))

    graph = fires(FoldPadding(), make(X, body))
    assert kinds(graph) == ["nn.max_pool2d"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: conv(padded(x, mode="reflect", widths=[0] * 4 + [1] * 4)), "mode is reflect"),
        (lambda x: conv(padded(x, value=1.0)), "padding is 1"),
        (lambda x: relax.op.nn.max_pool2d(padded(x), (2, 2)), "pads with -inf"),
        (lambda x: conv(padded(x, [0, 0, 0, 2, 0, 0, 0, 0]), channels=6), "batch or channels"),
        (
            lambda x: relax.op.nn.avg_pool2d(padded(x), (3, 3), padding=(1, 1, 1, 1)),
            "not counted",
        ),
        (lambda x: relax.op.nn.avg_pool2d(padded(x), (2, 2), ceil_mode=True), "rounding up"),
    ],
)
def test_padding_that_stays(body, reason):
    refuses(FoldPadding(), make(X, body), reason)
