"""Whole lowering on small graphs: chained layouts, views, odd outputs, shared kernels, results."""

from __future__ import annotations

import numpy as np
import pytest
from lowering_run import TARGET, lowered, run
from relax_graph import make_graph
from tvm import relax
from tvm.relax import op

from graphopt.codegen.executable import build
from graphopt.errors import CompileError
from graphopt.lowering.lower import LoweringOptions, pose
from graphopt.runtime.session import Session
from schedules.interface import Numerics


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def conv_reference(x, w, padding):
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    kh, kw = w.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w.astype(np.float64))


def test_blocked_layouts_chain_from_the_first_to_the_last_convolution():
    weights = [random(32, 3, 3, 3), random(32, 32, 1, 1), random(32, 32, 3, 3)]

    def body(b, x):
        for w in weights:
            x = b.emit(op.nn.conv2d(x, relax.const(w), padding=w.shape[2] // 2))
            x = b.emit(op.nn.relu(x))
        return x

    x = random(1, 3, 30, 30)
    result, emitted = run(make_graph({"x": x.shape}, body), {"x": x})
    expected = x
    for w in weights:
        expected = np.maximum(conv_reference(expected, w, w.shape[2] // 2), 0)
    error = np.abs(result["out0"] - expected).max() / np.abs(expected).max()
    assert error < 1e-5
    assert emitted.layout_changes <= 1  # only the output must be row-major


def test_identical_layers_share_a_kernel_and_keep_their_own_nodes():
    w = random(16, 16, 3, 3)

    def body(b, x):
        for _ in range(4):
            x = b.emit(op.nn.relu(b.emit(op.nn.conv2d(x, relax.const(w), padding=1))))
        return x

    emitted, _ = lowered(make_graph({"x": (1, 16, 14, 14)}, body))
    calls = [call for call in emitted.plan.calls if call.kernel.startswith("conv2d")]
    assert len(calls) == 4
    assert calls[1].kernel == calls[2].kernel  # the ends read or write other layouts
    assert calls[1].args[1] == calls[2].args[1]  # equal weights are stored once
    assert len({call.site for call in calls}) == 4
    assert all(len(call.nodes) == 2 for call in calls)
    assert len({node for call in calls for node in call.nodes}) == 8


def test_outputs_may_be_inputs_constants_views_and_repeats():
    constant = np.arange(6, dtype=np.float32).reshape(2, 3)

    def body(b, x):
        y = b.emit(op.nn.relu(x))
        return [x, b.emit(op.reshape(y, (6,))), y, relax.const(constant), y]

    x = random(2, 3)
    result, _ = run(make_graph({"x": (2, 3)}, body), {"x": x})
    y = np.maximum(x, 0)
    for name, expected in zip(
        ["out0", "out1", "out2", "out3", "out4"], [x, y.reshape(6), y, constant, y], strict=True
    ):
        assert np.array_equal(result[name], expected), name
    assert not np.shares_memory(result["out2"], result["out4"])


def test_a_view_of_a_blocked_tensor_reads_the_right_elements():
    w = random(20, 5, 1, 1)

    def body(b, x):
        y = b.emit(op.nn.conv2d(x, relax.const(w)))
        rows = b.emit(op.reshape(y, (20, 16)))
        return b.emit(op.nn.relu(rows))

    x = random(1, 5, 4, 4)
    result, _ = run(make_graph({"x": x.shape}, body), {"x": x})
    expected = np.maximum(conv_reference(x, w, 0), 0).reshape(20, 16)
    assert np.allclose(result["out0"], expected, atol=1e-5)


def test_scalars_and_empty_tensors():
    def body(b, x, empty):
        total = b.emit(op.sum(x))
        return [b.emit(op.multiply(total, total)), b.emit(op.nn.relu(empty))]

    x = random(3, 4)
    result, _ = run(
        make_graph({"x": (3, 4), "empty": (0, 5)}, body),
        {"x": x, "empty": np.zeros((0, 5), np.float32)},
    )
    assert result["out0"].shape == ()
    assert np.allclose(result["out0"], x.sum() ** 2, rtol=1e-5)
    assert result["out1"].shape == (0, 5)


def test_strict_numerics_and_the_weight_limit_choose_other_candidates():
    w = random(64, 64, 3, 3)

    def body(b, x):
        return b.emit(op.nn.conv2d(x, relax.const(w), padding=1))

    graph = make_graph({"x": (1, 64, 56, 56)}, body)
    free, _ = lowered(graph, weight_limit=100.0)
    strict, _ = lowered(graph, numerics=Numerics.STRICT, weight_limit=100.0)
    tight, pool = lowered(graph, weight_limit=1.0)
    assert any("winograd" in use.candidate for use in free.uses)
    assert not any("winograd" in use.candidate for use in strict.uses)
    assert pool.nbytes <= w.nbytes
    assert not any("winograd" in use.candidate for use in tight.uses)


def test_each_setting_of_numerics_allows_more() -> None:
    w = random(64, 64, 3, 3)

    def body(b, x):
        return b.emit(op.nn.conv2d(x, relax.const(w), padding=1))

    graph = make_graph({"x": (1, 64, 56, 56)}, body)
    names = []
    for numerics in Numerics:
        problem = pose(graph, TARGET.traits(1), LoweringOptions(numerics))
        (offers,) = problem.offers.values()
        names.append({offer.candidate.name for offer in offers})
    strict, default, relaxed = names
    assert default - strict == {"conv2d.winograd2", "conv2d.winograd4"}
    assert relaxed - default == {"conv2d.winograd6"}
    assert strict <= default <= relaxed


def test_a_tensor_beyond_32_bit_indices_is_refused_before_anything_is_allocated():
    def body(b, x):
        return b.emit(op.nn.relu(x))

    with pytest.raises(CompileError, match="elements"):
        lowered(make_graph({"x": (70000, 70000)}, body))


def test_the_number_of_threads_does_not_change_a_bit_of_the_result():
    w = random(24, 24, 3, 3)

    def body(b, x):
        y = b.emit(op.nn.conv2d(x, relax.const(w), padding=1))
        return b.emit(op.mean(b.emit(op.sigmoid(y)), [2, 3]))

    x = random(1, 24, 19, 19)
    graph = make_graph({"x": x.shape}, body)
    emitted, pool = lowered(graph, threads=4)
    module = build(emitted.plan, emitted.kernels, TARGET.tvm_target(4), TARGET.arch)
    weights = pool.block()
    results = []
    for threads in (1, 2, 4):
        with Session(emitted.plan, module, weights, threads) as session:
            results.append(session.run({"x": x})["out0"])
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
