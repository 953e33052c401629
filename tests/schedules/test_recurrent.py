"""LSTM, GRU and RNN kernels against NumPy in float64, and once against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from harness import (
    ALL_TRAITS,
    AVX2,
    AVX512,
    random_inputs,
    run_candidate,
    scheduled,
    serial_extents,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from schedules import recurrent
from schedules.interface import Epilogue, Op, Step, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]
LIMIT = 1e-5


def workload_of(
    kind: str,
    steps: int,
    batch: int,
    features: int,
    hidden: int,
    reverse: bool = False,
    reset_after: bool = False,
    epilogue: Epilogue | None = None,
) -> Workload:
    gates, states = {"lstm": (4, 2), "gru": (3, 1), "rnn": (1, 1)}[kind]
    shapes = [
        (steps, batch, features),
        (gates * hidden, features),
        (gates * hidden, hidden),
        (2 * gates * hidden,),
        *[(batch, hidden)] * states,
    ]
    attrs: list[tuple[str, Any]] = [("hidden", hidden), ("reverse", reverse)]
    if kind == "gru":
        attrs.append(("linear_before_reset", reset_after))
    op = Op(
        kind,
        tuple(TensorSig(s) for s in shapes),
        TensorSig((steps + states, batch, hidden)),
        tuple(attrs),
        (False, True, True, True, False, False)[: len(shapes)],
    )
    return Workload(op, epilogue or Epilogue())


def inputs_of(workload: Workload) -> list[Array]:
    """Weights within 1/√hidden or so, as they are initialised."""
    inputs = random_inputs(workload)
    for i in (1, 2, 3):
        inputs[i] /= np.float32(np.sqrt(workload.op.attr("hidden")))
    return inputs


def reference(workload: Workload, inputs: Sequence[Array]) -> Array:
    x, w, r, bias, h, *c = (a.astype(np.float64) for a in inputs[: len(workload.op.inputs)])
    steps, hidden = len(x), h.shape[1]
    gates = len(w) // hidden
    wb, rb = np.split(bias, 2)
    out = np.zeros((steps, *h.shape))
    for t in range(steps)[:: -1 if workload.op.attr("reverse") else 1]:
        from_x = np.split(x[t] @ w.T + wb, gates, axis=1)
        from_h = np.split(h @ r.T + rb, gates, axis=1)
        if c:
            i, o, f, g = (a + b for a, b in zip(from_x, from_h, strict=True))
            c = [expit(f) * c[0] + expit(i) * np.tanh(g)]
            h = expit(o) * np.tanh(c[0])
        elif gates == 1:
            h = np.tanh(from_x[0] + from_h[0])
        else:
            z, reset = (expit(a + b) for a, b in zip(from_x[:2], from_h[:2], strict=True))
            if workload.op.attr("linear_before_reset"):
                new = np.tanh(from_x[2] + reset * from_h[2])
            else:
                new = np.tanh(from_x[2] + (reset * h) @ r[2 * hidden :].T + rb[2 * hidden :])
            h = (1 - z) * new + z * h
        out[t] = h
    return np.stack([*out, h, *c])


CASES = [
    ("lstm", 30, 1, 64, 128, False),
    ("lstm", 1, 1, 128, 128, False),
    ("lstm", 1, 3, 20, 33, False),
    ("lstm", 7, 5, 3, 10, True),
    ("gru", 9, 1, 20, 48, True, False),
    ("gru", 9, 3, 20, 40, False, True),
    ("gru", 1, 2, 20, 48, False, False),
    ("gru", 1, 5, 20, 40, False, True),
    ("rnn", 9, 1, 20, 48, True),
    ("rnn", 5, 33, 3, 20),
    ("rnn", 1, 3, 20, 33),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: f"lanes{t.lanes}")
def test_cases(case: tuple[Any, ...], traits: TargetTraits) -> None:
    workload = workload_of(*case)
    inputs = inputs_of(workload)
    (candidate,) = recurrent.candidates(workload, traits)
    actual = run_candidate(candidate, workload, inputs, traits)
    np.testing.assert_allclose(actual, reference(workload, inputs), rtol=0, atol=LIMIT)
    assert not serial_extents(scheduled(candidate))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_every_number_of_workers(kind: str, threads: int) -> None:
    workload = workload_of(kind, 4, 5, 6, 20)
    inputs = inputs_of(workload)
    traits = replace(AVX512, threads=threads)
    (candidate,) = recurrent.candidates(workload, traits)
    actual = run_candidate(candidate, workload, inputs, traits)
    np.testing.assert_allclose(actual, reference(workload, inputs), rtol=0, atol=LIMIT)


def test_saturated_gates() -> None:
    workload = workload_of("lstm", 5, 2, 8, 16)
    inputs = random_inputs(workload, scale=30.0)
    (candidate,) = recurrent.candidates(workload, AVX512)
    actual = run_candidate(candidate, workload, inputs, AVX512)
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, reference(workload, inputs), rtol=1e-4, atol=1e-4)


def test_epilogue_sees_outputs_not_states() -> None:
    steps = Epilogue((), (Step("negative", (0,)),))
    workload = workload_of("gru", 6, 2, 8, 16, epilogue=steps)
    inputs = inputs_of(workload)
    (candidate,) = recurrent.candidates(workload, AVX512)
    actual = run_candidate(candidate, workload, inputs, AVX512)
    np.testing.assert_allclose(actual, -reference(workload, inputs), rtol=0, atol=LIMIT)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("reverse", [False, True])
def test_definition_is_that_of_onnx(kind: str, reverse: bool) -> None:
    workload = workload_of(kind, 6, 2, 8, 20, reverse, True)
    inputs = inputs_of(workload)
    names = ["x", "w", "r", "b", "", "h0", "c0"][: 7 if kind == "lstm" else 6]
    arrays = [inputs[0], *(a[None] for a in inputs[1:])]
    feeds = dict(zip([n for n in names if n], arrays, strict=True))
    results = ["y", "h", "c"] if kind == "lstm" else ["y", "h"]
    node = onnx.helper.make_node(
        kind.upper(),
        names,
        results,
        hidden_size=20,
        direction="reverse" if reverse else "forward",
        **({} if kind == "lstm" else {"linear_before_reset": 1}),
    )
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value(n, onnx.TensorProto.FLOAT, a.shape) for n, a in feeds.items()],
        [value(n, onnx.TensorProto.FLOAT, None) for n in results],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    y, *last = session.run(None, feeds)
    expected = np.concatenate([y[:, 0], *last])
    (candidate,) = recurrent.candidates(workload, AVX512)
    actual = run_candidate(candidate, workload, inputs, AVX512)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=LIMIT)


@given(gates=st.integers(3, 4), hidden=st.integers(1, 40), depth=st.integers(1, 3))
def test_packing_puts_gates_side_by_side(gates: int, hidden: int, depth: int) -> None:
    weights = np.arange(1.0, gates * hidden * depth + 1).reshape(gates * hidden, depth)
    packed = recurrent.GatePanels(gates, 8).pack(weights)
    assert packed.shape == recurrent.GatePanels(gates, 8).packed_shape(weights.shape)
    for gate in range(gates):
        for unit in range(hidden):
            column = packed[unit // 8, :, gate * 8 + unit % 8]
            np.testing.assert_array_equal(column, weights[gate * hidden + unit])
    assert np.count_nonzero(packed) == weights.size


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("traits", [AVX512, AVX2], ids=lambda t: f"lanes{t.lanes}")
def test_weights_computed_at_run_time_give_the_same_bits(
    case: tuple[Any, ...], traits: TargetTraits
) -> None:
    workload = workload_of(*case)
    op = replace(workload.op, constant=(False,) * len(workload.op.inputs))
    inputs = inputs_of(workload)
    (packed,) = recurrent.candidates(workload, traits)
    (packing,) = recurrent.candidates(Workload(op), traits)
    expected = run_candidate(packed, workload, inputs, traits)
    actual = run_candidate(packing, Workload(op), inputs, traits)
    np.testing.assert_array_equal(actual, expected)
    assert not serial_extents(scheduled(packing))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("reverse", [False, True])
def test_lengths(kind: str, reverse: bool) -> None:
    workload = workload_of(kind, 6, 4, 5, 19, reverse)
    lengths = np.array([6, 1, 0, 4], np.int32)
    attrs = (*workload.op.attrs, ("lengths", True))
    signatures = (*workload.op.inputs, TensorSig((4,), "int32"))
    op = replace(workload.op, inputs=signatures, attrs=attrs)
    inputs = inputs_of(workload)
    (candidate,) = recurrent.candidates(Workload(op), AVX512)
    actual = run_candidate(candidate, Workload(op), [*inputs, lengths], AVX512)
    for row, steps in enumerate(lengths):
        # Each row alone, as long as it is.
        if not steps:
            np.testing.assert_array_equal(actual[:, row], 0)
            continue
        alone = workload_of(kind, int(steps), 1, 5, 19, reverse)
        states = [h[row : row + 1] for h in inputs[4:]]
        short = [inputs[0][:steps, row : row + 1], *inputs[1:4], *states]
        expected = reference(alone, short)[:, 0]
        np.testing.assert_allclose(actual[:steps, row], expected[:steps], rtol=0, atol=LIMIT)
        np.testing.assert_allclose(actual[6:, row], expected[steps:], rtol=0, atol=LIMIT)
        np.testing.assert_array_equal(actual[steps:6, row], 0)


def test_quantized_state_takes_256_levels() -> None:
    # One step: what the recurrent product takes is h0 as DynamicQuantizeLinear rounds it.
    workload = workload_of("lstm", 1, 3, 5, 21)
    op = replace(workload.op, attrs=(*workload.op.attrs, ("quantized_state", True)))
    inputs = inputs_of(workload)
    h0 = inputs[4].astype("f8")
    low = np.minimum(h0.min(1, keepdims=True), 0)
    scale = (np.maximum(h0.max(1, keepdims=True), 0) - low) / 255
    zero = np.round(-low / scale)
    rounded = (np.clip(np.round(h0 / scale) + zero, 0, 255) - zero) * scale
    (candidate,) = recurrent.candidates(Workload(op), AVX512)
    actual = run_candidate(candidate, Workload(op), inputs, AVX512)
    expected = reference(workload, [*inputs[:4], rounded, inputs[5]])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=LIMIT)
    assert np.abs(rounded - h0).max() > 100 * LIMIT  # the test sees the rounding
