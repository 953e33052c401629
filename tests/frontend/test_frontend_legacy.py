"""Models of operator sets 1 to 6 against NumPy: broadcasting and other settings by attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import GraphoptError

RNG = np.random.default_rng(11)
X = RNG.uniform(0.5, 2.0, (2, 3, 4, 5)).astype(np.float32)


def legacy_model(
    nodes: list[onnx.NodeProto],
    outputs: list[str],
    feeds: dict[str, np.ndarray],
    weights: dict[str, np.ndarray],
    opset: int,
) -> onnx.ModelProto:
    """As old exporters wrote them: weights are inputs as well."""
    kind = helper.np_dtype_to_tensor_dtype
    inputs = [
        helper.make_tensor_value_info(name, kind(x.dtype), x.shape)
        for name, x in {**feeds, **weights}.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, results, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)


def run(
    nodes: list[onnx.NodeProto],
    want: dict[str, np.ndarray],
    weights: dict[str, np.ndarray],
    opset: int,
    feeds: dict[str, np.ndarray] | None = None,
) -> None:
    feeds = feeds or {"x": X}
    got = graphopt.compile(legacy_model(nodes, list(want), feeds, weights, opset)).run(feeds)
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, err_msg=name)


def node(op: str, inputs: list[str], output: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attrs)


def test_broadcasting_by_axis() -> None:
    weights = {
        "c": RNG.uniform(0.5, 2.0, 3).astype(np.float32),
        "cd": RNG.uniform(0.5, 2.0, (3, 4)).astype(np.float32),
        "last": RNG.uniform(0.5, 2.0, 5).astype(np.float32),
    }
    c, cd, last = weights["c"][:, None, None], weights["cd"][:, :, None], weights["last"]
    nodes = [
        node("Add", ["x", "c"], "add", broadcast=1, axis=1),
        node("Sub", ["x", "cd"], "sub", broadcast=1, axis=1),
        node("Mul", ["x", "last"], "mul", broadcast=1),
        node("Div", ["x", "last"], "div", broadcast=1, axis=-1),
        node("Pow", ["x", "c"], "pow", broadcast=1, axis=1),
        node("Greater", ["x", "c"], "above", broadcast=1, axis=1),
        node("Cast", ["above"], "greater", to=TensorProto.FLOAT),
    ]
    want = {
        "add": X + c,
        "sub": X - cd,
        "mul": X * last,
        "div": X / last,
        "pow": X**c,
        "greater": (c < X).astype(np.float32),
    }
    run(nodes, want, weights, 6)


def test_the_second_operand_may_be_an_input() -> None:
    feeds = {"x": X, "c": RNG.uniform(size=3).astype(np.float32)}
    nodes = [node("Mul", ["x", "c"], "y", broadcast=1, axis=1)]
    run(nodes, {"y": X * feeds["c"][:, None, None]}, {}, 6, feeds)


@pytest.mark.parametrize("opset", [1, 6])
def test_slopes_per_channel(opset: int) -> None:
    # As many channels as columns: the slope belongs to axis 1 all the same.
    x = RNG.standard_normal((2, 3, 3)).astype(np.float32)
    weights = {"s": np.array([0.1, 0.5, 2.0], np.float32), "one": np.array([3.0], np.float32)}
    attrs = {"consumed_inputs": [0, 0]} if opset == 1 else {}
    nodes = [
        node("PRelu", ["x", "s"], "many", **attrs),
        node("PRelu", ["x", "one"], "single", **attrs),
    ]
    want = {
        "many": np.where(x < 0, x * weights["s"][:, None], x),
        "single": np.where(x < 0, x * 3, x),
    }
    run(nodes, want, weights, opset, {"x": x})


def test_operator_set_1() -> None:
    mean = RNG.uniform(size=3).astype(np.float32)
    weights = {
        "gamma": RNG.uniform(size=3).astype(np.float32),
        "beta": RNG.uniform(size=3).astype(np.float32),
        "mean": mean,
        "var": RNG.uniform(0.5, 1.0, 3).astype(np.float32),
        "tiles": np.array([2.0], np.float32),
        "axis": np.array([1.0], np.float32),
    }
    nodes = [
        node("Reshape", ["x"], "reshape", shape=[2, 0, -1]),
        node("Pad", ["x"], "pad", paddings=[0, 0, 1, 0, 0, 0, 0, 2], value=3.0),
        node("Concat", ["x", "x"], "concat"),
        node("Tile", ["x", "tiles", "axis"], "tile"),
        node("Upsample", ["x"], "upsample", height_scale=2.0, width_scale=3.0, mode="nearest"),
        node("Cast", ["x"], "whole", to="INT32"),
        node("Cast", ["whole"], "cast", to="FLOAT"),
        node("Dropout", ["x"], "dropout", is_test=1, ratio=0.5),
        node("Exp", ["x"], "exp", consumed_inputs=[0]),
        node("Selu", ["x"], "selu"),
        helper.make_node(
            "BatchNormalization",
            ["x", "gamma", "beta", "mean", "var"],
            ["norm"],
            is_test=1,
            epsilon=1e-3,
            consumed_inputs=[0, 0, 0, 1, 1],
        ),
    ]
    g, b, m, v = (weights[k][:, None, None] for k in ("gamma", "beta", "mean", "var"))
    want = {
        "reshape": X.reshape(2, 3, 20),
        "pad": np.pad(X, ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=3.0),
        "concat": np.concatenate([X, X], 1),
        "tile": np.tile(X, (1, 2, 1, 1)),
        "upsample": X.repeat(2, 2).repeat(3, 3),
        "cast": np.trunc(X),
        "dropout": X,
        "exp": np.exp(X),
        "selu": 1.0507 * X,
        "norm": (X - m) / np.sqrt(v + 1e-3) * g + b,
    }
    run(nodes, want, weights, 1)


def test_gemm_broadcasts_by_shape() -> None:
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    weights = {
        "w": RNG.standard_normal((5, 4)).astype(np.float32),
        "b": RNG.standard_normal(5).astype(np.float32),
    }
    nodes = [node("Gemm", ["x", "w", "b"], "y", transB=1, broadcast=1)]
    run(nodes, {"y": (x @ weights["w"].T + weights["b"])}, weights, 6, {"x": x})


@pytest.mark.parametrize("op", ["Dropout", "BatchNormalization"])
def test_training_is_refused(op: str) -> None:
    names = ["x"] if op == "Dropout" else ["x", "c", "c", "c", "c"]
    outputs = ["y"] if op == "Dropout" else ["y", "m", "v", "sm", "sv"]
    model = legacy_model(
        [helper.make_node(op, names, outputs, name="trains")],
        ["y"],
        {"x": X},
        {"c": np.ones(3, np.float32)},
        6,
    )
    with pytest.raises(GraphoptError, match="trains"):
        graphopt.compile(model)
