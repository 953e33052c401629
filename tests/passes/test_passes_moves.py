"""Views and transposes: composed, cancelled, moved; and where they must stay."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes_graph import assert_same_function, const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.passes.base import run_pipeline
from graphopt.passes.pipeline import PIPELINE
from graphopt.passes.transposes import SimplifyTransposes
from graphopt.passes.views import CanonicalizeViews, HoistViews, SinkViews

op = relax.op
X = {"x": (2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (lambda x: op.squeeze(op.expand_dims(x, [0]), [0]), None),
        (lambda x: op.expand_dims(x, [1]), (2, 1, 3, 4, 5)),
        (lambda x: op.reshape(op.reshape(x, (6, 20)), (20, 6)), (20, 6)),
        (lambda x: op.reshape(op.reshape(x, (6, 20)), (2, 3, 4, 5)), None),
        (lambda x: op.permute_dims(op.reshape(x, (1, 120, 1)), [1, 2, 0]), (120, 1, 1)),
        (lambda x: op.flatten(x), (120,)),
    ],
)
def test_views(body, shape):
    def expected(x):
        return op.exp(x if shape is None else op.reshape(x, shape))

    fires(CanonicalizeViews(), make(X, lambda x: op.exp(body(x))), make(X, expected))


def test_a_permutation_that_moves_data_is_no_view():
    refuses(CanonicalizeViews(), make(X, lambda x: op.permute_dims(x, [1, 0, 2, 3])))


def test_transposes_compose():
    def body(x):
        return op.permute_dims(op.permute_dims(x, [1, 2, 3, 0]), [1, 0, 3, 2])

    def expected(x):
        return op.permute_dims(x, [2, 1, 0, 3])

    fires(SimplifyTransposes(), make(X, body), make(X, expected), rewrites=1)


def test_unit_axes_stay():
    def body(x):
        return op.permute_dims(x, [3, 1, 2, 0, 4])

    def expected(x):
        return op.reshape(op.permute_dims(x, [0, 2, 1, 3, 4]), (3, 5, 1, 1, 4))

    inputs = {"x": (1, 5, 1, 3, 4)}
    wanted = make(
        inputs, lambda x: op.permute_dims(op.reshape(x, (5, 3, 1, 1, 4)), [1, 0, 2, 3, 4])
    )
    del expected
    fires(SimplifyTransposes(), make(inputs, body), wanted)


def test_transposes_cancel_across_views():
    """(1,C,H,W) → (1,H,W,C) → squeezed → back to (C,H,W): nothing moves."""

    def body(x):
        y = op.reshape(op.permute_dims(x, [0, 2, 3, 1]), (4, 5, 3))
        return op.permute_dims(y, [2, 0, 1])

    before = make({"x": (1, 3, 4, 5)}, body)
    graph, _ = run_pipeline(before, PIPELINE)
    assert kinds(graph) == ["reshape"]
    assert_same_function(before, graph)


def test_a_view_that_merges_long_axes_stays_between():
    def body(x):
        y = op.reshape(op.permute_dims(x, [0, 2, 3, 1]), (2, 20, 3))
        return op.permute_dims(y, [0, 2, 1])

    refuses(SimplifyTransposes(), make(X, body))


NHWC, NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


def test_transposes_cancel_around_elementwise():
    """They meet behind several operators, constants and a residual sum."""
    scale = random(3)

    def body(x, y):
        a, b = op.permute_dims(x, NHWC), op.permute_dims(y, NHWC)
        return op.permute_dims(op.nn.relu(op.add(op.multiply(a, const(scale)), b)), NCHW)

    def expected(x, y):
        return op.nn.relu(op.add(op.multiply(x, const(scale.reshape(1, 3, 1, 1))), y))

    inputs = {"x": (2, 3, 4, 5), "y": (2, 3, 4, 5)}
    fires(SimplifyTransposes(), make(inputs, body), make(inputs, expected))


def test_channels_last_residual_network():
    """Convolutions between transposes, as TensorFlow models are exported: none is left."""

    def layer(x, seed):
        y = op.nn.conv2d(op.permute_dims(x, NCHW), const(random(3, 3, 3, 3, seed=seed)), padding=1)
        return op.add(op.permute_dims(y, NHWC), const(random(3, seed=seed)))

    def body(x):
        x = op.permute_dims(x, NHWC)
        for seed in range(2):
            x = op.nn.relu(op.add(layer(op.nn.relu(layer(x, seed)), seed + 5), x))
        return op.mean(x, [1, 2], keepdims=False)

    before = make({"x": (1, 3, 6, 6)}, body)
    graph, _ = run_pipeline(before, PIPELINE)
    assert_same_function(before, graph)
    assert "permute_dims" not in kinds(graph)


def test_reduction_of_a_transpose():
    def body(x):
        return op.max(op.permute_dims(x, NHWC), [1, 3], keepdims=True)

    def expected(x):
        return op.permute_dims(op.max(x, [1, 2], keepdims=True), NHWC)

    graph = SimplifyTransposes().run(make(X, body)).graph
    assert kinds(graph)[0] == "max"
    assert_same_function(make(X, expected), graph)


def test_constants_move_with_the_operator():
    bias = random(3)

    def body(x):
        return op.permute_dims(op.add(op.permute_dims(x, NHWC), const(bias)), NCHW)

    def expected(x):
        return op.add(x, const(bias.reshape(1, 3, 1, 1)))

    fires(SimplifyTransposes(), make(X, body), make(X, expected))


def test_one_transpose_less_is_worth_it():
    """Two transposes around a sum become one in front of the other summand."""

    def body(x, y):
        return op.permute_dims(op.add(op.permute_dims(x, NHWC), y), NCHW)

    graph = fires(SimplifyTransposes(), make({"x": (2, 3, 4, 5), "y": (2, 4, 5, 3)}, body))
    assert kinds(graph).count("permute_dims") == 1


def test_no_gain_no_move():
    def body(x, y):
        return op.permute_dims(op.add(x, y), NCHW)

    inputs = {"x": (2, 4, 5, 3), "y": (2, 4, 5, 3)}
    refuses(SimplifyTransposes(), make(inputs, body), "no transpose would be saved")


def test_an_operator_used_twice_is_not_passed():
    def body(x):
        y = op.nn.relu(op.permute_dims(x, NHWC))
        return [op.permute_dims(y, NCHW), y]

    graph = fires(SimplifyTransposes(), make(X, body))
    assert kinds(graph) == ["nn.relu", "permute_dims"]


def test_a_sum_used_twice_is_not_passed():
    def body(x, z):
        y = op.add(op.permute_dims(x, NHWC), z)
        return [op.permute_dims(y, NCHW), y]

    inputs = {"x": (2, 3, 4, 5), "z": (2, 4, 5, 3)}
    refuses(SimplifyTransposes(), make(inputs, body), "used as it is")


def test_a_transpose_used_twice_stays():
    def body(x):
        y = op.permute_dims(x, NHWC)
        return [op.exp(y), y]

    refuses(SimplifyTransposes(), make(X, body), "used elsewhere")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_chain_of_moves(data):
    """Random chains of permutations and views keep every element where it belongs."""
    dims = data.draw(st.permutations([1, 1, 2, 3, 4]))

    def body(x):
        shape = list(dims)
        for _ in range(data.draw(st.integers(1, 5))):
            kind = data.draw(st.sampled_from(["permute", "view", "relu"]))
            if kind == "permute":
                axes = data.draw(st.permutations(range(len(shape))))
                x, shape = op.permute_dims(x, list(axes)), [shape[a] for a in axes]
            elif kind == "view":
                kept = [d for d in shape if d != 1]
                merge = data.draw(st.booleans())
                shape = [kept[0] * kept[1], *kept[2:]] if merge and len(kept) > 1 else kept
                for _ in range(data.draw(st.integers(0, 2))):
                    shape.insert(data.draw(st.integers(0, len(shape))), 1)
                x = op.reshape(x, tuple(shape))
            else:
                x = op.nn.relu(x)
        return op.exp(x)

    before = make({"x": tuple(dims)}, body)
    graph, _ = run_pipeline(before, PIPELINE)
    assert_same_function(before, graph)
    assert kinds(graph).count("permute_dims") <= kinds(before).count("permute_dims")


def test_view_after_projection():
    """The residual sum then follows the bias directly."""
    weight, bias = random(6, 8), random(8)

    def body(x, r):
        y = op.add(op.matmul(x, const(weight)), const(bias))
        return op.add(op.reshape(y, (1, 5, 8)), r)

    def expected(x, r):
        y = op.add(op.matmul(op.reshape(x, (1, 5, 6)), const(weight)), const(bias))
        return op.add(y, r)

    inputs = {"x": (1, 5, 6), "r": (1, 5, 8)}
    fires(
        HoistViews(), make({**inputs, "x": (5, 6)}, body), make({**inputs, "x": (5, 6)}, expected)
    )


def test_rows_become_a_matrix():
    def body(x):
        return op.reshape(op.matmul(x, const(random(6, 8))), (5, 2, 4))

    def expected(x):
        y = op.matmul(op.reshape(x, (1, 5, 6)), const(random(6, 8)))
        return op.reshape(y, (5, 2, 4))

    inputs = {"x": (5, 1, 6)}
    fires(HoistViews(), make(inputs, body), make(inputs, expected), rewrites=1)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda x: op.reshape(op.matmul(x, const(random(6, 8))), (5, 2, 4)), "last axis"),
        (
            lambda x: op.reshape(
                op.add(op.matmul(x, const(random(6, 8))), const(random(5, 8))), (1, 5, 8)
            ),
            "other axes than the last",
        ),
        (lambda x: op.reshape(op.matmul(x, const(random(6, 8))), (5, 1, 8)), "single rows"),
    ],
)
def test_views_after_projections_that_stay(body, reason):
    refuses(HoistViews(), make({"x": (5, 6)}, body), reason)


def test_product_used_in_both_shapes():
    def body(x):
        y = op.matmul(x, const(random(6, 8)))
        return [op.reshape(y, (1, 5, 8)), y]

    refuses(HoistViews(), make({"x": (5, 6)}, body), "in its old shape")


def test_views_sink_below_elementwise():
    """A one-dimensional convolution's bias and activation follow it."""
    weight, bias = random(3, 4, 1, 3), random(3, 1)

    def body(x):
        y = op.reshape(op.nn.conv2d(x, const(weight)), (2, 3, 6))
        return op.nn.relu(op.add(y, const(bias)))

    def expected(x):
        y = op.add(op.nn.conv2d(x, const(weight)), const(bias.reshape(1, 3, 1, 1)))
        return op.reshape(op.nn.relu(y), (2, 3, 6))

    inputs = {"x": (2, 4, 1, 8)}
    fires(SinkViews(), make(inputs, body), make(inputs, expected), rewrites=2)


def test_views_sink_below_squares():
    """x · x reads the view twice, and is its only user."""

    def body(x):
        y = op.reshape(x, (2, 3, 6))
        return op.multiply(y, y)

    def expected(x):
        return op.reshape(op.multiply(x, x), (2, 3, 6))

    inputs = {"x": (2, 3, 1, 6)}
    fires(SinkViews(), make(inputs, body), make(inputs, expected), rewrites=1)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: op.nn.relu(op.reshape(x, (6, 20))),  # merges long axes
        lambda x: op.add(op.reshape(x, (1, 2, 3, 4, 5)), const(random(7, 1, 1, 1, 1))),  # grows
    ],
)
def test_views_that_do_not_sink(body):
    refuses(SinkViews(), make({"x": (2, 3, 4, 5)}, body))


def test_every_permutation_of_four_axes_with_its_inverse():
    step = SimplifyTransposes()
    for axes in itertools.permutations(range(4)):
        if axes == (0, 1, 2, 3):
            continue

        def body(x, axes=axes):
            return op.exp(
                op.permute_dims(op.permute_dims(x, list(axes)), np.argsort(axes).tolist())
            )

        graph = step.run(make(X, body)).graph
        assert_same_function(make(X, op.exp), graph)
