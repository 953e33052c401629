"""Every form of fused integer operator, as a small QDQ model with scales calibrated to its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

OPSET = 21
IR_VERSION = 10


@dataclass(frozen=True)
class Form:
    """One form: what stands between dequantized inputs and the quantized result y.

    text: nodes in ONNX's text form. inputs: shapes of activations. weights: shape and the axis with
    a scale per element. biases: lengths; quantized by the scales of x and the first weight.
    numbers: constants that stay floats; integers are constants of int64. float_sums: of numbers
    that are no integers: their order, which the length of vectors decides, shows in the last bits.
    """

    text: str
    inputs: Mapping[str, tuple[int, ...]]
    weights: Mapping[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    biases: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    integers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    float_sums: bool = False


IMAGE = {"x": (1, 32, 40, 40)}
SQUARE = {"w": ((48, 32, 3, 3), 0)}
BIAS = {"b": 48}
CONV = "a = Conv<pads=[1,1,1,1]>(x, w, b)"


def _conv(behind: str, **more: Any) -> Form:
    return Form(f"{CONV} {behind}", IMAGE | more.pop("inputs", {}), SQUARE, BIAS, **more)


def _only(text: str, *, two: bool = False, **more: Any) -> Form:
    shape = (1, 32, 64, 64)
    return Form(text, {"x": shape, "r": shape} if two else {"x": shape}, **more)


FORMS: Mapping[str, Form] = {
    "conv": Form("y = Conv<pads=[1,1,1,1]>(x, w, b)", IMAGE, SQUARE, BIAS),
    "conv, no bias": Form("y = Conv<pads=[1,1,1,1]>(x, w)", IMAGE, SQUARE),
    "conv 1×1": Form("y = Conv(x, w, b)", IMAGE, {"w": ((64, 32, 1, 1), 0)}, {"b": 64}),
    "conv of 3 channels": Form(
        "y = Conv<strides=[2,2],pads=[3,3,3,3]>(x, w, b)",
        {"x": (1, 3, 96, 96)},
        {"w": ((48, 3, 7, 7), 0)},
        BIAS,
    ),
    "conv, strided and dilated": Form(
        "y = Conv<strides=[2,1],dilations=[1,2],pads=[1,2,1,2]>(x, w, b)", IMAGE, SQUARE, BIAS
    ),
    "conv, groups of 4": Form(
        "y = Conv<group=8,pads=[1,1,1,1]>(x, w)", IMAGE, {"w": ((64, 4, 3, 3), 0)}
    ),
    "conv, groups of 24": Form(
        "y = Conv<group=4,pads=[1,1,1,1]>(x, w)", {"x": (1, 96, 28, 28)}, {"w": ((96, 24, 3, 3), 0)}
    ),
    "depthwise": Form(
        "y = Conv<group=32,pads=[1,1,1,1]>(x, w, b)",
        {"x": (2, 32, 40, 40)},
        {"w": ((32, 1, 3, 3), 0)},
        {"b": 32},
    ),
    "depthwise, multiplied": Form(
        "y = Conv<group=32,pads=[2,2,2,2]>(x, w)", IMAGE, {"w": ((64, 1, 5, 5), 0)}
    ),
    "conv of one axis": Form(
        "y = Conv<pads=[2,2]>(x, w, b)", {"x": (2, 32, 1000)}, {"w": ((48, 32, 5), 0)}, BIAS
    ),
    "conv of three axes": Form(
        "y = Conv<pads=[1,1,1,1,1,1]>(x, w, b)",
        {"x": (1, 16, 8, 16, 16)},
        {"w": ((48, 16, 3, 3, 3), 0)},
        BIAS,
    ),
    "transposed conv": Form(
        "y = ConvTranspose<strides=[2,2]>(x, w)", {"x": (1, 32, 20, 20)}, {"w": ((32, 48, 2, 2), 1)}
    ),
    "conv, relu": _conv("y = Relu(a)"),
    "conv, clip": _conv("y = Clip(a, low, high)", numbers={"low": (), "high": ()}),
    "conv, leaky relu": _conv("y = LeakyRelu<alpha=0.1>(a)"),
    "conv, prelu": _conv("y = PRelu(a, s)", numbers={"s": (48, 1, 1)}),
    "conv, sigmoid": _conv("y = Sigmoid(a)"),
    "conv, silu": _conv("s = Sigmoid(a) y = Mul(a, s)"),
    "conv, hard swish": _conv("y = HardSwish(a)"),
    "conv, tanh": _conv("y = Tanh(a)"),
    "conv, gelu": _conv("y = Gelu(a)"),
    "conv, normalisation": _conv(
        "y = BatchNormalization(a, g, h, m, v)",
        numbers={"g": (48,), "h": (48,), "m": (48,), "v": (48,)},
    ),
    "conv, residual": _conv("y = Add(a, r)", inputs={"r": (1, 48, 40, 40)}),
    "conv, residual, relu": _conv("c = Add(a, r) y = Relu(c)", inputs={"r": (1, 48, 40, 40)}),
    "matmul": Form("y = MatMul(x, w)", {"x": (400, 128)}, {"w": ((128, 192), 1)}),
    "matmul, bias, gelu": Form(
        "a = MatMul(x, w) c = Add(a, s) y = Gelu(c)",
        {"x": (400, 128)},
        {"w": ((128, 192), 1)},
        numbers={"s": (192,)},
    ),
    "gemm": Form(
        "y = Gemm<transB=1>(x, w, b)", {"x": (400, 128)}, {"w": ((192, 128), 0)}, {"b": 192}
    ),
    "matmul of activations": Form("y = MatMul(x, r)", {"x": (8, 100, 64), "r": (8, 64, 100)}),
    "add": _only("y = Add(x, r)", two=True),
    "subtract": _only("y = Sub(x, r)", two=True),
    "multiply": _only("y = Mul(x, r)", two=True),
    "add, relu": _only("a = Add(x, r) y = Relu(a)", two=True),
    "concat": _only("y = Concat<axis=1>(x, r)", two=True),
    "max pool": _only("y = MaxPool<kernel_shape=[3,3],strides=[1,1],pads=[1,1,1,1]>(x)"),
    "average pool": _only("y = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(x)"),
    "global average": Form("y = GlobalAveragePool(x)", {"x": (16, 512, 7, 7)}),
    "mean": Form(
        "y = ReduceMean<keepdims=0>(x, axes)", {"x": (64, 49, 256)}, integers={"axes": (1,)}
    ),
    "resize, linear": _only('y = Resize<mode="linear">(x, , f)', numbers={"f": (4,)}),
    "resize, nearest": _only('y = Resize<mode="nearest">(x, , f)', numbers={"f": (4,)}),
    "sigmoid": _only("y = Sigmoid(x)"),
    "hard swish": _only("y = HardSwish(x)"),
    "gelu": _only("y = Gelu(x)"),
    "softmax": Form("y = Softmax(x)", {"x": (200, 500)}, float_sums=True),
    "layer normalisation": Form(
        "y = LayerNormalization(x, g, h)",
        {"x": (400, 256)},
        numbers={"g": (256,), "h": (256,)},
        float_sums=True,
    ),
}


@dataclass(frozen=True)
class Case:
    """A quantized model, and codes for its inputs."""

    model: onnx.ModelProto
    feeds: Mapping[str, Array]


def _constants(form: Form, rng: np.random.Generator) -> dict[str, Array]:
    """Numbers of the form's constants."""
    found: dict[str, Array] = {"low": np.float32(0), "high": np.float32(1.1)}
    found["f"] = np.array([1, 1, 2, 2], np.float32)
    for name, shape in form.numbers.items():
        if name not in found:
            found[name] = rng.uniform(0.3, 1.2, shape).astype(np.float32)
    return {name: found[name] for name in form.numbers}


