"""Quantized operators against ONNX Runtime: exact wherever integers decide the result."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_contrib import MICROSOFT, Case, check, compare, compiled
from frontend_reference import benchmark_model, imported, run_onnxruntime
from onnxruntime import quantization
from onnxruntime.quantization import QuantFormat, QuantType

import graphopt

RNG = np.random.default_rng(11)


def whole(dtype: str, *shape: int) -> np.ndarray:
    bounds = np.iinfo(dtype)
    return RNG.integers(bounds.min, bounds.max + 1, shape).astype(dtype)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def scales(*shape: int) -> np.ndarray:
    return (RNG.random(shape) * 0.01 + 0.001).astype(np.float32)


def point(value: int, dtype: str) -> np.ndarray:
    return np.array(value, dtype)


S = np.float32


def conv(x: str, w: str, data, weight, scale, zero, attrs, const, **more) -> Case:
    inputs = [data, S(0.02), point(7, x), weight, scale, zero, S(0.4), point(11, x)]
    if more.pop("bias", False):
        inputs.append(whole("int8", weight.shape[0]).astype(np.int32))
    domain = more.pop("domain", "")
    return Case("QLinearConv", inputs, attrs, const, domain=domain, **more)


def convolutions() -> list[Case]:
    fixed = tuple(range(1, 9))
    cases = []
    for x, w in (("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")):
        image, weight = whole(x, 2, 3, 9, 11), whole(w, 5, 3, 3, 3)
        same = {"pads": [1, 1, 1, 1]}
        odd = {"pads": [1, 0, 1, 2], "strides": [2, 2]}
        cases.append(conv(x, w, image, weight, S(0.01), point(3, w), same, fixed, bias=True))
        cases.append(conv(x, w, image, weight, S(0.01), point(3, w), odd, ()))
    u, i = "uint8", "int8"

    def per(count: int) -> tuple[np.ndarray, np.ndarray]:
        return scales(count), np.zeros(count, np.int8)

    attrs = {"group": 4, "dilations": [2, 1]}
    cases.append(conv(u, i, whole(u, 2, 4, 9, 11), whole(i, 8, 1, 3, 3), *per(8), attrs, fixed))
    attrs = {"group": 2, "pads": [1, 1, 1, 1]}
    cases.append(conv(u, i, whole(u, 1, 40, 9, 14), whole(i, 70, 20, 3, 3), *per(70), attrs, fixed))
    attrs = {"auto_pad": "SAME_UPPER"}
    cases.append(conv(u, i, whole(u, 2, 4, 9), whole(i, 8, 4, 3), *per(8), attrs, fixed))
    attrs = {"pads": [1, 0, 1, 1, 0, 1]}
    cases.append(
        conv(u, i, whole(u, 1, 4, 5, 6, 7), whole(i, 8, 4, 3, 2, 3), *per(8), attrs, fixed)
    )
    nhwc = {"channels_last": 1}
    cases.append(
        conv(
            u,
            i,
            whole(u, 1, 9, 11, 4),
            whole(i, 8, 4, 3, 3),
            *per(8),
            nhwc,
            fixed,
            domain=MICROSOFT,
        )
    )
    return cases


PRODUCTS = [
    Case(
        "QLinearMatMul",
        [
            whole("uint8", 2, 7, 33),
            S(0.02),
            point(7, "uint8"),
            whole("int8", 33, 19),
            scales(19),
            np.zeros(19, np.int8),
            S(0.4),
            point(11, "uint8"),
        ],
        const=range(1, 8),
        domain="",
    ),
    Case(
        "QLinearMatMul",
        [
            whole("int8", 7, 33),
            S(0.02),
            point(7, "int8"),
            whole("int8", 33, 19),
            S(0.01),
            point(-3, "int8"),
            S(0.4),
            point(11, "int8"),
        ],
        domain="",
    ),
    Case(
        "ConvInteger",
        [whole("uint8", 2, 3, 9, 11), whole("int8", 5, 3, 3, 3), point(9, "uint8")],
        {"pads": [1, 1, 1, 1]},
        (1, 2),
        domain="",
    ),
    Case("ConvInteger", [whole("uint8", 1, 2, 5, 5), whole("uint8", 3, 2, 3, 3)], domain=""),
    Case(
        "MatMulInteger",
        [whole("uint8", 2, 9, 11), whole("int8", 11, 5), point(9, "uint8"), whole("int8", 5)],
        const=(1, 2, 3),
        domain="",
    ),
    Case(
        "MatMulInteger",
        [whole("int8", 2, 9, 11), whole("int8", 2, 11, 5), point(9, "int8")],
        domain="",
    ),
    Case("MatMulInteger", [whole("uint8", 11), whole("uint8", 11, 5)], domain=""),
    Case(
        "MatMulIntegerToFloat",
        [
            whole("uint8", 2, 9, 32),
            whole("uint8", 32, 8),
            S(0.1),
            scales(8),
            point(128, "uint8"),
            whole("uint8", 8),
            f32(8),
        ],
        const=range(1, 7),
    ),
    Case(
        "DynamicQuantizeMatMul",
        [f32(3, 4, 10), whole("uint8", 10, 7), scales(7), whole("uint8", 7), f32(7)],
        const=(1, 2, 3, 4),
    ),
    Case(
        "QGemm",
        [
            whole("uint8", 6, 10),
            S(0.05),
            point(120, "uint8"),
            whole("int8", 7, 10),
            S(0.02),
            point(0, "int8"),
            whole("int8", 7).astype(np.int32),
            S(0.3),
            point(100, "uint8"),
        ],
        {"transB": 1, "alpha": 0.5},
        range(1, 9),
    ),
    Case(
        "QGemm",
        [
            whole("uint8", 6, 10),
            S(0.05),
            point(120, "uint8"),
            whole("int8", 10, 7),
            scales(7),
            np.zeros(7, np.int8),
        ],
        const=range(1, 6),
    ),
]


@pytest.mark.parametrize("case", [*convolutions(), *PRODUCTS], ids=str)
def test_products_are_exact(case):
    check(case)


X = f32(4, 6, 8) * 100
ODD = np.array([np.nan, np.inf, -np.inf, 1e30, -0.0, 2.5, 3.5, -2.5], np.float32)

LINEAR = [
    *(Case("QuantizeLinear", [X, S(0.7), point(3, t)]) for t in ("uint8", "int8")),
    *(Case("QuantizeLinear", [X, S(0.7), point(3, t)]) for t in ("uint16", "int16")),
    *(Case("DequantizeLinear", [whole(t, 4, 6), S(0.7), point(3, t)]) for t in ("uint8", "int8")),
    *(Case("DequantizeLinear", [whole(t, 4, 6), S(0.7), point(3, t)]) for t in ("uint16", "int16")),
    Case("QuantizeLinear", [ODD, S(1), point(3, "uint8")]),
    Case("QuantizeLinear", [ODD, S(1), point(3, "int8")]),
    Case("QuantizeLinear", [X, scales(6) * 99, whole("uint8", 6)], {"axis": 1}),
    Case(
        "QuantizeLinear",
        [X, scales(4, 3, 8) * 99, whole("uint8", 4, 3, 8)],
        {"axis": 1, "block_size": 2},
    ),
    Case(
        "QuantizeLinear",
        [X, scales(4, 2, 8) * 99, whole("uint8", 4, 2, 8)],
        {"axis": -2, "block_size": 4},
    ),
    Case("DequantizeLinear", [whole("int8", 4, 6), np.float16(0.7), point(3, "int8")]),
    Case("DequantizeLinear", [whole("int32", 4, 6), S(0.7)]),
    Case("DequantizeLinear", [whole("int8", 4, 8), scales(4, 2)], {"axis": 1, "block_size": 4}),
    Case(
        "DequantizeLinear",
        [whole("int8", 4, 8), scales(4, 3)],
        {"axis": 1, "block_size": 3},
        const=(1,),
    ),
]


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_quantize_and_dequantize(case):
    case.domain, case.opset, case.tolerance = "", 21, 0
    check(case)


def test_the_quotient_of_halves_is_a_half():
    # ONNX divides in the type of the scale; ONNX Runtime in float32, which rounds otherwise.
    x, scale = (f32(64) * 100).astype(np.float16), np.float16(0.7)
    case = Case("QuantizeLinear", [x, scale, point(3, "uint8")], domain="", opset=21)
    quotient = (x / scale).astype(np.float32)
    want = np.clip(np.rint(quotient) + 3, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(compiled(case)["y0"], want)


@pytest.mark.parametrize("data", [f32(3, 4, 5) * 3, np.abs(f32(7)), np.zeros((2, 3), np.float32)])
def test_dynamic_quantization(data):
    # The span is multiplied by 1/255: the last bit of the scale may differ.
    case = Case("DynamicQuantizeLinear", [data], outputs=(0, 1, 2), domain="", tolerance=2e-7)
    check(case)


def binary(op: str, dtype: str, steps: int) -> Case:
    a, b = whole(dtype, 2, 3, 5, 7), whole(dtype, 3, 1, 1)
    inputs = [a, S(0.02), point(5, dtype), b, S(0.03), point(4, dtype), S(0.05), point(9, dtype)]
    return Case(op, inputs, const=(1, 2, 4, 5, 6, 7), steps=steps)


def unary(op: str, data: np.ndarray, attrs: dict | None = None) -> Case:
    zero = point(5, str(data.dtype))
    inputs = [data, S(0.03), zero, S(0.01), point(0, str(data.dtype))]
    return Case(op, inputs, attrs or {}, (1, 2, 3, 4))


PIXELS = whole("uint8", 2, 3, 8, 9)
ELEMENTWISE = [
    # ONNX Runtime multiplies by a product of scales that is rounded once more.
    *(binary(op, t, 1) for op in ("QLinearAdd", "QLinearMul") for t in ("uint8", "int8")),
    *(
        unary(op, whole(t, 60))
        for op in ("QLinearSigmoid", "QLinearLeakyRelu")
        for t in ("uint8", "int8")
    ),
    unary("QLinearSoftmax", whole("uint8", 2, 3, 8), {"opset": 13, "axis": -1}),
    unary("QLinearSoftmax", whole("uint8", 2, 3, 8), {"opset": 11, "axis": 1}),
    unary(
        "QLinearAveragePool", PIXELS, {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}
    ),
    unary("QLinearAveragePool", PIXELS, {"kernel_shape": [3, 3], "channels_last": 1}),
    unary("QLinearGlobalAveragePool", PIXELS),
    unary("QLinearGlobalAveragePool", PIXELS, {"channels_last": 1}),
    Case(
        "QLinearConcat",
        [
            S(0.05),
            point(3, "uint8"),
            whole("uint8", 2, 3, 4),
            S(0.03),
            point(1, "uint8"),
            whole("uint8", 2, 5, 4),
            S(0.05),
            point(9, "uint8"),
        ],
        {"axis": 1},
        (0, 1, 3, 4, 6, 7),
    ),
    Case(
        "QLinearWhere",
        [
            RNG.integers(0, 2, (2, 3)).astype(bool),
            whole("uint8", 2, 3),
            S(0.03),
            point(1, "uint8"),
            whole("uint8", 2, 3),
            S(0.05),
            point(9, "uint8"),
            S(0.05),
            point(3, "uint8"),
        ],
        const=(2, 3, 5, 6, 7, 8),
    ),
]


@pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
def test_operators_between_dequantization_and_quantization(case):
    check(case)


def test_reduced_mean_of_codes():
    # ONNX Runtime defines the operator but has no kernel for it.
    data = whole("uint8", 2, 3, 4)
    case = unary("QLinearReduceMean", data, {"axes": [1], "keepdims": 0})
    mean = ((data.astype("f4") - 5) * S(0.03)).mean(axis=1)
    want = np.clip(np.rint(mean / S(0.01)), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(compiled(case)["y0"], want)


def small_network() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Convolutions, a depthwise one, a residual, pooling and a product."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w0", "b0"], ["a"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1, 1, 1, 1], group=8),
        onnx.helper.make_node("Add", ["b", "c"], ["d"]),
        onnx.helper.make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        onnx.helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        onnx.helper.make_node("Flatten", ["f"], ["g"]),
        onnx.helper.make_node("MatMul", ["g", "w2"], ["y"]),
    ]
    weights = {"w0": f32(8, 3, 3, 3), "b0": f32(8), "w1": f32(8, 1, 3, 3), "w2": f32(8, 10)}
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, (1, 3, 12, 12))],
        [onnx.helper.make_tensor_value_info("y", 1, (1, 10))],
        [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    imports = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=9), {
        "x": f32(1, 3, 12, 12)
    }


class Batches(quantization.CalibrationDataReader):
    def __init__(self, feeds: dict[str, np.ndarray]) -> None:
        self.left = [feeds]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def quantized(model, feeds, form, activations, weights, per_channel) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "m.onnx", Path(folder) / "q.onnx"
        onnx.save(model, source)
        quantization.quantize_static(
            source,
            target,
            Batches(feeds),
            quant_format=form,
            activation_type=activations,
            weight_type=weights,
            per_channel=per_channel,
        )
        return onnx.load(target)


SCHEMES = [
    (QuantType.QUInt8, QuantType.QInt8, True),
    (QuantType.QInt8, QuantType.QInt8, False),
    (QuantType.QUInt8, QuantType.QUInt8, False),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=str)
def test_networks_that_onnxruntime_quantized(form, scheme):
    model, feeds = small_network()
    model = quantized(model, feeds, form, *scheme)
    want = run_onnxruntime(model.SerializeToString(), feeds)
    got = graphopt.compile(model).run(feeds)
    # With Q/DQ pairs both compute in floats, whose sums in another order may round to the next
    # code; the codes of the output are the largest value's 256th part.
    compare(got, want, 1 / 128 if form == QuantFormat.QDQ else 1e-6)


def test_dynamically_quantized_network():
    model, feeds = small_network()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "m.onnx", Path(folder) / "q.onnx"
        onnx.save(model, source)
        quantization.quantize_dynamic(source, target)
        model = onnx.load(target)
    want = run_onnxruntime(model.SerializeToString(), feeds)
    compare(graphopt.compile(model).run(feeds), want, 1e-2)


def test_long_chains_of_pairs_compile():
    # Each pair is a group of nested variables; TVM's analysis is exponential in their depth.
    nodes, last = [], "x"
    for i in range(11):
        nodes.append(onnx.helper.make_node("QuantizeLinear", [last, "s", "z"], [f"q{i}"]))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"d{i}"]))
        nodes.append(onnx.helper.make_node("Mul", [f"d{i}", f"d{i}"], [f"m{i}"]))
        last = f"m{i}"
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, (3, 40))],
        [onnx.helper.make_tensor_value_info(last, 1, (3, 40))],
        [
            onnx.numpy_helper.from_array(np.float32(1 / 64), "s"),
            onnx.numpy_helper.from_array(np.uint8(10), "z"),
        ],
    )
    imports = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=9)
    feeds = {"x": RNG.random((3, 40)).astype(np.float32) * 2}
    want = run_onnxruntime(model.SerializeToString(), feeds)
    compare(graphopt.compile(model).run(feeds), want, 0)


def test_integers_stay_integers_in_the_graph():
    model, feeds = small_network()
    model = quantized(model, feeds, QuantFormat.QOperator, *SCHEMES[0])
    text = imported(model).module.script()
    assert "graphopt.conv_integer" in text
    assert "graphopt.requantize" in text
    assert "nn.conv2d" not in text


def test_squeezenet_by_onnxruntime_is_equal():
    model = benchmark_model("squeezenet1_1")
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    feeds = {model.graph.input[0].name: f32(*shape)}
    model = quantized(model, feeds, QuantFormat.QOperator, *SCHEMES[0])
    want = run_onnxruntime(model.SerializeToString(), feeds)
    # All but the mean at the end is integers.
    compare(graphopt.compile(model).run(feeds), want, 1e-6)
