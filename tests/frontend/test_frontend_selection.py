"""Ordering, scanning, selecting and scattering operators against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from frontend_reference import assert_close, run_onnxruntime
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import GraphoptError
from graphopt.frontend.bounded import BOUNDED, DOMAIN, bounded_node

RNG = np.random.default_rng(11)


class Known(np.ndarray):
    """Marks an input as an initializer."""


def known(array: Any) -> np.ndarray:
    return np.asarray(array).view(Known)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(low: int, high: int, *shape: int) -> np.ndarray:
    return RNG.integers(low, high, shape)


def model_of(
    node: onnx.NodeProto, inputs: Sequence[np.ndarray | None], opset: int
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    feeds, values, weights = {}, [], []
    for name, array in zip(node.input, inputs, strict=True):
        if array is None:
            continue
        if isinstance(array, Known):
            weights.append(numpy_helper.from_array(np.asarray(array), name))
            continue
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        values.append(helper.make_tensor_value_info(name, kind, array.shape))
        feeds[name] = array
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "g", values, outputs, weights)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    if node.domain != DOMAIN:
        imports.pop()
    return helper.make_model(graph, opset_imports=imports, ir_version=8), feeds


def node_of(
    op: str, inputs: Sequence[np.ndarray | None], outputs: int, attrs: dict[str, Any]
) -> onnx.NodeProto:
    names = [f"x{i}" if array is not None else "" for i, array in enumerate(inputs)]
    return helper.make_node(op, names, [f"y{i}" for i in range(outputs)], name="n", **attrs)


X = f32(2, 5, 4)
EQUAL = ints(0, 3, 3, 9).astype(np.float32)
DATA = f32(5, 4)

CASES = [
    ("TopK", [EQUAL, known([4])], {}, 18, 2),
    ("TopK", [EQUAL, known([2])], {"axis": 0, "largest": 0}, 18, 2),
    ("TopK", [ints(0, 9, 40), known([3])], {}, 11, 2),
    ("TopK", [EQUAL], {"k": 2, "axis": 1}, 9, 2),
    ("TopK", [EQUAL, np.array([3])], {}, 18, 2),  # k is compiled in
    *(
        (op, [EQUAL], {"axis": 1, **attrs}, 13, 1)
        for op in ("ArgMax", "ArgMin")
        for attrs in ({}, {"keepdims": 0, "axis": -2}, {"select_last_index": 1})
    ),
    ("ArgMax", [ints(-9, 9, 2, 3, 40).astype(np.int8)], {"axis": -1}, 13, 1),
    ("CumSum", [X, known(1)], {}, 14, 1),
    ("CumSum", [X, known(-3)], {"exclusive": 1, "reverse": 1}, 14, 1),
    ("CumSum", [ints(-9, 9, 3, 7), np.array(1)], {"reverse": 1}, 11, 1),
    ("GatherElements", [DATA, ints(-4, 4, 5, 2)], {"axis": 1}, 13, 1),
    ("GatherElements", [DATA, known(ints(-5, 5, 2, 4))], {}, 11, 1),
    ("GatherND", [DATA, ints(-4, 4, 3, 2)], {}, 13, 1),
    ("GatherND", [f32(2, 3, 4), ints(0, 3, 2, 1)], {"batch_dims": 1}, 12, 1),
    ("ReverseSequence", [f32(4, 3, 2), np.array([1, 4, 2])], {}, 10, 1),
    ("ReverseSequence", [f32(3, 4), np.array([1, 4, 2])], {"time_axis": 1, "batch_axis": 0}, 10, 1),
    ("Scatter", [DATA, known([[0, -1], [2, 1]]), f32(2, 2)], {"axis": 1}, 9, 1),
    *(
        ("ScatterElements", [DATA, np.array([[0, -1], [0, -1]]), f32(2, 2)], attrs, 18, 1)
        for attrs in ({}, {"reduction": "add"}, {"axis": 1, "reduction": "max"})
    ),
    *(
        ("ScatterND", [DATA, np.array([[0], [-2], [0]]), f32(3, 4)], {"reduction": r}, 18, 1)
        for r in ("none", "add", "mul", "max", "min")
    ),
    ("OneHot", [np.array([-4, 3, 7, -9, 0]), known(4), known(f32(2))], {}, 11, 1),
    ("OneHot", [ints(0, 4, 2, 3), np.array(4), f32(2)], {"axis": 1}, 11, 1),
    *(
        (
            "MaxPool",
            [f32(2, 3, 7, 6)],
            {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], **attrs},
            12,
            2,
        )
        for attrs in ({}, {"storage_order": 1}, {"ceil_mode": 1, "dilations": [1, 2]})
    ),
    ("MaxPool", [f32(1, 2, 5, 4, 6)], {"kernel_shape": [2, 2, 2]}, 12, 2),
    ("NonZero", [ints(0, 2, 3, 4)], {}, 13, 1),
    ("NonZero", [np.zeros((2, 2), bool)], {}, 9, 1),
    ("Compress", [X, np.array([0, 1, 1], bool)], {"axis": -2}, 11, 1),
    ("Compress", [X, RNG.integers(0, 2, 30).astype(bool)], {}, 9, 1),
    ("Unique", [ints(0, 4, 3, 4)], {}, 11, 4),
    ("Unique", [f32(5)[[0, 3, 0, 1, 3]]], {"sorted": 0}, 11, 4),
    ("Unique", [ints(0, 2, 4, 3, 2).astype(np.float32)], {"axis": 0}, 11, 4),
]


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs"),
    CASES,
    ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)],
)
def test_one_node_against_onnxruntime(
    op: str,
    inputs: list[np.ndarray],
    attrs: dict[str, Any],
    opset: int,
    outputs: int,
) -> None:
    model, feeds = model_of(node_of(op, inputs, outputs, attrs), inputs, opset)
    want = run_onnxruntime(model.SerializeToString(), feeds)
    assert_close(graphopt.compile(model).run(feeds), want, 1e-6)


def test_an_order_that_may_be_any_is_sorted() -> None:
    x = ints(0, 99, 3, 20)
    model, feeds = model_of(node_of("TopK", [x, known([4])], 2, {"sorted": 0}), [x, known([4])], 11)
    order = np.argsort(-x, 1, kind="stable")[:, :4]
    want = {"y0": np.take_along_axis(x, order, 1), "y1": order}
    assert_close(graphopt.compile(model).run(feeds), want)


BOXES, SCORES = RNG.random((2, 30, 4)).astype(np.float32), RNG.random((2, 3, 30)).astype(np.float32)


def one(value: float, dtype: str) -> np.ndarray:
    return np.array([value], dtype)


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize(
    "limits",
    [
        [],
        [known(one(5, "int64")), known(one(0.3, "float32")), known(one(0.2, "float32"))],
        [known(one(5, "int64")), None, known(one(0.2, "float32"))],
        # All of them are known at run time only.
        [one(4, "int64"), one(0.4, "float32"), one(0.3, "float32")],
    ],
)
def test_non_max_suppression(limits: list[np.ndarray | None], center: int) -> None:
    inputs = [BOXES, SCORES, *limits]
    node = node_of("NonMaxSuppression", inputs, 1, {"center_point_box": center})
    model, feeds = model_of(node, inputs, 11)
    want = run_onnxruntime(model.SerializeToString(), feeds)
    assert_close(graphopt.compile(model).run(feeds), want)


@pytest.mark.parametrize("wide", [False, True])
def test_max_unpool(wide: bool) -> None:
    x = f32(1, 2, 2, 3)
    indices = RNG.permutation(2 * 4 * 6)[: x.size].reshape(x.shape)
    shape = [known([1, 2, 5, 8])] if wide else []
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2]}
    model, feeds = model_of(
        node_of("MaxUnpool", [x, indices, *shape], 1, attrs), [x, indices, *shape], 11
    )
    expected = np.zeros(2 * 4 * 6, np.float32)
    expected[indices.reshape(-1)] = x.reshape(-1)
    padded = np.zeros((1, 2, 5, 8) if wide else (1, 2, 4, 6), np.float32)
    padded[:, :, :4, :6] = expected.reshape(1, 2, 4, 6)
    np.testing.assert_array_equal(graphopt.compile(model).run(feeds)["y0"], padded)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("attrs", [{}, {"exclusive": 1}, {"reverse": 1}])
def test_cumulative_product(dtype: str, attrs: dict[str, int]) -> None:
    x = ints(1, 4, 3, 6).astype(dtype)
    axis = known(np.int64(1))
    model, feeds = model_of(node_of("CumProd", [x, axis], 1, attrs), [x, axis], 26)
    expected = np.cumprod(x[:, ::-1] if "reverse" in attrs else x, 1, dtype)
    if "exclusive" in attrs:
        expected = np.concatenate([np.ones((3, 1), dtype), expected[:, :-1]], 1)
    expected = expected[:, ::-1] if "reverse" in attrs else expected
    np.testing.assert_array_equal(graphopt.compile(model).run(feeds)["y0"], expected)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "message"),
    [
        ("TopK", [DATA, known([9])], {}, "less than the requested k"),
        ("GatherElements", [DATA, known([[7, 0, 0, 0]])], {"axis": 0}, "an index is out of range"),
        ("ScatterND", [DATA, known([[-6]]), f32(1, 4)], {}, "an index is out of range"),
    ],
)
def test_refusals_name_what_is_wrong(
    op: str, inputs: list[np.ndarray], attrs: dict[str, Any], message: str
) -> None:
    outputs = 2 if op == "TopK" else 1
    model, _ = model_of(node_of(op, inputs, outputs, attrs), inputs, 18)
    with pytest.raises(GraphoptError, match=message):
        graphopt.compile(model)


TWINS = {
    "NonZero": ([ints(0, 2, 3, 4)], {}, {0: 1}),
    "Compress": ([X, np.array([0, 1, 1], bool)], {"axis": -2}, {0: 1}),
    "Unique": ([ints(0, 4, 3, 4)], {}, {0: 0, 1: 0, 3: 0}),
    "NonMaxSuppression": ([BOXES, SCORES, known(one(3, "int64"))], {}, {0: 0}),
}


@pytest.mark.parametrize("op", sorted(BOUNDED))
def test_a_twin_holds_the_result_and_zeros_behind_it(op: str) -> None:
    inputs, attrs, axes = TWINS[op]
    node = node_of(op, inputs, 4 if op == "Unique" else 1, attrs)
    plain, feeds = model_of(node, inputs, 11)
    want = run_onnxruntime(plain.SerializeToString(), feeds)
    twin, cuts = bounded_node(node, inputs[0].ndim)
    assert cuts == axes
    assert twin.domain == DOMAIN
    model, _ = model_of(twin, inputs, 11)
    got = graphopt.compile(model).run(feeds)
    count = got.pop(twin.output[-1])
    assert count.shape == (1,)
    for i, (name, padded) in enumerate(got.items()):
        if i in cuts:
            kept, rest = np.split(padded, count, cuts[i])
            assert not rest.any()
            padded = kept
        np.testing.assert_array_equal(padded, want[name])


def test_a_twin_without_the_outputs_that_no_one_wants() -> None:
    node = helper.make_node("Unique", ["x0"], ["", "", "y"], name="n")
    twin, cuts = bounded_node(node, 1)
    assert list(twin.output) == ["", "", "y", "", "n/count"]
    assert cuts == {0: 0, 1: 0, 3: 0}
    assert [a.type for a in twin.attribute] == []
    model, feeds = model_of(twin, [ints(0, 3, 6)], 11)
    want = np.unique(feeds["x0"], return_inverse=True)[1]
    np.testing.assert_array_equal(graphopt.compile(model).run(feeds)["y"], want)


def test_elements_of_bfloat16_are_moved_as_they_are() -> None:
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], name="n")
    kinds = [("x", TensorProto.BFLOAT16), ("i", TensorProto.INT64), ("u", TensorProto.BFLOAT16)]
    values = [helper.make_tensor_value_info(name, kind, [4]) for name, kind in kinds]
    output = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [4])
    graph = helper.make_graph([node], "g", values, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    x, u = np.arange(4).astype(dtype), (np.arange(4) * 10).astype(dtype)
    y = graphopt.compile(model).run({"x": x, "i": np.array([3, 1, 1, 0]), "u": u})["y"]
    np.testing.assert_array_equal(y.astype(np.float32), [30, 20, 2, 0])
