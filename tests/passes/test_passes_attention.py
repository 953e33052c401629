"""Recovered attention: the exports of ViT, BERT and PP-OCR, masks, scales, and look-alikes."""

from __future__ import annotations

import pytest
from passes_graph import assert_same_function, const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.ops import base
from graphopt.passes.arithmetic import CanonicalizeArithmetic
from graphopt.passes.attention import RecoverAttention
from graphopt.passes.base import bindings_of, run_pipeline
from graphopt.passes.pipeline import PIPELINE
from graphopt.passes.values import op_name

B, H, S, T, D, E = 2, 3, 4, 5, 8, 6
QKV = {"q": (B, H, S, D), "k": (B, H, T, D), "v": (B, H, T, E)}
mul, add, div, matmul = relax.op.multiply, relax.op.add, relax.op.divide, relax.op.matmul


def transposed(k):
    rank = len(k.ty.shape)
    return relax.op.permute_dims(k, [*range(rank - 2), rank - 1, rank - 2])


def weights(scores):
    return relax.op.nn.softmax(scores, -1)


def scale_of(graph):
    [call] = [b.value for b in bindings_of(graph) if op_name(b.value) == "graphopt.attention"]
    return base.attributes(call)["scale"]


SCALED = {
    "plain": (lambda q, k, v: matmul(weights(matmul(q, transposed(k))), v), 1.0),
    "scores": (lambda q, k, v: matmul(weights(mul(matmul(q, transposed(k)), const(0.5))), v), 0.5),
    "divided": (
        lambda q, k, v: matmul(weights(div(matmul(q, transposed(k)), const(4.0))), v),
        0.25,
    ),
    "query": (lambda q, k, v: matmul(weights(matmul(mul(q, const([0.5])), transposed(k))), v), 0.5),
    "both": (
        lambda q, k, v: matmul(
            weights(matmul(mul(q, const(0.5)), mul(transposed(k), const(0.5)))), v
        ),
        0.25,
    ),
}


@pytest.mark.parametrize(("body", "scale"), SCALED.values(), ids=SCALED)
def test_scales(body, scale):
    before = CanonicalizeArithmetic().run(make(QKV, body)).graph
    graph = fires(RecoverAttention(), before)
    assert kinds(graph)[-1] == "graphopt.attention"
    assert scale_of(graph) == pytest.approx(scale)


def test_key_transposes_cancel():
    graph, _ = run_pipeline(make(QKV, SCALED["plain"][0]), PIPELINE)
    assert kinds(graph) == ["graphopt.attention"]


@pytest.mark.parametrize("mask", [(B, 1, 1, T), (B, H, S, T), (S, T), (1, 1, S, T), (T,)])
@pytest.mark.parametrize("first", [False, True])
def test_masks(mask, first):
    def body(q, k, v, m):
        scores = mul(matmul(q, transposed(k)), const(0.25))
        return matmul(weights(add(m, scores) if first else add(scores, m)), v)

    graph = fires(RecoverAttention(), make({**QKV, "m": mask}, body))
    assert kinds(graph)[-1] == "graphopt.attention"


def test_rank_three():
    shapes = {"q": (H, S, D), "k": (H, T, D), "v": (H, T, E)}
    graph = fires(RecoverAttention(), make(shapes, SCALED["query"][0]))
    assert kinds(graph)[-2:] == ["graphopt.attention", "reshape"]


def rank_three_with_mask(q, k, v, m):
    return matmul(weights(add(matmul(q, transposed(k)), m)), v)


def test_rank_three_mask():
    shapes = {"q": (H, S, D), "k": (H, T, D), "v": (H, T, E), "m": (H, 1, T)}
    fires(RecoverAttention(), make(shapes, rank_three_with_mask))


def test_nodes_of_attention():
    graph = fires(RecoverAttention(), make(QKV, SCALED["scores"][0]))
    last = bindings_of(graph)[-2]
    assert set(graph.sites[last.var.name]) == {
        "n:matmul#1", "n:matmul#2", "n:multiply#1", "n:nn.softmax#1"
    }  # fmt: skip


def test_wrong_axis():
    def body(q, k, v):
        return matmul(relax.op.nn.softmax(matmul(q, transposed(k)), 2), v)

    refuses(RecoverAttention(), make(QKV, body), "does not run over the keys")


def test_weights_used_elsewhere():
    def body(q, k, v):
        p = weights(matmul(q, transposed(k)))
        return [matmul(p, v), p]

    refuses(RecoverAttention(), make(QKV, body), "weights are used elsewhere")


