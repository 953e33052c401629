"""Graphs of quantization-aware training, as the exporters write them: all integer kernels.

Weights are floats that are quantized in the graph; batch normalisation follows the convolution, or
was folded and divided by again. Whatever stands between the sums and the next quantization is
computed in float32 in the convolution's kernel, and rounded once.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from test_quantized_models import Net, ended
from test_quantized_odd import check, kernels

BYTES = "conv_integer.dots"
FLOATS = {"x": ("f", (2, 8, 9, 10))}


def fake(net: Net, x: str, scale, zero=0, dtype="uint8", axis: int | None = None) -> str:
    """A FakeQuantize: a pair of QuantizeLinear and DequantizeLinear with the same parameters."""
    names = net.parameters(scale, np.full(np.shape(scale), zero), dtype)
    attrs = {} if axis is None else {"axis": axis}
    codes = net.node("QuantizeLinear", x, *names, **attrs)
    return net.node("DequantizeLinear", codes, *names, **attrs)


def narrow(net: Net, shape: tuple[int, ...], axis: int = 0) -> str:
    """A weight of 255 levels, symmetric, with a scale for each element of an axis."""
    values = net.rng.uniform(-0.2, 0.2, shape).astype("f4")
    others = tuple(i for i in range(len(shape)) if i != axis)
    return fake(net, net.constant(values), np.abs(values).max(others) / 127, 0, "int8", axis)


def numbers(net: Net, *shape: int, low=-1.0, high=1.0) -> str:
    return net.constant(net.rng.uniform(low, high, shape).astype("f4"))


def normalised(net: Net, x: str, gamma: str | None = None) -> str:
    names = [gamma or numbers(net, 16, low=0.5, high=1.5)]
    names += [numbers(net, 16), numbers(net, 16), numbers(net, 16, low=0.5, high=1.5)]
    return net.node("BatchNormalization", x, *names)


def pytorch(*, bias=False, divided=False, residual=False) -> onnx.ModelProto:
    """Two convolutions with batch normalisation behind.

    divided: as ConvBnReLU2d is traced: the weight is scaled by what the normalisation will
    multiply by, and the sums are divided by it.
    """
    net = Net()
    x = fake(net, "x", 0.021, 121)
    inputs = [x, narrow(net, (16, 8, 3, 3)), *([numbers(net, 16)] if bias else [])]
    y = net.node("Conv", *inputs, pads=[1] * 4)
    if divided:
        y = net.node("Div", y, numbers(net, 1, 16, 1, 1, low=0.5, high=2))
    y = fake(net, net.node("Relu", normalised(net, y)), 0.0217)
    z = net.node("Conv", y, narrow(net, (16, 16, 3, 3)), pads=[1] * 4)
    if divided:
        z = net.node("Div", z, numbers(net, 1, 16, 1, 1, low=0.5, high=2))
        z = net.node("Add", z, numbers(net, 1, 16, 1, 1))
    z = normalised(net, z)
    if residual:
        z = net.node("Add", fake(net, z, 0.0311, 120), y)
    return ended(net, fake(net, net.node("Relu", z), 0.0253), FLOATS, "f")


PYTORCH = [
    {},
    {"bias": True},
    {"divided": True},
    {"bias": True, "divided": True},
    {"residual": True},
    {"residual": True, "divided": True},
]


@pytest.mark.parametrize("options", PYTORCH, ids=str)
def test_batch_normalisation_behind_the_convolution(options):
    assert kernels(check(pytorch(**options))) == [BYTES, BYTES]


def test_factors_that_are_negative_or_zero():
    """Batch normalisation may turn or drop a channel."""
    net = Net()
    gamma = net.rng.uniform(-1.5, 1.5, 16).astype("f4")
    gamma[3] = 0
    y = net.node("Conv", fake(net, "x", 0.021, 121), narrow(net, (16, 8, 3, 3)))
    y = fake(net, net.node("Relu", normalised(net, y, net.constant(gamma))), 0.031)
    assert kernels(check(ended(net, y, FLOATS, "f"))) == [BYTES]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_bias_that_is_quantized_in_the_graph(dtype):
    net = Net()
    bias = fake(net, numbers(net, 16), 0.01, 0 if dtype == "int8" else 128, dtype)
    y = net.node("Conv", fake(net, "x", 0.021, 121), narrow(net, (16, 8, 3, 3)), bias)
    assert kernels(check(ended(net, net.q(y, 0.031, 121), FLOATS))) == [BYTES]


def test_a_linear_layer():
    """Its weight is transposed in the graph, and its bias comes first."""
    net = Net()
    matrix = net.node("Transpose", narrow(net, (10, 24)), perm=[1, 0])
    y = net.node("Add", numbers(net, 10), net.node("MatMul", fake(net, "x", 0.021, 121), matrix))
    report = check(ended(net, fake(net, y, 0.031, 100), {"x": ("f", (5, 24))}, "f"))
    assert kernels(report) == ["matmul.dots"]


def tensorflow() -> onnx.ModelProto:
    """Channels last: each convolution stands between transposes, its weight behind one."""
    net = Net()
    bounds = [net.constant(np.float32(bound)) for bound in (0, 6)]

    def convolution(x: str, shape: tuple[int, ...], perm: list[int], axis: int, **attrs) -> str:
        filters = net.node("Transpose", narrow(net, shape, axis), perm=perm)
        y = net.node("Conv", net.node("Transpose", x, perm=[0, 3, 1, 2]), filters, **attrs)
        y = net.node("Add", y, numbers(net, 1, shape[axis], 1, 1))
        y = net.node("Transpose", y, perm=[0, 2, 3, 1])
        return fake(net, net.node("Clip", y, *bounds), 6 / 255)

    y = convolution(fake(net, "x", 0.021, 121), (3, 3, 8, 16), [3, 2, 0, 1], 3, pads=[1] * 4)
    y = convolution(y, (3, 3, 16, 1), [2, 3, 0, 1], 2, group=16, pads=[1] * 4, strides=[2, 2])
    y = convolution(y, (1, 1, 16, 24), [3, 2, 0, 1], 3)
    y = net.node("ReduceMean", y, net.constant(np.array([1, 2])), keepdims=0)
    y = net.node("MatMul", fake(net, y, 0.0223), narrow(net, (24, 10), 1))
    y = net.node("Add", y, numbers(net, 10))
    return ended(net, fake(net, y, 0.031, 100), {"x": ("f", (2, 9, 10, 8))}, "f")


def test_channels_last():
    report = check(tensorflow(), distinct=10)
    assert kernels(report) == [BYTES, "conv_integer.depthwise", BYTES, "matmul.dots"]
    # The data comes and goes with its channels last; between the convolutions nothing is moved.
    assert sum(row.candidate == "transpose" for row in report.calls) == 2


def test_codes_that_are_clipped():
    """Brevitas: fewer bits and symmetric ranges are a Clip of the integers."""
    net = Net()

    def clipped(x: str, scale, low: int, high: int, dtype="int8", axis: int | None = None) -> str:
        names = net.parameters(scale, np.zeros(np.shape(scale)), dtype)
        attrs = {} if axis is None else {"axis": axis}
        bounds = [net.constant(np.asarray(bound, dtype)) for bound in (low, high)]
        codes = net.node("Clip", net.node("QuantizeLinear", x, *names, **attrs), *bounds)
        return net.node("DequantizeLinear", codes, *names, **attrs)

    values = net.rng.uniform(-0.2, 0.2, (16, 8, 3, 3)).astype("f4")
    filters = clipped(net.constant(values), np.abs(values).max((1, 2, 3)) / 31, -31, 31, axis=0)
    y = net.node("Conv", clipped("x", 0.0213, -127, 127), filters, numbers(net, 16))
    y = clipped(net.node("Relu", y), 0.019, 0, 127, "uint8")
    y = clipped(net.node("Conv", y, narrow(net, (8, 16, 1, 1))), 0.121, -7, 7)
    assert kernels(check(ended(net, y, FLOATS, "f"), distinct=10)) == [BYTES, BYTES]


def test_levels_of_a_narrow_range():
    """NNCF: 255 levels, the numbers clipped to the range in front of the pair."""
    net = Net()
    bounds = [net.constant(np.float32(bound)) for bound in (-2.7, 2.7)]
    x = fake(net, net.node("Clip", "x", *bounds), 2.7 / 127, 0, "int8")
    y = net.node("Conv", x, narrow(net, (16, 8, 3, 3)), numbers(net, 16), pads=[1] * 4)
    y = net.q(net.node("Relu", y), 0.0117, 0)
    assert kernels(check(ended(net, y, FLOATS))) == [BYTES]


def test_a_gate():
    """Squeeze and excite, all of it between pairs."""
    net = Net()
    y = net.node("Conv", fake(net, "x", 0.021, 121), narrow(net, (16, 8, 3, 3)), pads=[1] * 4)
    y = fake(net, net.node("HardSwish", normalised(net, y)), 0.017, 30)
    gate = fake(net, net.node("GlobalAveragePool", y), 0.011, 30)
    gate = net.node("HardSigmoid", net.node("Conv", gate, narrow(net, (16, 16, 1, 1))))
    y = fake(net, net.node("Mul", y, fake(net, gate, 1 / 255)), 0.0113, 30)
    report = check(ended(net, y, FLOATS, "f"))
    assert len(kernels(report)) == 2
    assert report.floats == ()
