"""Recovered activations and normalisations, in every order and form that exporters write."""

from __future__ import annotations

import itertools
from math import pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes_graph import const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.passes.activations import RecoverActivations
from graphopt.passes.arithmetic import CanonicalizeArithmetic
from graphopt.passes.base import run_pipeline
from graphopt.passes.normalizations import RecoverNormalizations
from graphopt.passes.pipeline import PIPELINE

add, mul, div, sub = relax.op.add, relax.op.multiply, relax.op.divide, relax.op.subtract
X = {"x": (2, 3, 8)}
PREPARE = CanonicalizeArithmetic()


def canonical(body, inputs=X):
    """The graph as the recovery passes see it: constants right, no division by them."""
    return PREPARE.run(make(inputs, body)).graph


def recovered(body, op, step, inputs=X):
    graph = fires(step, canonical(body, inputs))
    assert kinds(graph) == [op]
    return graph


HALF_ERF = sqrt(0.5)


def erf_gate(x):
    return add(relax.op.erf(div(x, const(sqrt(2)))), const(1.0))


GELUS = {
    "vit": lambda x: mul(x, mul(const(0.5), erf_gate(x))),
    "paddle": lambda x: mul(mul(x, erf_gate(x)), const(0.5)),
    "half first": lambda x: mul(mul(x, const(0.5)), erf_gate(x)),
    "divided by two": lambda x: div(mul(erf_gate(x), x), const(2.0)),
    "multiplied argument": lambda x: mul(
        mul(const(0.5), x), add(const(1.0), relax.op.erf(mul(x, const(HALF_ERF))))
    ),
    "distributed half": lambda x: mul(
        x, add(mul(relax.op.erf(mul(x, const(HALF_ERF))), const(0.5)), const(0.5))
    ),
}


@pytest.mark.parametrize("body", GELUS.values(), ids=GELUS)
def test_gelu(body):
    recovered(body, "nn.gelu", RecoverActivations())


@settings(max_examples=40, deadline=None)
@given(st.permutations(["x", "half", "gate"]), st.booleans(), st.booleans())
def test_gelu_in_any_association(order, left, flip):
    def body(x):
        parts = {"x": x, "half": const(0.5), "gate": erf_gate(x)}
        a, b, c = (parts[name] for name in order)
        if flip:
            return mul(c, mul(a, b)) if left else mul(mul(b, c), a)
        return mul(mul(a, b), c) if left else mul(a, mul(b, c))

    recovered(body, "nn.gelu", RecoverActivations())


def test_gelu_of_a_scaled_value():
    """The scale belongs to x, not to the pattern's coefficient."""

    def body(x):
        y = mul(x, const(3.0))
        return mul(mul(y, erf_gate(y)), const(0.5))

    graph = fires(RecoverActivations(), canonical(body))
    assert kinds(graph) == ["multiply", "nn.gelu"]


def cube(x):
    return mul(mul(x, x), x)


ROOT = sqrt(2 / pi)
TANHS = {
    "cube": lambda x: mul(const(ROOT), add(x, mul(cube(x), const(0.044715)))),
    "power": lambda x: mul(
        add(x, mul(const(0.044715), relax.op.power(x, const(3.0)))), const(ROOT)
    ),
    "factored": lambda x: mul(
        mul(x, const(ROOT)), add(mul(mul(x, x), const(0.044715)), const(1.0))
    ),
}


@pytest.mark.parametrize("body", TANHS.values(), ids=TANHS)
def test_gelu_tanh(body):
    def whole(x):
        return mul(mul(x, const(0.5)), add(relax.op.tanh(body(x)), const(1.0)))

    recovered(whole, "nn.gelu_tanh", RecoverActivations())


@pytest.mark.parametrize(
    "body",
    [
        lambda x: mul(x, add(relax.op.erf(mul(x, const(0.7))), const(1.0))),  # another slope
        lambda x: mul(x, mul(const(0.5), add(relax.op.erf(mul(x, const(HALF_ERF))), const(2.0)))),
        lambda x: mul(relax.op.exp(x), mul(const(0.5), erf_gate(x))),  # another factor
        lambda x: mul(mul(x, const(0.5)), add(relax.op.tanh(x), const(1.0))),
        lambda x: mul(x, relax.op.sigmoid(mul(x, const(1.702)))),  # another function
    ],
)
def test_no_gated_activation(body):
    refuses(RecoverActivations(), canonical(body))


