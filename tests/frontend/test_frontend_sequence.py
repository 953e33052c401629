"""LinearAttention, CausalConvWithState and FlexAttention against their formulas in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import graphopt
from graphopt.errors import ModelError

Array = np.ndarray[Any, Any]


def model_of(
    op: str, feeds: dict[str, Array | None], outputs: int, domain: str = "", **attrs: Any
) -> bytes:
    names = [name if a is not None else "" for name, a in feeds.items()]
    while not names[-1]:
        names.pop()
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, domain=domain, **attrs)
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
        if a is not None
    ]
    empty = [helper.make_empty_tensor_value_info(n) for n in results]
    graph = helper.make_graph([node], "g", values, empty)
    imports = [helper.make_opsetid("", 27)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports).SerializeToString()


def run(model: bytes, feeds: dict[str, Array | None]) -> list[Array]:
    given = {n: a for n, a in feeds.items() if a is not None}
    return list(graphopt.compile(model).run(given).values())


def linear_inputs(dtype: str, decay: int, beta: int) -> dict[str, Array | None]:
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape) / 3

    feeds = {
        "query": draw(2, 6, 4 * 5),
        "key": draw(2, 6, 2 * 5),
        "value": draw(2, 6, 2 * 9),
        "past_state": draw(2, 2, 5, 9),
        "decay": -np.abs(draw(2, 6, decay)) if decay else None,
        "beta": np.abs(draw(2, 6, beta)) if beta else None,
    }
    return {n: None if a is None else a.astype(dtype) for n, a in feeds.items()}


@pytest.mark.parametrize(
    ("rule", "decay", "beta"),
    [("linear", 0, 0), ("gated", 10, 0), ("delta", 0, 1), ("gated_delta", 2, 2)],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3)])
def test_linear_attention(rule: str, decay: int, beta: int, dtype: str, tolerance: float) -> None:
    feeds = linear_inputs(dtype, decay, beta)
    model = model_of(
        "LinearAttention", feeds, 2, q_num_heads=4, kv_num_heads=2, update_rule=rule, chunk_size=2
    )
    wide = {n: None if a is None else a.astype("f8") for n, a in feeds.items()}
    q, k, v = (
        wide[n].reshape(2, 6, heads, -1) for n, heads in (("query", 4), ("key", 2), ("value", 2))
    )
    state = wide["past_state"].copy()
    expected = np.zeros((2, 6, 4, 9))
    for b, t, h in np.ndindex(2, 6, 2):
        s, update = state[b, h], v[b, t, h]
        if decay:
            s *= np.exp(wide["decay"][b, t].reshape(2, -1)[h])[:, None]
        if beta:
            update = np.broadcast_to(wide["beta"][b, t], 2)[h] * (update - k[b, t, h] @ s)
        s += np.outer(k[b, t, h], update)
        for g in (2 * h, 2 * h + 1):
            expected[b, t, g] = q[b, t, g] @ s / np.sqrt(5)
    for got, want in zip(run(model, feeds), (expected.reshape(2, 6, 36), state), strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [
        ({"update_rule": "quantum"}, "update_rule"),
        ({"update_rule": "gated"}, "decay"),
        ({"update_rule": "linear", "kv_num_heads": 3}, "q_num_heads"),
    ],
)
def test_linear_attention_refusals(attrs: dict[str, Any], reason: str) -> None:
    model = model_of(
        "LinearAttention",
        linear_inputs("float32", 0, 0),
        2,
        **{"q_num_heads": 4, "kv_num_heads": 2, **attrs},
    )
    with pytest.raises(ModelError, match=reason):
        graphopt.compile(model)


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_causal_convolution(steps: int, activation: str) -> None:
    rng = np.random.default_rng(2)
    feeds = {
        "input": rng.standard_normal((2, 5, steps)).astype("f4"),
        "weight": rng.standard_normal((5, 1, 4)).astype("f4"),
        "bias": rng.standard_normal(5).astype("f4"),
        "past_state": rng.standard_normal((2, 5, 3)).astype("f4"),
    }
    model = model_of("CausalConvWithState", feeds, 2, activation=activation)
    x = np.concatenate([feeds["past_state"], feeds["input"]], 2).astype("f8")
    windows = np.lib.stride_tricks.sliding_window_view(x, 4, axis=2)
    y = (windows * feeds["weight"].reshape(5, 1, 4)).sum(-1) + feeds["bias"][:, None]
    y = y / (1 + np.exp(-y)) if activation == "silu" else y
    output, state = run(model, feeds)
    np.testing.assert_allclose(output, y, rtol=0, atol=1e-5 * np.abs(y).max())
    np.testing.assert_array_equal(state, x[:, :, -3:].astype("f4"))


def modifier(op: str, value: float) -> onnx.GraphProto:
    """scores → op(scores, value)."""
    tensor = helper.make_tensor_value_info
    constant = helper.make_tensor("c", onnx.TensorProto.FLOAT, [], [value])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node(op, ["scores", "c"], ["out"]),
    ]
    shape = ["b", "h", "l", "s"]
    return helper.make_graph(
        nodes,
        op,
        [tensor("scores", onnx.TensorProto.FLOAT, shape)],
        [tensor("out", onnx.TensorProto.FLOAT, shape)],
    )


def test_flex_attention_with_modifiers() -> None:
    rng = np.random.default_rng(3)
    shapes = {"Q": (2, 4, 5, 8), "K": (2, 2, 7, 8), "V": (2, 2, 7, 6)}
    feeds = {n: rng.standard_normal(s).astype("f4") for n, s in shapes.items()}
    model = model_of(
        "FlexAttention",
        feeds,
        1,
        "ai.onnx.preview",
        scale=0.4,
        score_mod=modifier("Max", -0.2),
        prob_mod=modifier("Mul", 3.0),
    )
    q, k, v = (a.astype("f8") for a in feeds.values())
    k, v = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
    scores = np.maximum(0.4 * q @ k.swapaxes(2, 3), np.float32(-0.2))
    exponents = np.exp(scores - scores.max(-1, keepdims=True))
    expected = 3 * exponents / exponents.sum(-1, keepdims=True) @ v
    (got,) = run(model, feeds)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