def test_scores_used_elsewhere():
    def body(q, k, v):
        scores = matmul(q, transposed(k))
        return [matmul(weights(scores), v), scores]

    refuses(RecoverAttention(), make(QKV, body), "scores are used elsewhere")


def test_shared_heads():
    """Multi-query attention: one key for all heads is no plain attention."""
    shapes = {**QKV, "k": (B, 1, T, D), "v": (B, 1, T, E)}
    refuses(RecoverAttention(), make(shapes, SCALED["plain"][0]), "differ in batch or heads")


def test_constant_values():
    def body(q, k):
        return matmul(weights(matmul(q, transposed(k))), const(random(B, H, T, E)))

    shapes = {"q": QKV["q"], "k": QKV["k"]}
    refuses(RecoverAttention(), make(shapes, body), "constant")


def test_scale_per_head_is_no_scale():
    """A factor per head stays in front, with the query."""

    def body(q, k, v):
        return matmul(weights(matmul(mul(q, const(random(H, 1, 1))), transposed(k))), v)

    graph = fires(RecoverAttention(), make(QKV, body))
    assert kinds(graph)[0] == "multiply"
    assert scale_of(graph) == 1.0


def vit_block(x):
    """Attention as torch exports nn.MultiheadAttention, with one product for Q, K and V."""
    tokens, width, heads = 7, 12, 3
    y = relax.op.permute_dims(x, [1, 0, 2])
    y = add(matmul(y, const(random(width, 3 * width))), const(random(3 * width)))
    y = relax.op.expand_dims(relax.op.reshape(y, (tokens, 1, 3, width)), [0])
    y = relax.op.squeeze(relax.op.permute_dims(y, [3, 1, 2, 0, 4]), [-2])
    parts = []
    for i in range(3):
        part = relax.op.take(y, relax.const(i, "int64"), axis=0)
        part = relax.op.reshape(part, (tokens, heads, width // heads))
        parts.append(relax.op.permute_dims(part, [1, 0, 2]))
    q, v = (relax.op.reshape(p, (1, heads, tokens, 4)) for p in (parts[0], parts[2]))
    k = relax.op.reshape(relax.op.permute_dims(parts[1], [0, 2, 1]), (1, heads, 4, tokens))
    scores = matmul(mul(q, const([0.5])), mul(k, const([0.5])))
    y = relax.op.permute_dims(matmul(weights(scores), v), [2, 0, 1, 3])
    y = relax.op.reshape(y, (tokens, width))
    y = add(matmul(y, const(random(width, width))), const(random(width)))
    y = relax.op.permute_dims(relax.op.reshape(y, (tokens, 1, width)), [1, 0, 2])
    return add(y, x)


def test_vit_block():
    """Neither slices nor transposes are left; the sum directly follows its product."""
    before = make({"x": (1, 7, 12)}, vit_block)
    graph, _ = run_pipeline(before, PIPELINE)
    assert_same_function(before, graph)
    assert sorted(kinds(graph)) == sorted(
        ["matmul", "add", "reshape"] * 3 + ["graphopt.attention", "reshape", "matmul", "add", "add"]
    )
    assert kinds(graph)[-3:] == ["matmul", "add", "add"]


def test_paddle_block():
    """PP-OCR's: transpose, slices and squeezes of one product; a scale with a shift of 0."""

    def body(x):
        y = add(matmul(x, const(random(6, 18))), const(random(18)))
        y = relax.op.permute_dims(relax.op.reshape(y, (1, 5, 3, 2, 3)), [2, 0, 3, 1, 4])
        q, k, v = (
            relax.op.squeeze(relax.op.strided_slice(y, [0], [i], [i + 1], [1]), [0])
            for i in range(3)
        )
        q = add(mul(q, const([0.57735])), const(0.0))
        y = matmul(weights(matmul(q, relax.op.permute_dims(k, [0, 1, 3, 2]))), v)
        y = relax.op.reshape(relax.op.permute_dims(y, [0, 2, 1, 3]), (1, 5, 6))
        return matmul(y, const(random(6, 6)))

    before = make({"x": (1, 5, 6)}, body)
    graph, _ = run_pipeline(before, PIPELINE)
    assert_same_function(before, graph)
    assert "strided_slice" not in kinds(graph)
    assert "permute_dims" not in kinds(graph)
    assert scale_of(graph) == pytest.approx(0.57735)
