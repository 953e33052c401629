"""Views, transposes and slices: composed, cancelled, moved; and where they must stay."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes_graph import assert_same_function, const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.passes.base import bindings_of, run_pipeline
from graphopt.passes.pipeline import PIPELINE
from graphopt.passes.slices import SimplifySlices, SplitProjections
from graphopt.passes.transposes import SimplifyTransposes
from graphopt.passes.values import op_name
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
    def body(x, y):
        a, b = op.permute_dims(x, NHWC), op.permute_dims(y, NHWC)
        return op.permute_dims(op.nn.relu(op.add(op.multiply(a, const(random(3))), b)), NCHW)

    inputs = {"x": (2, 3, 4, 5), "y": (2, 3, 4, 5)}
    before = make(inputs, body)
    graph, _ = run_pipeline(before, PIPELINE)
    assert_same_function(before, graph)
    # The transposes stand several operators apart: each is moved while that saves one.
    step = SimplifyTransposes()
    near = make(
        inputs,
        lambda x, y: op.permute_dims(
            op.add(op.permute_dims(x, NHWC), op.permute_dims(y, NHWC)), NCHW
        ),
    )
    fires(step, near, make(inputs, op.add))


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

    refuses(SimplifyTransposes(), make(X, body), "used as it is")


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


@pytest.mark.parametrize(
    "body",
    [
        lambda x: op.nn.relu(op.reshape(x, (6, 20))),  # merges long axes
        lambda x: op.add(op.reshape(x, (1, 2, 3, 4, 5)), const(random(7, 1, 1, 1, 1))),  # grows
    ],
)
def test_views_that_do_not_sink(body):
    refuses(SinkViews(), make({"x": (2, 3, 4, 5)}, body))


def test_split_becomes_slices_and_rejoins():
    def body(x):
        parts = op.split(x, 3, axis=1)
        return op.exp(op.concat([relax.TupleGetItem(parts, i) for i in range(3)], axis=1))

    fires(SimplifySlices(), make(X, body), make(X, op.exp))


def test_shuffled_pieces_do_not_rejoin():
    def body(x):
        parts = op.split(x, [1], axis=1)
        return op.concat([relax.TupleGetItem(parts, i) for i in (1, 0)], axis=1)

    graph = fires(SimplifySlices(), make(X, body))
    assert kinds(graph) == ["strided_slice", "strided_slice", "concat"]


def test_slice_of_concat():
    def body(x, y):
        return op.exp(op.strided_slice(op.concat([x, y], axis=1), [1], [3], [5], [1]))

    inputs = {"x": (2, 3), "y": (2, 2)}
    fires(SimplifySlices(), make(inputs, body), make(inputs, lambda x, y: op.exp(y)))


def test_slice_across_parts_of_a_concat():
    def body(x, y):
        return op.strided_slice(op.concat([x, y], axis=1), [1], [2], [5], [1])

    refuses(SimplifySlices(), make({"x": (2, 3), "y": (2, 2)}, body))


def test_nested_slices():
    def body(x):
        return op.strided_slice(op.strided_slice(x, [3], [1], [5], [1]), [3], [1], [3], [1])

    def expected(x):
        return op.strided_slice(x, [3], [2], [4], [1])

    fires(SimplifySlices(), make(X, body), make(X, expected), rewrites=1)


@pytest.mark.parametrize("index", [0, -1, [1, 2], [[1]]])
def test_take_becomes_slice(index):
    def body(x):
        return op.take(x, const(index, "int64"), axis=1)

    before = make(X, body)
    outcome = SimplifySlices().run(before)
    assert kinds(outcome.graph)[0] == "strided_slice"
    if np.all(np.asarray(index) >= 0):
        assert_same_function(before, outcome.graph)


@pytest.mark.parametrize("indices", [[1, 0], [0, 2], [0, 0], [5]])
def test_other_takes_stay(indices):
    graph = make({"x": (2, 6)}, lambda x: op.take(x, const(indices, "int64"), axis=0))
    if max(indices) < 2:
        refuses(SimplifySlices(), graph)
    assert SimplifySlices().run(graph).rewrites == 0


def test_slice_before_permutation_and_view():
    def body(x):
        y = op.permute_dims(op.reshape(x, (2, 3, 2, 2, 5)), [2, 0, 1, 3, 4])
        return [op.strided_slice(y, [0], [i], [i + 1], [1]) for i in range(2)]

    graph = fires(SimplifySlices(), make(X, body))
    first = next(b.value for b in bindings_of(graph))
    assert op_name(first) == "strided_slice"
    assert kinds(graph).count("strided_slice") == 2


def test_a_permutation_used_as_a_whole_stays_in_front():
    def body(x):
        y = op.permute_dims(x, [1, 0, 2, 3])
        return [op.strided_slice(y, [0], [0], [1], [1]), op.exp(y)]

    refuses(SimplifySlices(), make(X, body))


def project(x, columns=12):
    y = op.matmul(x, const(random(6, columns)))
    return op.add(y, const(random(columns)))


def cut(y, begin, end):
    return op.strided_slice(y, [1], [begin], [end], [1])


def test_projections_split():
    weight, bias = random(6, 12), random(12)

    def body(x):
        y = project(x)
        return [cut(y, 0, 4), cut(y, 4, 8), cut(y, 8, 12)]

    def expected(x):
        parts = [slice(0, 4), slice(4, 8), slice(8, 12)]
        return [op.add(op.matmul(x, const(weight[:, p])), const(bias[p])) for p in parts]

    inputs = {"x": (5, 6)}
    fires(SplitProjections(), make(inputs, body), make(inputs, expected))


@pytest.mark.parametrize(
    ("uses", "reason"),
    [
        (lambda y: [cut(y, 0, 8), cut(y, 4, 12)], "overlap"),
        (lambda y: [cut(y, 0, 6), y], "as a whole"),
        (lambda y: [cut(y, 0, 6), op.exp(y)], "as a whole"),
    ],
)
def test_projections_that_stay(uses, reason):
    refuses(SplitProjections(), make({"x": (5, 6)}, lambda x: uses(project(x))), reason)


def test_projection_used_without_bias():
    def body(x):
        product = op.matmul(x, const(random(6, 12)))
        y = op.add(product, const(random(12)))
        return [cut(y, 0, 6), cut(y, 6, 12), product]

    refuses(SplitProjections(), make({"x": (5, 6)}, body), "without its bias")


def test_summand_per_row():
    def body(x):
        y = op.add(op.matmul(x, const(random(6, 12))), const(random(5, 1)))
        return [cut(y, 0, 6), cut(y, 6, 12)]

    refuses(SplitProjections(), make({"x": (5, 6)}, body), "not a bias")


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
