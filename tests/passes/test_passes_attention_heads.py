"""Transposes of heads absorbed by attention: which, which not, and the nodes they leave behind."""

from __future__ import annotations

import itertools

import pytest
from passes_graph import assert_same_function, fires, kinds, make, refuses
from tvm import relax

from graphopt.ops import base, fused
from graphopt.passes.attention_heads import AbsorbHeadTransposes
from graphopt.passes.base import bindings_of, run_pipeline
from graphopt.passes.pipeline import PIPELINE
from graphopt.passes.values import op_name

B, H, S, T, D, E = 2, 3, 4, 5, 8, 6
INSIDE = {"q": (B, S, H, D), "k": (B, T, H, D), "v": (B, T, H, E)}
OUTSIDE = {"q": (B, H, S, D), "k": (B, H, T, D), "v": (B, H, T, E)}


def heads(x):
    return relax.op.permute_dims(x, [0, 2, 1, 3])


def attention(q, k, v, mask=None):
    return fused.attention(q, k, v, mask, scale=0.5)


def inside_of(graph):
    """heads_inside of each attention of the graph."""
    calls = [b.value for b in bindings_of(graph) if op_name(b.value) == "graphopt.attention"]
    return [base.attributes(call)["heads_inside"] for call in calls]


@pytest.mark.parametrize("inside", list(itertools.product((False, True), repeat=4))[1:], ids=str)
def test_each_operand_and_the_result(inside):
    shapes = {
        name: (INSIDE if flag else OUTSIDE)[name]
        for name, flag in zip("qkv", inside[:3], strict=True)
    }

    def body(*qkv):
        moved = [heads(x) if flag else x for x, flag in zip(qkv, inside[:3], strict=True)]
        result = attention(*moved)
        return heads(result) if inside[3] else result

    before = make(shapes, body)
    graph = fires(AbsorbHeadTransposes(), before)
    assert kinds(graph) == ["graphopt.attention"]
    assert inside_of(graph) == [inside]
    # The transposes' nodes have joined attention's.
    name = bindings_of(graph)[0].var.name
    assert len(graph.sites[name]) == 1 + sum(inside)


def test_a_mask_keeps_its_order():
    def body(q, k, v, mask):
        return heads(attention(heads(q), heads(k), heads(v), mask))

    graph = fires(AbsorbHeadTransposes(), make({**INSIDE, "mask": (B, H, S, T)}, body))
    assert kinds(graph) == ["graphopt.attention"]


def test_keys_read_twice_by_attention_only():
    """Self-attention without projections, and two attentions on one transposed key."""

    def body(x, k):
        y, k = heads(x), heads(k)
        return [attention(y, y, y), attention(y, k, k)]

    shape = (1, S, H, D)
    graph = fires(AbsorbHeadTransposes(), make({"x": shape, "k": shape}, body))
    assert kinds(graph) == ["graphopt.attention"] * 2
    assert inside_of(graph) == [(True, True, True, False)] * 2


def test_twice_transposed():
    def body(q, k, v):
        return heads(heads(attention(heads(heads(q)), k, v)))

    fires(AbsorbHeadTransposes(), make(OUTSIDE, body))


def test_queries_used_elsewhere():
    def body(q, k, v):
        q = heads(q)
        return [attention(q, k, v), relax.op.nn.relu(q)]

    refuses(AbsorbHeadTransposes(), make({**OUTSIDE, "q": INSIDE["q"]}, body))


def test_queries_that_are_an_output():
    def body(q, k, v):
        q = heads(q)
        return [attention(q, k, v), q]

    refuses(AbsorbHeadTransposes(), make({**OUTSIDE, "q": INSIDE["q"]}, body))


def test_result_used_as_it_is():
    def body(q, k, v):
        y = attention(q, k, v)
        return [heads(y), relax.op.nn.relu(y)]

    refuses(AbsorbHeadTransposes(), make(OUTSIDE, body), "also used as it is")


@pytest.mark.parametrize("axes", [[0, 1, 3, 2], [1, 0, 2, 3], [0, 3, 2, 1]])
def test_other_permutations(axes):
    def body(q, k, v):
        return attention(relax.op.permute_dims(q, axes), k, v)

    source = tuple(OUTSIDE["q"][axes.index(axis)] for axis in range(4))
    refuses(AbsorbHeadTransposes(), make({**OUTSIDE, "q": source}, body))


def test_a_permuted_result_of_other_axes():
    def body(q, k, v):
        return relax.op.permute_dims(attention(q, k, v), [2, 0, 1, 3])

    refuses(AbsorbHeadTransposes(), make(OUTSIDE, body))


def test_whole_pipeline():
    """Nothing is moved between the projections and attention."""

    def body(q, k, v):
        split = [
            heads(relax.op.reshape(x, (1, S, H, D)))
            for x in (relax.op.nn.relu(y) for y in (q, k, v))
        ]
        y = heads(attention(*split))
        return relax.op.reshape(y, (1, S, H * D))

    shape = (1, S, H * D)
    before = make({"q": shape, "k": shape, "v": shape}, body)
    graph, _ = run_pipeline(before, PIPELINE)
    assert_same_function(before, graph)
    assert "permute_dims" not in kinds(graph)
    assert inside_of(graph) == [(True,) * 4]


def test_shapes_that_do_not_fit_are_refused():
    q, k, v = (relax.Var(n, relax.TensorType(s, "float32")) for n, s in INSIDE.items())
    call = fused.attention(q, k, v, scale=1.0, heads_inside=(True, True, False, True))
    with pytest.raises(Exception, match="do not fit together"):
        relax.BlockBuilder().normalize(call)