def test_a_multiple_of_gelu_is_refused():
    refuses(RecoverActivations(), canonical(lambda x: mul(x, erf_gate(x))), "2 times gelu")


@pytest.mark.parametrize(
    "body",
    [
        lambda x: mul(x, relax.op.sigmoid(x)),
        lambda x: mul(relax.op.sigmoid(x), x),
        lambda x: div(x, add(relax.op.exp(relax.op.negative(x)), const(1.0))),
    ],
)
def test_silu(body):
    recovered(body, "nn.silu", RecoverActivations())


def test_sigmoid():
    def body(x):
        return div(const(1.0), add(const(1.0), relax.op.exp(relax.op.negative(x))))

    recovered(body, "sigmoid", RecoverActivations())


def bounded(x, low, high):
    return relax.op.minimum(relax.op.maximum(x, const(low)), const(high))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda x: bounded(x, -1.0, 6.0), (-1.0, 6.0)),
        (lambda x: relax.op.maximum(relax.op.minimum(x, const(6.0)), const(-1.0)), (-1.0, 6.0)),
        (lambda x: relax.op.minimum(relax.op.nn.relu(x), const(6.0)), (0.0, 6.0)),
        (lambda x: relax.op.clip(relax.op.clip(x, -1, 5), 0, 6), (0.0, 5.0)),
        (lambda x: relax.op.nn.relu(relax.op.clip(x, -1, 5)), (0.0, 5.0)),
    ],
)
def test_clip(body, expected):
    graph = recovered(body, "clip", RecoverActivations())
    call = graph.module["main"].body.blocks[0].bindings[0].value
    assert (float(call.args[1].value), float(call.args[2].value)) == expected


def test_relu():
    recovered(lambda x: relax.op.maximum(x, const(0.0)), "nn.relu", RecoverActivations())


@pytest.mark.parametrize(
    "body",
    [
        lambda x: bounded(x, 6.0, -1.0),  # empty: the outer bound wins
        lambda x: relax.op.maximum(x, const(1.0)),
        lambda x: relax.op.maximum(x, const(np.zeros(8))),  # not a scalar
        lambda x: relax.op.minimum(x, const(0.0)),
    ],
)
def test_no_clip(body):
    refuses(RecoverActivations(), canonical(body))


def relu6(x):
    return relax.op.clip(x, 0, 6)


@pytest.mark.parametrize(
    ("body", "op"),
    [
        (lambda x: relax.op.clip(add(mul(x, const(0.2)), const(0.5)), 0, 1), "hard_sigmoid"),
        (lambda x: div(relu6(add(x, const(3.0))), const(6.0)), "hard_sigmoid"),
        (lambda x: div(mul(x, relu6(add(x, const(3.0)))), const(6.0)), "hard_swish"),
        (lambda x: mul(x, div(relu6(add(x, const(3.0))), const(6.0))), "hard_swish"),
        (lambda x: mul(div(x, const(6.0)), bounded(add(x, const(3.0)), 0.0, 6.0)), "hard_swish"),
        (
            lambda x: mul(x, relax.op.clip(add(mul(x, const(1 / 6)), const(0.5)), 0, 1)),
            "hard_swish",
        ),
    ],
)
def test_hard_activations(body, op):
    recovered(body, f"graphopt.{op}", RecoverActivations())


def test_other_gates_stay_products():
    def body(x):
        return mul(x, relax.op.clip(add(mul(x, const(0.2)), const(0.5)), 0, 1))

    graph = fires(RecoverActivations(), canonical(body))
    assert kinds(graph) == ["graphopt.hard_sigmoid", "multiply"]


def mean(x, axes=(-1,)):
    return relax.op.mean(x, list(axes), keepdims=True)


def layer_norm(x, square, root, eps=1e-5, axes=(-1,)):
    d = sub(x, mean(x, axes))
    return root(d, add(mean(square(d), axes), const(eps)))


