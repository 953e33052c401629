"""Canonical forms: arithmetic with constants, identities, reductions, constants, duplicates."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from passes_graph import const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.ir import Graph
from graphopt.passes.arithmetic import CanonicalizeArithmetic, MergeConstantChains
from graphopt.passes.base import bindings_of
from graphopt.passes.cleanup import FoldConstants, MergeCommonSubexpressions, RemoveDeadCode
from graphopt.passes.identities import RemoveIdentities
from graphopt.passes.reductions import CanonicalizeReductions

X = {"x": (2, 3, 4, 4)}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda x: relax.op.subtract(x, const(2.0)), lambda x: relax.op.add(x, const(-2.0))),
        (lambda x: relax.op.divide(x, const(4.0)), lambda x: relax.op.multiply(x, const(0.25))),
        (lambda x: relax.op.add(const(2.0), x), lambda x: relax.op.add(x, const(2.0))),
        (lambda x: relax.op.maximum(const(2.0), x), lambda x: relax.op.maximum(x, const(2.0))),
        (lambda x: relax.op.negative(x), lambda x: relax.op.multiply(x, const(-1.0))),
        (lambda x: relax.op.power(x, const(2.0)), lambda x: relax.op.multiply(x, x)),
        (lambda x: relax.op.square(x), lambda x: relax.op.multiply(x, x)),
    ],
)
def test_arithmetic(body, expected):
    fires(CanonicalizeArithmetic(), make(X, body), make(X, expected), rewrites=1)


def test_one_over_sqrt():
    def body(x):
        return relax.op.divide(const(1.0), relax.op.sqrt(relax.op.exp(x)))

    graph = fires(CanonicalizeArithmetic(), make(X, body))
    assert kinds(graph) == ["exp", "rsqrt"]


@pytest.mark.parametrize("divisor", [0.0, 1e-45, np.inf, np.nan])
def test_no_reciprocal_of_extremes(divisor):
    graph = make(X, lambda x: relax.op.divide(x, const(divisor)))
    refuses(CanonicalizeArithmetic(), graph, "reciprocal")


def test_a_single_division_stays_unless_its_reciprocal_is_exact():
    scalar = {"x": (1, 1)}
    third = make(scalar, lambda x: relax.op.divide(x, const(255.0)))
    refuses(CanonicalizeArithmetic(), third, "rounded reciprocal")
    fires(CanonicalizeArithmetic(), make(scalar, lambda x: relax.op.divide(x, const(8.0))))


def test_integers_are_divided():
    inputs = {"x": ((2, 3), "int64")}
    refuses(CanonicalizeArithmetic(), make(inputs, lambda x: relax.op.divide(x, const(3, "int64"))))


def test_other_powers_stay():
    graph = make(X, lambda x: relax.op.power(x, const(2.5)))
    refuses(CanonicalizeArithmetic(), graph, "exponent 2.5")


def test_chains_merge():
    def body(x):
        return relax.op.add(relax.op.add(x, const(1.0)), const(2.0))

    fires(
        MergeConstantChains(),
        make(X, body),
        make(X, lambda x: relax.op.add(x, const(3.0))),
        rewrites=1,
    )


def test_chains_do_not_merge_into_larger_constants():
    def body(x):
        row, column = const(np.ones((1, 1, 1, 4))), const(np.ones((1, 1, 4, 1)))
        return relax.op.multiply(relax.op.multiply(x, row), column)

    refuses(MergeConstantChains(), make(X, body), "larger than both")


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_chains_do_not_merge_out_of_range(factor):
    def body(x):
        return relax.op.multiply(relax.op.multiply(x, const(factor)), const(factor))

    refuses(MergeConstantChains(), make(X, body), "out of range")


def test_chains_with_another_user_stay():
    def body(x):
        inner = relax.op.add(x, const(1.0))
        return [relax.op.add(inner, const(2.0)), inner]

    refuses(MergeConstantChains(), make(X, body), "used elsewhere")


@pytest.mark.parametrize(
    "body",
    [
        lambda x: relax.op.add(x, const(np.zeros((3, 1, 1)))),
        lambda x: relax.op.multiply(x, const(1.0)),
        lambda x: relax.op.maximum(x, const(-np.inf)),
        lambda x: relax.op.astype(x, "float32"),
        lambda x: relax.op.reshape(x, (2, 3, 4, 4)),
        lambda x: relax.op.permute_dims(x, [0, 1, 2, 3]),
        lambda x: relax.op.strided_slice(x, [1], [0], [3], [1]),
        lambda x: relax.op.concat([x], axis=1),
        lambda x: relax.TupleGetItem(relax.op.nn.dropout(x, 0.5), 0),
        lambda x: relax.op.broadcast_to(x, (2, 3, 4, 4)),
    ],
)
def test_identities(body):
    before = make(X, lambda x: relax.op.exp(relax.op.nn.relu(x)))
    graph = make(X, lambda x: relax.op.exp(body(relax.op.nn.relu(x))))
    outcome = RemoveIdentities().run(graph)
    assert kinds(outcome.graph) == kinds(before)
    ids = {i for s in graph.sites.values() for i in s}
    assert ids == {i for s in outcome.graph.sites.values() for i in s}


@pytest.mark.parametrize(
    "body",
    [
        lambda x: relax.op.add(x, const([[[[0.0]]], [[[1.0]]]])),
        lambda x: relax.op.add(x, const(np.zeros((5, 2, 3, 4, 4)))),  # broadcasts x
        lambda x: relax.op.astype(x, "float64"),
        lambda x: relax.op.permute_dims(x, [0, 1, 3, 2]),
        lambda x: relax.op.strided_slice(x, [1], [0], [2], [1]),
    ],
)
def test_not_identities(body):
    refuses(RemoveIdentities(), make(X, body))


@pytest.mark.parametrize(
    "body",
    [
        lambda x: relax.op.nn.avg_pool2d(x, (4, 4)),
        lambda x: relax.op.nn.adaptive_avg_pool2d(x, (1, 1)),
        lambda x: relax.op.multiply(relax.op.sum(x, [2, 3], keepdims=True), const(1 / 16)),
        lambda x: relax.op.mean(relax.op.mean(x, [2], keepdims=True), [3], keepdims=True),
    ],
)
def test_means(body):
    wanted = make(X, lambda x: relax.op.mean(x, [2, 3], keepdims=True))
    fires(CanonicalizeReductions(), make(X, body), wanted)


def test_reductions_keep_their_axes():
    graph = make(X, lambda x: relax.op.max(x, [1, -1], keepdims=False))
    wanted = make(X, lambda x: relax.op.reshape(relax.op.max(x, [1, 3], keepdims=True), (2, 4)))
    fires(CanonicalizeReductions(), graph, wanted, rewrites=1)


def test_sums_with_other_factors_are_no_means():
    def body(x):
        return relax.op.multiply(relax.op.sum(x, [2, 3], keepdims=True), const(0.5))

    refuses(CanonicalizeReductions(), make(X, body))


def test_part_of_the_map_is_no_mean():
    refuses(CanonicalizeReductions(), make(X, lambda x: relax.op.nn.avg_pool2d(x, (2, 2))))


def test_fold_constants_through_a_chain():
    weight = random(4, 3)

    def body(x):
        w = relax.op.permute_dims(const(weight), [1, 0])
        w = relax.op.multiply(relax.op.reshape(w, (1, 3, 4)), const(2.0))
        return relax.op.matmul(x, relax.op.concat([w, w], axis=2))

    def expected(x):
        w = (weight.T * np.float32(2)).reshape(1, 3, 4)
        return relax.op.matmul(x, const(np.concatenate([w, w], axis=2)))

    inputs = {"x": (1, 5, 3)}
    graph = fires(FoldConstants(), make(inputs, body), make(inputs, expected))
    [(_, ids)] = graph.sites.items()
    assert set(ids) == {
        "n:matmul#1", "n:concat#1", "n:multiply#1", "n:reshape#1", "n:permute_dims#1"
    }  # fmt: skip


def test_fold_constants_has_a_limit():
    def body(x):
        large = relax.op.add(const(np.ones((64, 1))), const(np.ones((1, 64))))
        return relax.op.add(x, large)

    graph = make({"x": (64, 64)}, body)
    refuses(FoldConstants(limit=1024), graph, "16384 bytes")
    fires(FoldConstants(), graph)


def test_broadcasts_are_not_folded():
    def body(x):
        return relax.op.add(x, relax.op.broadcast_to(const(1.0), (64, 64)))

    refuses(FoldConstants(), make({"x": (64, 64)}, body), "broadcast")


def test_integer_constants_keep_their_dtype():
    def body(x):
        return relax.op.add(x, relax.op.multiply(const([3, 4], "int64"), const(2, "int64")))

    graph = fires(FoldConstants(), make({"x": ((2,), "int64")}, body))
    [binding] = bindings_of(graph)[:-1]
    assert str(binding.value.args[1].ty.dtype) == "int64"


def test_common_subexpressions():
    def body(x):
        a = relax.op.add(x, const([1.0, 2.0, 3.0, 4.0]))
        b = relax.op.add(x, const([1.0, 2.0, 3.0, 4.0]))  # another constant, equal in value
        return relax.op.multiply(relax.op.exp(a), relax.op.exp(b))

    graph = fires(MergeCommonSubexpressions(), make(X, body), rewrites=2)
    assert kinds(graph) == ["add", "exp", "multiply"]
    assert ("n:add#1", "n:add#2") in graph.sites.values()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (lambda x: relax.op.add(x, const(1.0)), lambda x: relax.op.add(x, const(2.0))),
        (lambda x: relax.op.sum(x, [1]), lambda x: relax.op.sum(x, [2])),
        (lambda x: relax.op.clip(x, 0, 1), lambda x: relax.op.clip(x, 0, 2)),
        (lambda x: relax.op.add(x, const([[1.0]])), lambda x: relax.op.add(x, const([1.0]))),
        (
            lambda x: relax.op.strided_slice(x, [1], [0], [1], [1]),
            lambda x: relax.op.strided_slice(x, [1], [1], [2], [1]),
        ),
        (
            lambda x: relax.TupleGetItem(relax.op.split(x, 3, 1), 0),
            lambda x: relax.TupleGetItem(relax.op.split(x, 3, 1), 1),
        ),
    ],
)
def test_different_values_stay_apart(left, right):
    before = make(X, lambda x: [left(x), right(x)])
    outcome = MergeCommonSubexpressions().run(before)
    merged = len(kinds(before)) - len(kinds(outcome.graph))
    assert merged == outcome.rewrites == (1 if "split" in kinds(before) else 0)


def test_dead_code():
    """What led to a second output that has gone is removed."""
    full = make(X, lambda x: [relax.op.nn.relu(x), relax.op.exp(relax.op.sqrt(x))])
    main = full.module["main"]
    *inner, last = main.body.blocks[0].bindings
    value = relax.Tuple([last.value.fields[0]])
    var = relax.Var("result", value.ty)
    block = relax.DataflowBlock([*inner, relax.VarBinding(var, value)])
    body = relax.BlockBuilder().normalize(relax.SeqExpr([block], var))
    module = tvm.IRModule({"main": relax.Function(list(main.params), body, value.ty)})
    outcome = RemoveDeadCode().run(Graph(module, full.sites, ("out0",)))
    assert outcome.rewrites == 2
    assert kinds(outcome.graph) == ["nn.relu"]
    refuses(RemoveDeadCode(), outcome.graph)
