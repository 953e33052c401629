"""Tensors with a dimension 0: fed, computed, given as constants; and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import graphopt
from graphopt.cli.main import main
from graphopt.errors import GraphoptError, InputError, OptionError

Array = np.ndarray[Any, Any]


def code_of(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[Any] | None]],
    outputs: Mapping[str, Any],
    constants: Mapping[str, Array] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    """A model: inputs name → (dtype, shape), outputs name → dtype."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "g",
        [info(name, code_of(dtype), shape) for name, (dtype, shape) in inputs.items()],
        [info(name, code_of(dtype), None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(x, name) for name, x in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def one(op: str, inputs: Sequence[Array], constant: Sequence[int] = (), **attrs: Any) -> Array:
    """The output of one node, of the first input's type; `constant` names initializers."""
    names = [f"x{i}" for i in range(len(inputs))]
    node = helper.make_node(op, names, ["y"], "node", **attrs)
    given = {n: x for i, (n, x) in enumerate(zip(names, inputs, strict=True)) if i not in constant}
    fixed = {n: x for i, (n, x) in enumerate(zip(names, inputs, strict=True)) if i in constant}
    specs = {n: (x.dtype, x.shape) for n, x in given.items()}
    model = model_of([node], specs, {"y": inputs[0].dtype}, fixed)
    return graphopt.compile(model).run(given)["y"]


def zeros(*shape: int, dtype: Any = np.float32) -> Array:
    return np.zeros(shape, dtype)


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    """x (n, 3, 8, 8) → convolution, activation, mean, product: y (n, 5)."""
    rng = np.random.default_rng(0)
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["c"]),
        make("Relu", ["c"], ["r"]),
        make("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]),
        make("GlobalAveragePool", ["p"], ["m"]),
        make("Flatten", ["m"], ["f"]),
        make("Gemm", ["f", "v", "b"], ["g"]),
        make("Softmax", ["g"], ["y"]),
    ]
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((4, 5)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float32),
    }
    return model_of(nodes, {"x": (np.float32, ["n", 3, 8, 8])}, {"y": np.float32}, weights)


def test_an_empty_batch_gives_an_empty_batch(network: onnx.ModelProto, tmp_path: Path) -> None:
    model = graphopt.compile(network)
    full = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert model.run({"x": full})["y"].shape == (2, 5)
    assert model.run({"x": full[:0]})["y"].shape == (0, 5)
    assert model.run({"x": np.asfortranarray(full)[1:1]})["y"].shape == (0, 5)
    assert (0, 3, 8, 8) in [shapes["x"] for shapes in model.shapes]
    model.save(tmp_path / "m.gopt")
    loaded = graphopt.load(tmp_path / "m.gopt")
    assert loaded.run({"x": full[:0]})["y"].shape == (0, 5)
    np.testing.assert_array_equal(loaded.run({"x": full})["y"], model.run({"x": full})["y"])
    out = np.empty((0, 5), np.float32)
    assert loaded.run({"x": full[:0]}, out={"y": out})["y"].shape == (0, 5)


def test_a_dimension_0_is_bound_like_any_other(network: onnx.ModelProto, tmp_path: Path) -> None:
    model = graphopt.compile(network, shapes={"x": (0, 3, 8, 8)})
    assert model.run({"x": zeros(0, 3, 8, 8)})["y"].shape == (0, 5)
    onnx.save(network, tmp_path / "m.onnx")
    out = str(tmp_path / "m.gopt")
    assert main(["compile", str(tmp_path / "m.onnx"), "-o", out, "--shape", "x=0,3,8,8"]) == 0
    with pytest.raises(InputError):
        graphopt.load(out).run({"x": zeros(1, 3, 8, 8)})
    with pytest.raises(OptionError, match="from 0 to"):
        graphopt.compile(network, shapes={"x": (-1, 3, 8, 8)})


def test_a_stated_0_means_unknown_until_an_array_says_otherwise() -> None:
    node = helper.make_node("Shape", ["x"], ["y"])
    model = graphopt.compile(model_of([node], {"x": (np.float32, [0, 4])}, {"y": np.int64}))
    assert model.inputs[0].shape == (None, 4)
    assert model.run({"x": zeros(3, 4)})["y"].tolist() == [3, 4]
    assert model.run({"x": zeros(0, 4)})["y"].tolist() == [0, 4]
    assert graphopt.compile(model.model.proto).inputs[0].shape == (None, 4)


