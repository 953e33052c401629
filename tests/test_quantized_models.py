"""Quantized ONNX graphs from end to end: integer kernels, one for each fused operator.

The reference is ONNX Runtime without optimisations. Rounding may differ by one step where the
number is within the last bits of a tie. Scales here have no small common multiples, as calibrated
ones have none: else ties are everywhere, and the order of float operations decides each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import graphopt


@dataclass
class Net:
    """Nodes of a graph in the making, with its constants."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    nodes: list = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def node(self, kind: str, *inputs: str, **attrs) -> str:
        """A node's first output."""
        name = f"{kind}_{len(self.nodes)}"
        domain = attrs.pop("domain", None)
        self.nodes.append(helper.make_node(kind, inputs, [name], name, domain=domain, **attrs))
        return name

    def constant(self, array) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def parameters(self, scale, zero, dtype: str) -> tuple[str, str]:
        return self.constant(np.float32(scale)), self.constant(np.asarray(zero, dtype))

    def q(self, x: str, scale=0.0517, zero=9, dtype="uint8", **attrs) -> str:
        return self.node("QuantizeLinear", x, *self.parameters(scale, zero, dtype), **attrs)

    def dq(self, x: str, scale=0.0213, zero=7, dtype="uint8", **attrs) -> str:
        return self.node("DequantizeLinear", x, *self.parameters(scale, zero, dtype), **attrs)

    def weight(self, *shape: int, axis: int | None = 0, zero=0, dtype="int8") -> str:
        """A dequantized constant, with a scale for each element of `axis`."""
        bounds = np.iinfo(dtype)
        values = self.rng.integers(max(bounds.min, zero - 127), bounds.max + 1, shape)
        count = () if axis is None else (shape[axis],)
        scale = self.rng.uniform(0.001, 0.003, count).astype(np.float32)
        points = np.full(count, zero)
        attrs = {} if axis is None else {"axis": axis}
        return self.dq(self.constant(values.astype(dtype)), scale, points, dtype, **attrs)

    def conv(self, x: str, *shape: int, bias: bool = True, **attrs) -> str:
        weight = self.weight(*shape)
        if not bias:
            return self.node("Conv", x, weight, **attrs)
        scale = self.constants[self.nodes[-1].input[1]] * np.float32(0.0213)
        steps = self.rng.integers(-3000, 3000, shape[0]).astype(np.int32)
        points = np.zeros(shape[0], np.int32)
        names = [self.constant(a) for a in (steps, scale, points)]
        return self.node("Conv", x, weight, self.node("DequantizeLinear", *names, axis=0), **attrs)

    def model(self, inputs: dict, outputs: dict, opset: int = 21) -> onnx.ModelProto:
        """Inputs and outputs: name → (element type, shape)."""
        types = {"u": "uint8", "i": "int8", "f": "float32"}

        def info(name, spec):
            code = helper.np_dtype_to_tensor_dtype(np.dtype(types.get(spec[0], spec[0])))
            return helper.make_tensor_value_info(name, code, spec[1])

        graph = helper.make_graph(
            self.nodes,
            "quantized",
            [info(*item) for item in inputs.items()],
            [info(*item) for item in outputs.items()],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def random_feeds(model: onnx.ModelProto, seed: int = 3) -> dict[str, np.ndarray]:
    rng, feeds = np.random.default_rng(seed), {}
    for value in model.graph.input:
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if dtype.kind == "f":
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            bounds = np.iinfo(dtype)
            feeds[value.name] = rng.integers(bounds.min, bounds.max + 1, shape).astype(dtype)
    return feeds


def reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def check(model: onnx.ModelProto, tolerance: float = 1e-5) -> graphopt.Report:
    """Compare with the reference: one step at most in a thousandth of the elements."""
    feeds = random_feeds(model)
    wanted, compiled = reference(model, feeds), graphopt.compile(model, threads=1)
    found = compiled.run(feeds)
    assert list(found) == list(wanted)
    for name, want in wanted.items():
        have = found[name]
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        gap = np.abs(have.astype(np.float64) - want)
        if want.dtype.kind == "f":
            assert gap.max() <= tolerance * np.abs(want).max()
        else:
            assert gap.max() <= 1
            assert np.mean(gap > 0) <= 1e-3
            assert len(np.unique(want)) > 10, "the test says nothing"
    return compiled.report


def families(report: graphopt.Report) -> list[str]:
    """What kernels are called, without their variants, and without changes of layout at the ends,
    of which there may be some on one machine and none on another."""
    kinds = [row.candidate.split("[")[0].split(".")[0] for row in report.calls]
    return [kind for kind in kinds if kind != "layout_change"]


IMAGE = {"x": ("u", (2, 8, 9, 10))}


def chain(body: Callable[[Net, str], str], inputs: dict, shape: tuple[int, ...]) -> Callable:
    """The model of body(net, "x dequantized"), quantized as uint8 `shape`."""

    def build() -> onnx.ModelProto:
        net = Net()
        last = net.q(body(net, net.dq("x")))
        net.nodes[-1].output[0] = "y"
        assert last
        return net.model(inputs, {"y": ("u", shape)})

    return build


def hard_swish(net: Net, x: str) -> str:
    return net.node("HardSwish", x)


def silu(net: Net, x: str) -> str:
    return net.node("Mul", x, net.node("Sigmoid", x))


def clip6(net: Net, x: str) -> str:
    bounds = (net.constant(np.float32(b)) for b in (0, 6))
    return net.node("Clip", x, *bounds)


def paired_silu(net: Net, x: str) -> str:
    """As exporters quantize it: before the sigmoid, behind it and behind the product."""
    x = net.dq(net.q(x, 0.0391, 100), 0.0391, 100)
    return net.node("Mul", x, net.dq(net.q(net.node("Sigmoid", x), 1 / 255, 0), 1 / 255, 0))


ACTIVATIONS = {
    "none": lambda _net, x: x,
    "relu": lambda net, x: net.node("Relu", x),
    "clip": clip6,
    "leaky": lambda net, x: net.node("LeakyRelu", x, alpha=0.1),
    "hard_swish": hard_swish,
    "hard_sigmoid": lambda net, x: net.node("HardSigmoid", x),
    "silu": silu,
    "tanh": lambda net, x: net.node("Tanh", x),
    "gelu": lambda net, x: net.node("Gelu", x),
    "pairs in silu": paired_silu,
    "pair, then silu": lambda net, x: silu(net, net.dq(net.q(x, 0.0391, 100), 0.0391, 100)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_join_the_convolution(name):
    def body(net, x):
        return ACTIVATIONS[name](net, net.conv(x, 16, 8, 3, 3, pads=[1, 1, 1, 1]))

    report = check(chain(body, IMAGE, (2, 16, 9, 10))())
    assert families(report) == ["conv_integer"]
    assert report.floats == ()


def test_a_float_bias_and_two_pairs():
    def body(net, x):
        bias = net.constant(net.rng.uniform(-1, 1, 16).astype("f4"))
        return paired_silu(net, net.node("Conv", x, net.weight(16, 8, 1, 1), bias))

    assert families(check(chain(body, IMAGE, (2, 16, 9, 10))())) == ["conv_integer"]


@pytest.mark.parametrize("paired", [False, True], ids=["", "conv quantized"])
def test_a_residual_joins_the_convolution(paired):
    def body(net, x):
        y = net.conv(x, 16, 8, 3, 3, pads=[1, 1, 1, 1])
        if paired:
            y = net.dq(net.q(y, 0.0391, 100), 0.0391, 100)
        return net.node("Relu", net.node("Add", y, net.dq("r", 0.0309, 121)))

    inputs = IMAGE | {"r": ("u", (2, 16, 9, 10))}
    assert families(check(chain(body, inputs, (2, 16, 9, 10))())) == ["conv_integer"]


CONVOLUTIONS = {
    "strided": ((2, 8, 9, 10), (16, 8, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "grouped": ((2, 8, 9, 10), (16, 2, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "depthwise": ((2, 8, 9, 10), (8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    "dilated": ((2, 8, 9, 10), (16, 8, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "pointwise": ((2, 8, 9, 10), (16, 8, 1, 1), {}),
    "image": ((1, 3, 17, 19), (20, 3, 5, 3), {"pads": [2, 1, 2, 1]}),
    "sequence": ((2, 8, 30), (16, 8, 3), {"pads": [1, 1]}),
    "groups of many": ((1, 64, 5, 6), (96, 32, 3, 3), {"group": 2, "strides": [2, 1]}),
    "multiplied": ((1, 12, 9, 10), (24, 1, 3, 3), {"group": 12, "pads": [1, 1, 1, 1]}),
}


VOLUMES = {
    "cubes": ((1, 4, 6, 7, 8), (8, 4, 3, 3, 3), {"pads": [1] * 6}),
    "strided": (
        (2, 3, 6, 7, 8),
        (8, 3, 2, 3, 3),
        {"pads": [0, 1, 1, 1, 1, 0], "strides": [2, 2, 1]},
    ),
    "planes": ((1, 8, 5, 6, 7), (8, 8, 1, 3, 3), {"pads": [0, 1, 1] * 2}),
    "lines": ((1, 8, 5, 6, 7), (8, 8, 3, 1, 1), {"pads": [1, 0, 0] * 2}),
    "grouped": ((1, 8, 5, 6, 7), (16, 2, 3, 3, 3), {"group": 4}),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(name):
    """Over three axes: bytes are moved, until two are left."""
    shape, weight, attrs = VOLUMES[name]
    net = Net()
    last = net.q(net.node("Relu", net.conv(net.dq("x"), *weight, **attrs)), 0.08, 100)
    report = check(ended(net, last, {"x": ("u", shape)}))
    assert families(report).count("conv_integer") == 1
    assert report.floats == ()


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions(name, bias):
    shape, weight, attrs = CONVOLUTIONS[name]
    net = Net()
    y = net.conv(net.dq("x"), *weight, bias=bias, **attrs)
    net.q(net.node("Relu", y), 0.08, 100)
    net.nodes[-1].output[0] = "y"
    model = onnx.shape_inference.infer_shapes(net.model({"x": ("u", shape)}, {"y": ("u", None)}))
    assert families(check(model)) == ["conv_integer"]


BETWEEN = {
    "add": lambda net, x: net.node("Add", x, net.dq("r", 0.0309, 121)),
    "mul": lambda net, x: net.node("Mul", x, net.dq("r", 0.0309, 121)),
    "sigmoid": lambda net, x: net.node("Sigmoid", x),
    "silu": silu,
    "hard swish": hard_swish,
    "softmax": lambda net, x: net.node("Softmax", x, axis=1),
    "average": lambda net, x: net.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "average, strided": lambda net, x: net.node(
        "AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]
    ),
    "global average": lambda net, x: net.node("GlobalAveragePool", x),
    "mean": lambda net, x: net.node("ReduceMean", x, net.constant(np.array([2, 3]))),
    "linear": lambda net, x: net.node(
        "Resize", x, "", net.constant(np.float32([1, 1, 2, 2])), mode="linear"
    ),
    "nearest": lambda net, x: net.node(
        "Resize", x, "", net.constant(np.float32([1, 1, 2, 2])), mode="nearest"
    ),
    "layer norm": lambda net, x: net.node(
        "LayerNormalization", x, net.constant(net.rng.standard_normal(10).astype(np.float32))
    ),
    "maximum": lambda net, x: net.node(
        "MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]
    ),
    "pad": lambda net, x: net.node("Pad", x, net.constant(np.array([0, 0, 1, 2, 0, 0, 2, 1]))),
    "transpose": lambda net, x: net.node("Transpose", x, perm=[0, 2, 3, 1]),
    "concat": lambda net, x: net.node("Concat", x, net.dq("r", 0.0309, 121), axis=1),
    "slice": lambda net, x: net.node("Slice", x, *(net.constant(np.array([v])) for v in (1, 7, 1))),
}
KERNELS = {"softmax": 2, "concat": 3}


@pytest.mark.parametrize("name", BETWEEN)
def test_one_kernel_between_dequantize_and_quantize(name):
    net = Net()
    net.q(BETWEEN[name](net, net.dq("x")), 0.0247 if name != "softmax" else 0.002, 9)
    net.nodes[-1].output[0] = "y"
    inputs = dict(IMAGE)
    if any("r" in node.input for node in net.nodes):
        inputs["r"] = ("u", (2, 8, 9, 10))
    model = onnx.shape_inference.infer_shapes(net.model(inputs, {"y": ("u", None)}))
    report = check(model)
    assert len(families(report)) == KERNELS.get(name, 1), families(report)


def ended(net: Net, last: str, inputs: dict, output: str = "u") -> onnx.ModelProto:
    """The finished model, with `last` as its output y."""
    for node in net.nodes:
        if node.output[0] == last:
            node.output[0] = "y"
    return onnx.shape_inference.infer_shapes(net.model(inputs, {"y": (output, None)}))


ROWS = {"x": ("u", (5, 24))}


def gemm(net, x, **attrs):
    weight = net.weight(10, 24, axis=0)
    return net.node("Gemm", x, weight, net.constant(net.rng.uniform(-1, 1, 10).astype("f4")),
                    transB=1, **attrs)  # fmt: skip


PRODUCTS = {
    "matmul": lambda net, x: net.node("MatMul", x, net.weight(24, 10, axis=1)),
    "one scale": lambda net, x: net.node("MatMul", x, net.weight(24, 10, axis=None)),
    "gemm": gemm,
    "beta": lambda net, x: gemm(net, x, beta=0.5),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    net = Net()
    last = net.q(net.node("Relu", PRODUCTS[name](net, net.dq("x"))), 0.1, 20)
    assert families(check(ended(net, last, ROWS))) == ["matmul"]


def test_a_factor_of_a_gemm():
    """alpha is multiplied onto the dequantized weight: it stays in floats, and says so."""
    net = Net()
    model = ended(net, net.q(gemm(net, net.dq("x"), alpha=0.5), 0.1, 20), ROWS)
    check(model)


@pytest.mark.parametrize("zeros", [(0, 0), (7, 0), (0, 121), (7, 121)])
def test_products_of_activations(zeros):
    inputs = {"x": ("u", (2, 3, 24, 16)), "r": ("u", (2, 1, 16, 20))}
    net = Net()
    y = net.node("MatMul", net.dq("x", zero=zeros[0]), net.dq("r", 0.0309, zeros[1]))
    report = check(ended(net, net.q(y, 1.207, 128), inputs))
    assert report.floats == ()
    assert families(report) == ["matmul"]  # which has the zero points, too


@pytest.mark.parametrize("rows", [1, 24])
def test_keys_are_transposed_where_they_are_read(rows):
    inputs = {"x": ("u", (2, 3, rows, 16)), "r": ("u", (2, 20, 3, 16))}
    net = Net()
    keys = net.node("Transpose", net.dq("r", 0.0309, 121), perm=[0, 2, 3, 1])
    y = net.node("MatMul", net.dq("x", zero=7), keys)
    report = check(ended(net, net.q(y, 1.207, 128), inputs))
    assert families(report) == ["transpose", "matmul"]


def test_attention_between_pairs():
    net = Net()

    def head(perm):
        y = net.node("MatMul", net.dq("x", 0.02, 120), net.weight(24, 24, axis=1))
        y = net.node("Transpose", net.dq(net.q(y, 0.03, 128), 0.03, 128), perm=perm)
        return net.dq(net.q(y, 0.03, 128), 0.03, 128)

    q, k, v = head([0, 1, 2]), head([0, 2, 1]), head([0, 1, 2])
    scores = net.dq(net.q(net.node("MatMul", q, k), 0.2, 128), 0.2, 128)
    weights = net.dq(net.q(net.node("Softmax", scores), 1 / 256, 0), 1 / 256, 0)
    last = net.q(net.node("MatMul", weights, v), 0.02, 128)
    report = check(ended(net, last, {"x": ("u", (2, 12, 24))}))
    assert report.floats == ()
    assert families(report).count("matmul") == 5


def test_what_is_quantized_around_gelu_is_a_table():
    """As exporters write it: quantized inside, too."""
    net = Net()
    x = net.dq("x", 0.031, 100)
    scaled = net.node("Div", x, net.constant(np.float32(2**0.5)))
    erf = net.dq(net.q(net.node("Erf", scaled), 0.0079, 127), 0.0079, 127)
    y = net.node("Mul", x, net.node("Add", erf, net.constant(np.float32(1))))
    last = net.q(net.node("Mul", y, net.constant(np.float32(0.5))), 0.0173, 11)
    report = check(ended(net, last, {"x": ("u", (2, 30, 40))}))
    assert families(report) == ["lookup"]


def test_cheap_functions_of_bytes_are_computed():
    net = Net()
    x = net.dq("x", 0.031, 100)
    last = net.q(net.node("Relu", net.node("Mul", x, net.constant(np.float32(0.7)))), 0.0173, 11)
    report = check(ended(net, last, {"x": ("u", (2, 30, 40))}))
    assert "lookup" not in families(report)


SIGNED = {"x": ("i", (2, 8, 9, 10))}


def signed_network() -> onnx.ModelProto:
    """int8 everywhere: input, interior, pooling and output."""
    net = Net()
    pair = {"scale": 0.05, "zero": -20, "dtype": "int8"}
    y = net.conv(net.dq("x", 0.02, 3, "int8"), 16, 8, 3, 3, pads=[1, 1, 1, 1])
    y = net.node("MaxPool", net.dq(net.q(net.node("Relu", y), **pair), **pair), kernel_shape=[2, 2])
    y = net.conv(net.dq(net.q(y, **pair), **pair), 8, 16, 1, 1)
    return ended(net, net.q(y, 0.04, 10, "int8"), SIGNED, "i")


def test_signed_networks_compute_unsigned():
    report = check(signed_network())
    assert families(report) == ["elementwise", "conv_integer", "max_pool2d", "conv_integer"]
    assert report.floats == ()


def normalised(net, x):
    """Batch normalisation behind the convolution, as networks have it that were trained so."""
    y = net.conv(x, 16, 8, 3, 3, bias=False, pads=[1, 1, 1, 1])
    names = [net.constant(net.rng.uniform(0.5, 1.5, 16).astype("f4")) for _ in range(4)]
    return net.node("Relu", net.node("BatchNormalization", y, *names))


def trained(net, x):
    """The weight is a float that is quantized in the graph."""
    weight = net.constant(net.rng.uniform(-0.2, 0.2, (16, 8, 3, 3)).astype("f4"))
    scale, zero = net.constant(np.full(16, 0.002, "f4")), net.constant(np.zeros(16, "i1"))
    codes = net.node("QuantizeLinear", weight, scale, zero, axis=0)
    return net.node("Conv", x, net.node("DequantizeLinear", codes, scale, zero, axis=0))


def int4(net, x):
    """Weights of four bits."""
    codes = net.rng.integers(-8, 8, (16, 8, 3, 3)).astype(onnx.numpy_helper.to_array(
        helper.make_tensor("t", onnx.TensorProto.INT4, (1,), [0])).dtype)  # fmt: skip
    scale, zero = net.constant(np.full(16, 0.02, "f4")), net.constant(np.zeros(16, codes.dtype))
    return net.node(
        "Conv", x, net.node("DequantizeLinear", net.constant(codes), scale, zero, axis=0)
    )


def shifted(net, x):
    """Unsigned weights around 128."""
    weight = net.weight(16, 8, 3, 3, axis=None, zero=128, dtype="uint8")
    return net.node("Conv", x, weight)


def without_points(net, x):
    codes = net.constant(net.rng.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8))
    weight = net.node("DequantizeLinear", codes, net.constant(np.float32(0.002)))
    return net.node("Conv", x, weight)


@pytest.mark.parametrize("body", [normalised, trained, int4, shifted, without_points])
def test_other_ways_to_write_it(body):
    net = Net()
    last = net.q(body(net, net.dq("x")), 0.05, 60)
    report = check(ended(net, last, IMAGE))
    assert families(report) == ["conv_integer"]
    assert report.floats == ()


def long_types(net):
    return net.node("Conv", net.dq("x", 0.0002, 7, "uint16"), net.weight(16, 8, 3, 3))


def asymmetric(net):
    weight = net.weight(16, 2, 3, 3, axis=None, zero=3, dtype="uint8")
    return net.node("Conv", net.dq("x"), weight, group=4)


def across(net):
    return net.node("Conv", net.dq("x"), net.weight(16, 8, 3, 3, axis=1))


def blocks(net):
    """A scale for every four input channels."""
    codes = net.constant(net.rng.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8))
    scale = net.constant(net.rng.uniform(0.001, 0.003, (16, 2, 3, 3)).astype("f4"))
    weight = net.node("DequantizeLinear", codes, scale, axis=1, block_size=4)
    return net.node("Conv", net.dq("x"), weight)


def channels(net):
    scale = net.constant(net.rng.uniform(0.01, 0.03, 8).astype("f4"))
    data = net.node("DequantizeLinear", "x", scale, net.constant(np.zeros(8, "u1")), axis=1)
    return net.node("Conv", data, net.weight(16, 8, 3, 3))


def float_weight(net):
    weight = net.constant(net.rng.uniform(-0.2, 0.2, (16, 8, 3, 3)).astype("f4"))
    return net.node("Conv", net.dq("x"), weight)


def float_data(net):
    return net.node("Conv", net.node("Exp", net.dq("x")), net.weight(16, 8, 3, 3))


def computed(net):
    """The scale is a result."""
    scale = net.node("ReduceMax", net.node("Cast", "x", to=1), keepdims=0)
    return net.node("Conv", net.node("DequantizeLinear", "x", scale), net.weight(16, 8, 3, 3))


def negative(net):
    codes = net.constant(net.rng.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8))
    weight = net.node("DequantizeLinear", codes, net.constant(np.float32(-0.002)))
    return net.node("Conv", net.dq("x"), weight)


def backwards(net):
    """A transposed convolution."""
    return net.node("ConvTranspose", net.dq("x"), net.weight(8, 16, 3, 3, axis=1))


def halves(net):
    scale, zero = net.constant(np.float16(0.02)), net.constant(np.uint8(7))
    data = net.node("DequantizeLinear", "x", scale, zero)
    codes = net.constant(net.rng.integers(-127, 128, (16, 8, 3, 3)).astype(np.int8))
    weight = net.node("DequantizeLinear", codes, net.constant(np.float16(0.002)))
    return net.node("Cast", net.node("Conv", data, weight), to=1)


FLOATS = [
    (long_types, "are no bytes"),
    (asymmetric, "a zero point, less which"),
    (across, "not one for each filter"),
    (blocks, "not quantized"),
    (channels, "more than one scale"),
    (float_weight, "the weight is not quantized"),
    (float_data, "the data is not quantized"),
    (computed, "computed at run time"),
    (negative, "not a positive number"),
    (backwards, "transposed convolutions"),
    (halves, "float16"),
]


@pytest.mark.parametrize(("body", "reason"), FLOATS, ids=[b.__name__ for b, _ in FLOATS])
def test_what_stays_in_floats_says_why(body, reason):
    net = Net()
    last = body(net)
    inputs = {"x": ("uint16" if body is long_types else "u", (2, 8, 9, 10))}
    report = check(ended(net, last, inputs, "f"), 5e-3 if body is halves else 1e-5)
    assert [reason in row.reason for row in report.floats] == [True], report.floats
    anchors = [n.name for n in net.nodes if n.op_type in ("Conv", "ConvTranspose")]
    assert set(anchors) <= set(report.floats[0].nodes)


def test_scales_shared_by_all():
    """One scale and zero point for data, weights and outputs."""
    net = Net()
    names = net.parameters(0.05, 0, "uint8")
    signed = net.constant(np.int8(0))
    codes = net.constant(net.rng.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8))
    weight = net.node("DequantizeLinear", codes, names[0], signed)
    y = net.node("DequantizeLinear", "x", *names)
    for _ in range(2):
        y = net.node("QuantizeLinear", net.node("Conv", y, weight), *names)
        y = net.node("DequantizeLinear", y, *names)
    report = check(ended(net, y, IMAGE, "f"), 0.05)
    assert families(report) == ["conv_integer", "conv_integer"]


def test_numbers_that_two_kernels_read_stay_bytes():
    """A residual: no kernel only dequantizes, and none writes floats."""
    net = Net()
    pair = (0.0517, 20)
    first = net.node("Relu", net.conv(net.dq("x"), 16, 8, 3, 3, pads=[1, 1, 1, 1]))
    first = net.dq(net.q(first, *pair), *pair)
    second = net.node("Relu", net.conv(first, 16, 16, 3, 3, pads=[1, 1, 1, 1]))
    last = net.q(net.node("Add", net.dq(net.q(second, 0.1031, 0), 0.1031, 0), first), 0.1973, 0)
    report = check(ended(net, last, IMAGE))
    assert families(report) == ["conv_integer", "conv_integer"]


def test_ties_fall_as_the_operators_let_them():
    """GELU's erf + 1 with the scales that calibration gives it: every other code is a tie."""
    net = Net()
    one = net.dq(net.constant(np.uint8(255)), np.float32(1 / 255), 0)
    y = net.node("Add", net.dq("x", np.float32(2 / 255), 127), one)
    model = ended(net, net.q(y, np.float32(2 / 255), 0), {"x": ("u", (16, 256))})
    feeds = {"x": np.tile(np.arange(256, dtype=np.uint8), (16, 1))}
    wanted = reference(model, feeds)["y"]
    np.testing.assert_array_equal(graphopt.compile(model, threads=1).run(feeds)["y"], wanted)
