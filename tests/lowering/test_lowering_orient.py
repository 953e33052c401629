"""Convolutions over one column."""

from __future__ import annotations

import numpy as np
from lowering_run import run
from relax_graph import make_graph
from tvm import relax
from tvm.relax import op

from graphopt.lowering.orient import orient
from schedules.interface import Epilogue, Op, Step, TensorSig, Workload


def workload(width, left=0):
    attrs = (("strides", (2, 1)), ("padding", (1, left, 2, 0)), ("dilation", (1, 1)), ("groups", 1))
    conv = Op(
        "conv2d",
        (TensorSig((1, 8, 20, width)), TensorSig((4, 8, 5, 1))),
        TensorSig((1, 4, 10, width + left)),
        attrs,
        (False, True),
    )
    return Workload(conv, Epilogue((TensorSig((1, 4, 10, 1)),), (Step("add", (0, 1)),)))


def test_a_column_becomes_a_row():
    found = orient(workload(1))
    assert [sig.shape for sig in found.inputs] == [(1, 8, 1, 20), (4, 8, 1, 5), (1, 4, 1, 10)]
    assert found.output.shape == (1, 4, 1, 10)
    assert found.op.attr("strides") == (1, 2)
    assert found.op.attr("padding") == (0, 1, 0, 2)


def test_anything_wider_or_padded_sideways_stays():
    for other in (workload(2), workload(1, left=1)):
        assert orient(other) is other


def test_the_result_is_the_same():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 20, 30, 1)).astype(np.float32)
    w = rng.standard_normal((24, 20, 5, 1)).astype(np.float32)
    shift = rng.standard_normal((1, 24, 28, 1)).astype(np.float32)

    def body(b, x, shift):
        y = b.emit(op.nn.conv2d(x, relax.const(w), padding=(1, 0, 1, 0)))
        return b.emit(op.nn.relu(b.emit(op.add(y, shift))))

    graph = make_graph({"x": x.shape, "shift": shift.shape}, body)
    result = run(graph, {"x": x, "shift": shift})[0]["out0"]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded[..., 0], 5, axis=2)
    expected = np.maximum(np.einsum("nchk,ock->noh", windows, w[..., 0]) + shift[..., 0], 0)
    assert result.shape == (2, 24, 28, 1)
    assert np.abs(result[..., 0] - expected).max() < 1e-5 * np.abs(expected).max()