REDUCTIONS = {
    "ReduceSum": 0.0,
    "ReduceProd": 1.0,
    "ReduceMax": -np.inf,
    "ReduceMin": np.inf,
    "ReduceMean": np.nan,
    "ReduceL1": 0.0,
    "ReduceL2": 0.0,
    "ReduceSumSquare": 0.0,
    "ReduceLogSum": -np.inf,
    "ReduceLogSumExp": -np.inf,
}


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_reduction_over_nothing_is_its_identity(op: str, keepdims: int) -> None:
    got = one(op, [zeros(2, 0, 4), np.array([1], np.int64)], [1], keepdims=keepdims)
    assert got.shape == ((2, 1, 4) if keepdims else (2, 4))
    np.testing.assert_array_equal(got, np.full(got.shape, REDUCTIONS[op], np.float32))
    # Over another axis the result has no elements.
    assert one(op, [zeros(2, 0, 4), np.array([2], np.int64)], [1], keepdims=0).shape == (2, 0)


@pytest.mark.parametrize(("dtype", "low", "high"), [
    ("int32", -(2**31), 2**31 - 1), ("uint8", 0, 255), ("bool", False, True)
])  # fmt: skip
def test_extremes_of_no_integers(dtype: str, low: Any, high: Any) -> None:
    x, axes = zeros(0, 3, dtype=dtype), np.array([0], np.int64)
    assert one("ReduceMax", [x, axes], [1], keepdims=0).tolist() == [low] * 3
    assert one("ReduceMin", [x, axes], [1], keepdims=0).tolist() == [high] * 3


def test_products_padding_and_joins() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(one("MatMul", [zeros(2, 0), zeros(0, 3)]), zeros(2, 3))
    np.testing.assert_array_equal(one("Gemm", [zeros(2, 0), zeros(0, 3), x]), x)
    assert one("MatMul", [zeros(0, 4), zeros(4, 3)]).shape == (0, 3)
    np.testing.assert_array_equal(one("Concat", [zeros(0, 3), x, zeros(0, 3), x], axis=0),
                                  np.concatenate([x, x]))  # fmt: skip
    np.testing.assert_array_equal(one("Concat", [zeros(2, 0), x], axis=1), x)
    pads, value = np.array([1, 0, 1, 0], np.int64), np.array(2.5, np.float32)
    padded = one("Pad", [zeros(0, 3), pads, value], [1, 2])
    np.testing.assert_array_equal(padded, np.full((2, 3), 2.5, np.float32))
    with pytest.raises(GraphoptError, match="no edge"):
        one("Pad", [zeros(0, 3), pads], [1], mode="edge")


def test_slices_gathers_and_views() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    i = lambda *v: np.array(v, np.int64)  # noqa: E731
    assert one("Slice", [x, i(5), i(9), i(0)], [1, 2, 3]).shape == (0, 4)
    assert one("Slice", [x, i(2), i(2), i(1)], [1, 2, 3]).shape == (3, 0)
    assert one("Slice", [x, i(0), i(2), i(0), i(-1)], [1, 2, 3, 4]).shape == (0, 4)
    assert one("Gather", [x, zeros(0, 2, dtype=np.int64)], axis=0).shape == (0, 2, 4)
    assert one("Gather", [x, zeros(0, dtype=np.int64)], [1], axis=1).shape == (3, 0)
    assert one("Reshape", [zeros(0, 3, 4), i(0, -1)], [1]).shape == (0, 12)
    assert one("Reshape", [zeros(0, 3, 4), i(-1, 6)], [1]).shape == (0, 6)
    assert one("Reshape", [zeros(0, 3, 4), i(3, 4, 0)], [1], allowzero=1).shape == (3, 4, 0)
    assert one("Transpose", [zeros(0, 3, 4)], perm=[2, 0, 1]).shape == (4, 0, 3)
    assert one("Expand", [zeros(1, 3), i(0, 3)], [1]).shape == (0, 3)
    assert one("Tile", [x, i(0, 2)], [1]).shape == (0, 8)
    assert one("Softmax", [zeros(3, 0)]).shape == (3, 0)
    assert one("Add", [zeros(0, 3), zeros(1, 3)]).shape == (0, 3)
    data, nothing = x, zeros(0, 1, dtype=np.int64)
    np.testing.assert_array_equal(one("ScatterND", [data, nothing, zeros(0, 4)]), data)


def test_empty_parts_of_a_split() -> None:
    node = helper.make_node("Split", ["x", "sizes"], ["a", "b", "c"], axis=0)
    sizes = {"sizes": np.array([0, 2, 0], np.int64)}
    outputs = dict.fromkeys("abc", np.float32)
    model = model_of([node], {"x": (np.float32, [2, 3])}, outputs, sizes)
    x = np.ones((2, 3), np.float32)
    got = graphopt.compile(model).run({"x": x})
    assert [got[name].shape for name in "abc"] == [(0, 3), (2, 3), (0, 3)]
    np.testing.assert_array_equal(got["b"], x)


def test_what_has_no_meaning_is_refused() -> None:
    node = helper.make_node("ArgMax", ["x"], ["y"], axis=0)
    model = model_of([node], {"x": (np.float32, ["n", 3])}, {"y": np.int64})
    with pytest.raises(GraphoptError, match="empty"):
        graphopt.compile(model).run({"x": zeros(0, 3)})
