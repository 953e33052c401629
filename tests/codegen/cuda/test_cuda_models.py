"""Whole models as CUDA programs match ONNX Runtime, in every order of threads, without races."""

from __future__ import annotations

from typing import Any

import numpy as np
import on_gpu
import onnx
import onnxruntime as ort
import pytest
from gpu_process import Gpu
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


def expected(model: bytes, feeds: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def check(gpu: Gpu, model: bytes, feeds: dict[str, Array], limit: float, orders: int = 3) -> None:
    """Assert the relative error of each output: max|y − ref| / max|ref|."""
    wanted = expected(model, feeds)
    for order in gpu.orders[:orders]:
        found = gpu.ordered(order, on_gpu.run_model, model, feeds)
        for name, reference in wanted.items():
            assert found[name].dtype == reference.dtype
            error = np.abs(found[name].astype(np.float64) - reference).max()
            assert error <= limit * np.abs(reference.astype(np.float64)).max(), (order, name)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


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


def test_a_small_network(gpu: Gpu, tiny_cnn: onnx.ModelProto) -> None:
    feeds = {"x": draw(1, 3, 12, 12)}
    check(gpu, tiny_cnn.SerializeToString(), feeds, 1e-5)


def test_convolutions(gpu: Gpu) -> None:
    check(gpu, *convolutions(FLOAT), 1e-5)


def test_attention(gpu: Gpu) -> None:
    check(gpu, *transformer(FLOAT), 1e-5)


def test_halves(gpu: Gpu) -> None:
    check(gpu, *convolutions(HALF), 4e-3, orders=1)
    check(gpu, *transformer(HALF), 4e-3, orders=1)


def test_bytes_are_exact(gpu: Gpu) -> None:
    """But for values on the border between two steps, which float32 may round to either."""
    model, feeds = bytes_product()
    (wanted,) = expected(model, feeds).values()
    (found,) = gpu.call(on_gpu.run_model, model, feeds).values()
    steps = np.abs(found - wanted) / 0.1
    assert steps.max() < 1.01
    assert (steps > 0.5).mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn_bn", "bilstm"])
def test_models_of_the_benchmark(gpu: Gpu, name: str) -> None:
    from pathlib import Path

    path = Path(__file__).parents[3] / "benchmarks" / "models" / f"{name}.onnx"
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {
        i.name: draw(*[d if isinstance(d, int) else 1 for d in i.shape])
        for i in session.get_inputs()
    }
    check(gpu, path.read_bytes(), feeds, 1e-4, orders=1)
