"""Slices: split and take in one form, moved and merged; products split by columns."""

from __future__ import annotations

import numpy as np
import pytest
from passes_graph import assert_same_function, const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.passes.base import bindings_of
from graphopt.passes.slices import SimplifySlices, SplitProjections
from graphopt.passes.values import op_name

op = relax.op
X = {"x": (2, 3, 4, 5)}


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


def test_nested_slices_of_two_axes_and_strides():
    def body(x):
        y = op.strided_slice(x, [3, 2], [1, 0], [5, 4], [2, 1])  # (2,3,4,2)
        return op.strided_slice(y, [1, 3, 2], [1, 1, 1], [3, 2, 4], [1, 1, 2])

    def expected(x):
        return op.strided_slice(x, [1, 2, 3], [1, 1, 3], [3, 4, 4], [1, 2, 2])

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

    refuses(SplitProjections(), make({"x": (5, 6)}, body), "without what follows it")


def test_summand_per_row():
    def body(x):
        y = op.add(op.matmul(x, const(random(6, 12))), const(random(5, 1)))
        return [cut(y, 0, 6), cut(y, 6, 12)]

    refuses(SplitProjections(), make({"x": (5, 6)}, body), "varies along other axes")