def _scale(values: Array) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of uint8 for the range of values, and 0."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = np.float32((high - low) / 255)
    return scale, np.uint8(np.clip(round(-low / float(scale)), 0, 255))


def reference(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    """The first output by ONNX Runtime without optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return np.asarray(ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)[0])


def build(form: Form, seed: int) -> Case:
    """The form with random weights and data, and scales of their ranges."""
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.5, 3)
    data = {n: rng.normal(rng.uniform(-0.5, 0.5), spread, s) for n, s in form.inputs.items()}
    scales = {name: _scale(values) for name, values in data.items()}
    feeds = {}
    for name, values in data.items():
        codes = np.rint(values / scales[name][0]) + scales[name][1]
        feeds[f"{name}_codes"] = np.clip(codes, 0, 255).astype(np.uint8)
    head: list[onnx.NodeProto] = []
    held: dict[str, Array] = _constants(form, rng)
    held |= {name: np.asarray(v, np.int64) for name, v in form.integers.items()}

    def dequantize(source: str, name: str, scale: Array, zero: Array, **attrs: int) -> None:
        held[f"{name}_scale"], held[f"{name}_zero"] = np.asarray(scale), np.asarray(zero)
        names = [source, f"{name}_scale", f"{name}_zero"]
        head.append(helper.make_node("DequantizeLinear", names, [name], **attrs))

    for name, (scale, zero) in scales.items():
        dequantize(f"{name}_codes", name, np.asarray(scale), np.asarray(zero))
    unit = np.ones(1, np.float32)
    for name, (shape, axis) in form.weights.items():
        others = tuple(i for i in range(len(shape)) if i != axis)
        deviation = 1 / np.sqrt(np.prod(shape) / shape[axis]) / spread
        values = rng.standard_normal(shape) * deviation
        unit = (np.abs(values).max(others) / 127).astype(np.float32)
        wide = unit.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        held[f"{name}_codes"] = np.rint(values / wide).astype(np.int8)
        dequantize(f"{name}_codes", name, unit, np.zeros(shape[axis], np.int8), axis=axis)
    for name, count in form.biases.items():
        step = scales["x"][0] * unit
        held[f"{name}_codes"] = np.rint(rng.normal(0, 0.5, count) / step).astype(np.int32)
        dequantize(f"{name}_codes", name, step, np.zeros(count, np.int32), axis=0)
    graph = onnx.parser.parse_graph(f"form (float[1] x) => (float y) {{ {form.text} }}")
    body = [*head, *graph.node]
    result = reference(_model(body, held, form, "y", TensorProto.FLOAT), feeds)
    held["y_scale"], held["y_zero"] = map(np.asarray, _scale(result))
    quantize = helper.make_node("QuantizeLinear", ["y", "y_scale", "y_zero"], ["codes"])
    return Case(_model([*body, quantize], held, form, "codes", TensorProto.UINT8), feeds)


def _model(
    nodes: list[onnx.NodeProto], held: Mapping[str, Array], form: Form, output: str, kind: int
) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(f"{name}_codes", TensorProto.UINT8, shape)
        for name, shape in form.inputs.items()
    ]
    outputs = [helper.make_tensor_value_info(output, kind, None)]
    constants = [numpy_helper.from_array(array, name) for name, array in held.items()]
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
    graph = helper.make_graph(nodes, "form", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