SQUARES = {
    "power": lambda d: relax.op.power(d, const(2.0)),
    "product": lambda d: mul(d, d),
    "square": relax.op.square,
}
ROOTS = {
    "divide": lambda d, v: div(d, relax.op.sqrt(v)),
    "rsqrt": lambda d, v: mul(relax.op.rsqrt(v), d),
    "reciprocal": lambda d, v: mul(d, div(const(1.0), relax.op.sqrt(v))),
    "half power": lambda d, v: mul(d, relax.op.power(v, const(-0.5))),
}
BOTH = list(itertools.product(SQUARES, ROOTS))


@pytest.mark.parametrize(("square", "root"), BOTH)
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(square, root, affine):
    gamma, beta = random(8), random(8, seed=1)

    def body(x):
        y = layer_norm(x, SQUARES[square], ROOTS[root])
        return add(mul(const(gamma), y), const(beta)) if affine else y

    graph = recovered(body, "nn.layer_norm", RecoverNormalizations())
    call = graph.module["main"].body.blocks[0].bindings[0].value
    if affine:
        np.testing.assert_array_equal(call.args[1].value.numpy(), gamma)
        np.testing.assert_array_equal(call.args[2].value.numpy(), beta)
    assert float(call.attrs.epsilon) == pytest.approx(1e-5)


def test_layer_norm_over_two_axes():
    def body(x):
        y = layer_norm(x, SQUARES["power"], ROOTS["divide"], axes=(1, 2))
        return mul(y, const(random(3, 1)))

    recovered(body, "nn.layer_norm", RecoverNormalizations())


def test_layer_norm_with_the_difference_written_twice():
    """PyTorch's older exports subtract the mean twice: the pipeline merges the two first."""

    def body(x):
        m = mean(x)
        v = mean(relax.op.power(sub(x, m), const(2.0)))
        return div(sub(x, m), relax.op.sqrt(add(v, const(1e-5))))

    graph, _ = run_pipeline(make(X, body), PIPELINE)
    assert kinds(graph) == ["nn.layer_norm"]


def test_rms_norm():
    def body(x):
        return mul(ROOTS["rsqrt"](x, add(mean(mul(x, x)), const(1e-6))), const(random(8)))

    recovered(body, "nn.rms_norm", RecoverNormalizations())


def test_norm_over_channels_is_refused():
    body = canonical(lambda x: layer_norm(x, SQUARES["power"], ROOTS["divide"], axes=(1,)))
    refuses(RecoverNormalizations(), body, "not the trailing ones")


@pytest.mark.parametrize(
    "body",
    [
        # the variance of something else
        lambda x: div(sub(x, mean(x)), relax.op.sqrt(add(mean(mul(x, x)), const(1e-5)))),
        # no epsilon where it belongs
        lambda x: div(x, add(relax.op.sqrt(mean(mul(x, x))), const(1e-5))),
    ],
)
def test_no_norm(body):
    refuses(RecoverNormalizations(), canonical(body))


def test_mean_over_other_axes_than_the_variance():
    def body(x):
        d = sub(x, mean(x, (1,)))
        return div(d, relax.op.sqrt(add(mean(mul(d, d)), const(1e-5))))

    refuses(RecoverNormalizations(), canonical(body))


def test_factor_over_other_axes_stays():
    def body(x):
        y = relax.op.nn.layer_norm(x, const(np.ones(8)), const(np.zeros(8)), [-1])
        return mul(y, const(random(3, 1)))

    refuses(RecoverNormalizations(), canonical(body), "other axes")


def test_factor_stays_if_the_norm_is_used_elsewhere():
    def body(x):
        y = relax.op.nn.layer_norm(x, const(np.ones(8)), const(np.zeros(8)), [-1])
        return [mul(y, const(random(8))), y]

    refuses(RecoverNormalizations(), canonical(body), "used elsewhere")


def softmax(x, shift):
    e = relax.op.exp(sub(x, relax.op.max(x, [1], keepdims=True)) if shift else x)
    return div(e, relax.op.sum(e, [1], keepdims=True))


@pytest.mark.parametrize("shift", [False, True])
def test_softmax(shift):
    recovered(lambda x: softmax(x, shift), "nn.softmax", RecoverNormalizations())


def test_softmax_over_two_axes_is_refused():
    def body(x):
        e = relax.op.exp(x)
        return div(e, relax.op.sum(e, [1, 2], keepdims=True))

    refuses(RecoverNormalizations(), canonical(body), "2 axes")
