"""Convolutions that read halves as they are, for devices."""

from __future__ import annotations

import numpy as np
from passes_graph import const, fires, kinds, make, random, refuses
from tvm import relax

from graphopt.passes.keep_halves import KeepHalves
from graphopt.passes.pipeline import PIPELINE, pipeline_of

op = relax.op
HALVES = ((1, 4, 9, 9), "float16")


def halves(*shape):
    return random(*shape).astype(np.float16).astype(np.float32)


def widened(weight):
    return lambda x: op.nn.conv2d(op.astype(x, "float32"), weight, out_dtype="float32")


def test_constant_weights_become_halves():
    graph = fires(KeepHalves(), make({"x": HALVES}, widened(const(halves(5, 4, 3, 3)))), rewrites=1)
    assert kinds(graph) == ["nn.conv2d"]


def test_weights_of_the_graph():
    def body(x, w):
        wide = op.astype(w, "float32")
        return op.nn.conv2d(op.astype(x, "float32"), wide, out_dtype="float32")

    graph = make({"x": HALVES, "w": ((5, 4, 3, 3), "float16")}, body)
    assert kinds(fires(KeepHalves(), graph, rewrites=1)) == ["nn.conv2d"]


def test_other_weights_are_left_alone():
    graph = make({"x": HALVES}, widened(const(random(5, 4, 3, 3))))
    refuses(KeepHalves(), graph, "the weights are no halves")
    large = np.full((5, 4, 3, 3), 1e6)
    refuses(KeepHalves(), make({"x": HALVES}, widened(const(large))), "the weights are no halves")


def test_only_where_the_target_computes_with_halves():
    assert pipeline_of(halves=False) == PIPELINE
    assert pipeline_of(halves=True) == (*PIPELINE, KeepHalves())
