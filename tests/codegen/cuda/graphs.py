"""Small models whose programs have what a GPU's kernels may have, with what they are fed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
NUMPY = {FLOAT: np.float32, HALF: np.float16}


def draw(*shape: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def build(nodes: list[Any], inputs: dict[str, Array], weights: dict[str, Array]) -> bytes:
    """A model whose output y has the type of its first input, and whatever shape it gets."""
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(n, types[n], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info("y", next(iter(types.values())), None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    data: bytes = onnx.shape_inference.infer_shapes(model).SerializeToString()
    return data


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def transformer(dtype: int) -> tuple[bytes, dict[str, Array]]:
    """One layer of one: normalisation, attention of two heads, and a gated sum."""
    kind = NUMPY[dtype]
    feeds = {"x": draw(1, 20, 16, dtype=kind)}
    weights = {
        "gamma": draw(16, dtype=kind),
        "beta": draw(16, dtype=kind),
        "wq": draw(16, 16, dtype=kind),
        "wk": draw(16, 16, dtype=kind),
        "shape": np.array([1, 20, 2, 8]),
        "flat": np.array([1, 20, 16]),
        "scale": np.array(8**-0.5, kind),
    }
    heads = {"perm": [0, 2, 1, 3]}
    nodes = [
        node("LayerNormalization", "x gamma beta", "n", axis=-1),
        node("MatMul", "n wq", "q0"),
        node("MatMul", "n wk", "k0"),
        node("Reshape", "q0 shape", "q1"),
        node("Reshape", "k0 shape", "k1"),
        node("Transpose", "q1", "q", **heads),
        node("Transpose", "k1", "v", **heads),
        node("Transpose", "k1", "k", perm=[0, 2, 3, 1]),
        node("MatMul", "q k", "s0"),
        node("Mul", "s0 scale", "s1"),
        node("Softmax", "s1", "p", axis=-1),
        node("MatMul", "p v", "o0"),
        node("Transpose", "o0", "o1", **heads),
        node("Reshape", "o1 flat", "o"),
        node("Sigmoid", "o", "g"),
        node("Mul", "o g", "h"),
        node("Add", "h x", "y"),
    ]
    return build(nodes, feeds, weights), feeds


def convolutions(dtype: int) -> tuple[bytes, dict[str, Array]]:
    """An image through a strided, a depthwise and a pointwise convolution, pooled."""
    kind = NUMPY[dtype]
    feeds = {"x": draw(1, 3, 13, 11, dtype=kind)}
    weights = {
        "w1": draw(8, 3, 3, 3, dtype=kind) / kind(5),
        "b1": draw(8, dtype=kind),
        "w2": draw(8, 1, 3, 3, dtype=kind) / kind(3),
        "w3": draw(20, 8, 1, 1, dtype=kind) / kind(3),
    }
    nodes = [
        node("Conv", "x w1 b1", "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2", pads=[1, 1, 1, 1], group=8),
        node("Add", "c2 r1", "a"),
        node("Conv", "a w3", "c3"),
        node("MaxPool", "c3", "m", kernel_shape=[3, 3], strides=[2, 2]),
        node("GlobalAveragePool", "m", "y"),
    ]
    return build(nodes, feeds, weights), feeds


def bytes_product() -> tuple[bytes, dict[str, Array]]:
    """A quantized product of 9 × 32 by 32 × 12, as QDQ."""
    rng = np.random.default_rng(0)
    feeds = {"x": draw(9, 32)}
    weights = {
        "sx": np.float32(0.03),
        "zx": np.uint8(120),
        "w": rng.integers(-127, 128, (32, 12), dtype=np.int8),
        "sw": rng.uniform(0.01, 0.02, 12).astype(np.float32),
        "zw": np.zeros(12, np.int8),
        "sy": np.float32(0.1),
        "zy": np.uint8(128),
    }
    nodes = [
        node("QuantizeLinear", "x sx zx", "xq"),
        node("DequantizeLinear", "xq sx zx", "xd"),
        node("DequantizeLinear", "w sw zw", "wd", axis=1),
        node("MatMul", "xd wd", "m"),
        node("QuantizeLinear", "m sy zy", "yq"),
        node("DequantizeLinear", "yq sy zy", "y"),
    ]
    return build(nodes, feeds, weights), feeds


def bytes_network() -> tuple[bytes, dict[str, Array]]:
    """A quantized network of two convolutions, one of three channels, and a product, as QDQ."""
    rng = np.random.default_rng(1)
    feeds = {"x": draw(1, 3, 13, 11)}
    weights: dict[str, Any] = {"zero": np.uint8(128), "nil": np.int8(0)}
    sizes = {"w1": (21, 3, 3, 3), "w2": (18, 21, 3, 2), "w3": (18, 10)}
    for name, size in sizes.items():
        weights[name] = rng.integers(-127, 128, size, dtype=np.int8)
    for name, scale in {"sx": 0.03, "s1": 0.02, "s2": 0.05, "s3": 0.01}.items():
        weights[name] = np.float32(scale)
    nodes, value = [], "x"
    steps = [
        ("Conv", "w1", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Conv", "w2", {"pads": [1, 0, 1, 1]}),
        ("MatMul", "w3", {}),
    ]
    for number, (kind, weight, attributes) in enumerate(steps):
        if kind == "MatMul":
            nodes += [
                node("GlobalAveragePool", value, "pooled"),
                node("Flatten", "pooled", "flat"),
            ]
            value = "flat"
        nodes += [
            node("QuantizeLinear", f"{value} sx zero", f"q{number}"),
            node("DequantizeLinear", f"q{number} sx zero", f"d{number}"),
            node("DequantizeLinear", f"{weight} s{number + 1} nil", f"f{number}"),
            node(kind, f"d{number} f{number}", f"p{number}", **attributes),
            node("Relu", f"p{number}", f"r{number}"),
        ]
        value = f"r{number}"
    nodes.append(node("Identity", value, "y"))
    return build(nodes, feeds, weights), feeds


def halves_for_tensor_cores() -> tuple[bytes, dict[str, Array]]:
    """Batches of products with edges that no tile divides."""
    kind = np.float16
    feeds = {"x": draw(2, 70, 45, dtype=kind)}
    weights = {
        "w": draw(45, 66, dtype=kind) / kind(7),
        "b": draw(66, dtype=kind),
    }
    nodes = [
        node("MatMul", "x w", "m0"),
        node("Add", "m0 b", "m1"),
        node("Relu", "m1", "m"),
        node("Transpose", "m", "t", perm=[0, 2, 1]),
        node("MatMul", "t m", "s"),
        node("Sigmoid", "s", "y"),
    ]
    return build(nodes, feeds, weights), feeds


def halves_for_tensor_core_convolutions() -> tuple[bytes, dict[str, Array]]:
    """Two convolutions whose edges no tile divides, with a bias, a sum and an activation."""
    kind = np.float16
    feeds = {"x": draw(1, 20, 13, 11, dtype=kind)}
    weights = {
        "w1": draw(33, 20, 3, 3, dtype=kind) / kind(13),
        "b1": draw(33, dtype=kind),
        "w2": draw(33, 33, 1, 1, dtype=kind) / kind(6),
    }
    nodes = [
        node("Conv", "x w1 b1", "c1", strides=[2, 1], pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2"),
        node("Add", "c2 r1", "a"),
        node("Sigmoid", "a", "y"),
    ]
    return build(nodes, feeds, weights), feeds


def moves() -> tuple[bytes, dict[str, Array]]:
    """What is joined, padded, cut and pooled."""
    feeds = {"x": draw(1, 3, 13, 11)}
    weights: dict[str, Any] = {
        "around": np.array([0, 0, 1, 2, 0, 0, 2, 0]),
        "first": np.array([14]),
        "end": np.array([-100]),
        "row": np.array([2]),
        "step": np.array([-2]),
        "which": np.array([[1, -2], [0, 3]]),
    }
    nodes = [
        node("Relu", "x", "r"),
        node("Concat", "x r", "c", axis=1),
        node("Pad", "c around", "p", mode="constant"),
        node("Slice", "p first end row step", "s"),
        node("Gather", "s which", "g", axis=3),
        node("AveragePool", "p", "a", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0]),
        node("ReduceMax", "a", "m", axes=[2, 3], keepdims=1),
        node("ReduceMax", "g", "h", axes=[3, 4], keepdims=0),
        node("ReduceMax", "h", "i", axes=[2], keepdims=1),
        node("Unsqueeze", "i last", "j"),
        node("Add", "m j", "y"),
    ]
    weights["last"] = np.array([3])
    return build(nodes, feeds, weights), feeds


def bits() -> tuple[bytes, dict[str, Array]]:
    """What is computed on the bits of values that have no address."""
    feeds = {"x": draw(1, 3, 13, 11), "z": draw(1, 3, 13, 11)}
    weights: dict[str, Any] = {
        "around": np.array([0, 0, 1, 2, 0, 0, 2, 0]),
        "scale": np.float32(0.03),
        "middle": np.uint8(7),
        "zero": np.int64(0),
    }
    nodes = [
        node("QuantizeLinear", "x scale middle", "q"),
        node("Pad", "q around middle", "p"),
        node("DequantizeLinear", "p scale middle", "a"),
        node("Sub", "x z", "d"),
        node("IsNaN", "d", "n"),
        node("Where", "n z d", "w"),
        node("Cast", "d", "i", to=TensorProto.INT64),
        node("Max", "i zero", "k"),
        node("Cast", "k", "l", to=TensorProto.FLOAT),
        node("Add", "w l", "m"),
        node("Pad", "m around", "b"),
        node("Add", "a b", "y"),
    ]
    return build(nodes, feeds, weights), feeds


def running_sums() -> tuple[bytes, dict[str, Array]]:
    """Along rows of several pieces, from either end, and across them."""
    feeds = {"x": draw(3, 300)}
    weights: dict[str, Any] = {"across": np.array(0), "along": np.array(1)}
    nodes = [
        node("CumSum", "x along", "a"),
        node("CumSum", "x along", "b", reverse=1, exclusive=1),
        node("CumSum", "x across", "c", reverse=1),
        node("CumSum", "x across", "d", exclusive=1),
        node("Sub", "a b", "e"),
        node("Sub", "c d", "f"),
        node("Add", "e f", "y"),
    ]
    return build(nodes, feeds, weights), feeds


def recurrence() -> tuple[bytes, dict[str, Array]]:
    """A GRU of 41 units that resets before its product, over seven steps of two sequences."""
    feeds = {"x": draw(7, 2, 6)}
    weights = {
        "w": draw(1, 3 * 41, 6) / np.float32(6),
        "r": draw(1, 3 * 41, 41) / np.float32(6),
    }
    return build([node("GRU", "x w r", "y", hidden_size=41)], feeds, weights), feeds


def ranks() -> tuple[bytes, dict[str, Array]]:
    """The largest and the smallest of rows and of columns with many equal elements."""
    feeds = {"x": draw(3, 300)}
    weights: dict[str, Any] = {"few": np.array([3]), "all": np.array([300])}
    nodes = [
        node("Round", "x", "r"),
        node("TopK", "r all", "v0 p0"),
        node("TopK", "r few", "v1 p1", largest=0),
        node("TopK", "r few", "v2 p2", axis=0),
    ]
    for number in range(3):
        cast = node("Cast", f"p{number}", f"f{number}", to=FLOAT)
        nodes += [cast, node("Add", f"f{number} v{number}", f"s{number}")]
    nodes += [
        node("ReduceSum", "s1 last", "t1", keepdims=1),
        node("Mul", "s0 s2", "m"),
        node("Add", "m t1", "y"),
    ]
    weights["last"] = np.array([1])
    return build(nodes, feeds, weights), feeds


ALL = (
    partial(transformer, FLOAT),
    partial(transformer, HALF),
    partial(convolutions, FLOAT),
    partial(convolutions, HALF),
    bytes_product,
    bytes_network,
    halves_for_tensor_cores,
    halves_for_tensor_core_convolutions,
    moves,
    bits,
    running_sums,
    recurrence,
    ranks,
)
"""All of them."""
