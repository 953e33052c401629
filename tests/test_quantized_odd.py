"""Quantized graphs as they should not be, or seldom are: each is right, or refused by name.

The reference is ONNX Runtime without optimisations, a step apart in a thousandth of the elements at
most.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_quantized_models import IMAGE, ROWS, Net, ended, reference

import graphopt
from graphopt.errors import GraphoptError

FLOATS = {"x": ("f", (2, 8, 9, 10))}
VECTORS = {"x": ("f", (5, 24))}


def four_bits(code: int) -> np.dtype:
    return helper.tensor_dtype_to_np_dtype(code)


def integers(net: Net, shape: tuple[int, ...], dtype="int8") -> str:
    bounds = np.iinfo(dtype)
    return net.constant(net.rng.integers(bounds.min, bounds.max + 1, shape).astype(dtype))


def scales(net: Net, *shape: int) -> str:
    return net.constant(net.rng.uniform(0.001, 0.003, shape).astype("f4"))


def weight(net: Net, scale: np.ndarray, zero: np.ndarray | None = None, **attrs) -> str:
    """Filters of int8 with given parameters."""
    points = [] if zero is None else [net.constant(zero)]
    return net.node(
        "DequantizeLinear", integers(net, (16, 8, 3, 3)), net.constant(scale), *points, **attrs
    )


def finish(net: Net, last: str, inputs: dict | None = None) -> onnx.ModelProto:
    return ended(net, net.q(last, 0.0517, 60), inputs or IMAGE)


def convolved(net: Net, filters: str, *bias: str) -> onnx.ModelProto:
    return finish(net, net.node("Conv", net.dq("x"), filters, *bias))


def feeds_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Whole ranges of integers; of an input named scale one number."""
    rng, feeds = np.random.default_rng(3), {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = [d.dim_value or (3 if d.dim_param else 0) for d in kind.shape.dim]
        if dtype.kind == "f":
            data = rng.standard_normal(shape) if shape else np.float32(0.0237)
        else:
            bounds = np.iinfo(dtype)
            data = rng.integers(bounds.min, bounds.max + 1, shape)
        feeds[value.name] = np.asarray(data, dtype)
    return feeds


def check(
    model: onnx.ModelProto, distinct: int = 20, share: float = 1e-3, tolerance: float = 1e-5
) -> graphopt.Report:
    """Compare with the reference, which must have as many `distinct` values."""
    feeds = feeds_of(model)
    wanted, program = reference(model, feeds), graphopt.compile(model, threads=1)
    found = program.run(feeds)
    for name, want in wanted.items():
        have = found[name]
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        assert len(np.unique(want)) >= distinct, "the test says nothing"
        gap = np.abs(have.astype(np.float64) - want)
        if want.dtype.kind == "f":
            assert gap.max(initial=0) <= tolerance * np.abs(want).max(initial=0)
        elif want.size:
            assert gap.max() <= 1
            assert np.mean(gap > 0) <= share
    return program.report


def kernels(report: graphopt.Report) -> list[str]:
    """Names of the products' kernels, without what differs from machine to machine."""
    rows = (row.candidate for row in report.calls)
    same = {"conv_integer.words": "conv_integer.depthwise"}
    names = (same.get(n, n).replace("tiles", "dots").split("[narrow")[0] for n in rows)
    return [name for name in names if name.startswith(("conv", "matmul"))]


BYTES = "conv_integer.dots"
"""What computes on bytes as fast as there are instructions for it."""


# --- scales ---------------------------------------------------------------------------------------


def data_scale(scale: float, times: float = 4.0) -> onnx.ModelProto:
    net = Net()
    y = net.conv(net.dq("x", scale), 16, 8, 3, 3, bias=False)
    return ended(net, net.q(y, min(scale * times, 3e38)), IMAGE)


def filter_scale(scale: float) -> onnx.ModelProto:
    net = Net()
    values = net.rng.uniform(0.001, 0.003, 16).astype("f4")
    values[3] = scale
    return convolved(net, weight(net, values, np.zeros(16, "i1"), axis=0))


@pytest.mark.parametrize("scale", [1e20, 1e-20, -0.02, 1e-33, 3e38], ids=str)
def test_scales_of_any_size(scale):
    check(data_scale(scale), distinct=1 if scale > 1e30 else 20)


@pytest.mark.parametrize("scale", [0.0, 1e-40, -0.02, 1e20, 3e38, np.inf, np.nan], ids=str)
def test_one_odd_filter(scale):
    check(filter_scale(scale))


@pytest.mark.parametrize("scale", [0.0, 1e-40], ids=str)
def test_nothing_is_divided_by_what_counts_as_zero(scale):
    net = Net()
    net.q("x", scale, 3)
    model = ended(net, net.nodes[-1].output[0], FLOATS)
    with pytest.raises(GraphoptError, match=r"the scale 'c0' has an element that is 0, or no nor"):
        graphopt.compile(model)
    with pytest.raises(GraphoptError, match=r"QuantizeLinear_\d: .*the scale 'c5' has an element"):
        graphopt.compile(data_scale(0.02, scale / 0.02))


@pytest.mark.parametrize("scale", [np.inf, np.nan, 3e38, -0.7], ids=str)
def test_odd_scales_of_results(scale):
    net = Net()
    check(ended(net, net.q("x", scale, 3), FLOATS), distinct=1)


# --- types and zero points ------------------------------------------------------------------------


@pytest.mark.parametrize("filters", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("data", ["uint8", "int8", "uint16", "int16"])
def test_types(data, filters):
    net, ends = Net(), np.iinfo(data)
    middle, levels = (int(ends.max) + int(ends.min)) // 2, int(ends.max) - int(ends.min)
    values, limit = integers(net, (16, 8, 3, 3), filters), np.iinfo(filters).max
    names = net.parameters(np.full(16, 0.5 / limit), np.zeros(16), filters)
    y = net.node(
        "Conv",
        net.dq("x", 6.0 / levels, middle + 3, data),
        net.node("DequantizeLinear", values, *names, axis=0),
    )
    model = ended(
        net, net.q(y, 60.0 / levels, middle + 5, data), {"x": (data, (2, 8, 9, 10))}, data
    )
    # Steps of 16 bits are as fine as the rounding of a float sum.
    report = check(model, share=1e-3 if "8" in data else 5e-3)
    if "8" in data and "8" in filters:
        assert set(kernels(report)) == {BYTES}


def missing_points() -> onnx.ModelProto:
    net = Net()
    data = net.node("DequantizeLinear", "x", net.constant(np.float32(0.02)))
    y = net.node("Conv", data, weight(net, np.float32(0.002)))
    return ended(net, net.node("QuantizeLinear", net.node("Relu", y), scales(net)), IMAGE)


def unsigned(zero: int, *, per_filter: bool = False) -> Callable[[], onnx.ModelProto]:
    """Filters of uint8 with a zero point that leaves more than eight bits."""

    def build() -> onnx.ModelProto:
        net = Net()
        points = np.full(16, zero, "u1") + np.arange(16, dtype="u1") * per_filter
        names = net.parameters(np.full(16, 0.002), points, "uint8")
        filters = net.node(
            "DequantizeLinear", integers(net, (16, 8, 3, 3), "uint8"), *names, axis=0
        )
        y = net.node("Conv", net.dq("x"), filters, pads=[1, 1, 1, 1])
        return ended(net, net.q(y, 0.0517 if zero else 0.5, 60), IMAGE)

    return build


def unsigned_depthwise() -> onnx.ModelProto:
    net = Net()
    filters = net.weight(8, 1, 3, 3, axis=0, zero=77, dtype="uint8")
    return finish(net, net.node("Conv", net.dq("x"), filters, group=8))


def unsigned_product() -> onnx.ModelProto:
    net = Net()
    y = net.node("MatMul", net.dq("x"), net.weight(24, 10, axis=1, zero=117, dtype="uint8"))
    return ended(net, net.q(y, 0.1, 60), ROWS)


def narrow_weight(code: int, zero: int) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        net, low = Net(), -8 if code == TensorProto.INT4 else 0
        codes = net.rng.integers(low, low + 16, (16, 8, 3, 3)).astype(four_bits(code))
        points = np.full(16, zero).astype(four_bits(code))
        names = [net.constant(a) for a in (codes, np.full(16, 0.02, "f4"), points)]
        return convolved(net, net.node("DequantizeLinear", *names, axis=0))

    return build


def narrow_data() -> onnx.ModelProto:
    net = Net()
    names = [
        net.constant(np.float32(0.2)),
        net.constant(np.asarray(3, four_bits(TensorProto.UINT4))),
    ]
    data = net.node("DequantizeLinear", net.node("QuantizeLinear", "x", *names), *names)
    return finish(net, net.node("Conv", data, net.weight(16, 8, 3, 3)), FLOATS)


def one_element() -> onnx.ModelProto:
    net = Net()
    names = [net.constant(np.array([0.02], "f4")), net.constant(np.array([3], "u1"))]
    data = net.node("DequantizeLinear", "x", *names, axis=1)
    return finish(net, net.node("Conv", data, net.weight(16, 8, 3, 3)))


def along(axis: int, count: int) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        net = Net()
        values = net.rng.uniform(0.001, 0.003, count).astype("f4")
        return convolved(net, weight(net, values, np.zeros(count, "i1"), axis=axis))

    return build


def channels() -> onnx.ModelProto:
    """A scale and zero point for each channel of data and result."""
    net = Net()
    names = [
        net.constant(net.rng.uniform(0.01, 0.03, 8).astype("f4")),
        integers(net, (8,), "uint8"),
    ]
    y = net.node("Conv", net.node("DequantizeLinear", "x", *names), net.weight(16, 8, 3, 3))
    names = [
        net.constant(net.rng.uniform(0.1, 0.2, 16).astype("f4")),
        integers(net, (16,), "uint8"),
    ]
    return ended(net, net.node("QuantizeLinear", y, *names), IMAGE)


def blocks(size: int) -> Callable[[], onnx.ModelProto]:
    def build() -> onnx.ModelProto:
        net, count = Net(), -(-24 // size)
        names = [integers(net, (24, 10)), scales(net, count, 10), integers(net, (count, 10))]
        matrix = net.node("DequantizeLinear", *names, axis=0, block_size=size)
        return ended(net, net.q(net.node("MatMul", net.dq("x"), matrix), 0.1, 60), ROWS)

    return build


RIGHT: dict[str, tuple[Callable[[], onnx.ModelProto], list[str] | None]] = {
    "no zero points": (missing_points, [BYTES]),
    "uint8 weights": (unsigned(113), [BYTES, BYTES]),
    "uint8 weights, zero point 0": (unsigned(0), [BYTES, BYTES]),
    "uint8 weights, a zero point each": (unsigned(40, per_filter=True), [BYTES, BYTES]),
    "uint8 weights, depthwise": (unsigned_depthwise, ["conv_integer.depthwise"] * 2),
    "uint8 weights of a product": (unsigned_product, ["matmul.dots"]),
    "int4 weights": (narrow_weight(TensorProto.INT4, 0), [BYTES]),
    "uint4 weights": (narrow_weight(TensorProto.UINT4, 7), [BYTES]),
    "uint4 data": (narrow_data, [BYTES]),
    "parameters of one element": (one_element, [BYTES]),
    "axis -4": (along(-4, 16), [BYTES]),
    "axis of the channels": (along(1, 8), None),
    "axis of the taps": (along(2, 3), None),
    "data with scales of channels": (channels, None),
    "blocks": (blocks(8), None),
    "blocks with a short last one": (blocks(7), None),
}


@pytest.mark.parametrize("name", RIGHT)
def test_parameters(name):
    build, wanted = RIGHT[name]
    report = check(build())
    if wanted is None:
        assert len(report.floats) == 1
    else:
        assert report.floats == ()
        assert kernels(report) == wanted


# --- biases ---------------------------------------------------------------------------------------


def bias(factor=1.0, dtype="int32", *, each: bool = True, zero: int | None = 0) -> onnx.ModelProto:
    """A quantized bias of `factor` times the scales of the sums."""
    net = Net()
    filters = net.weight(16, 8, 3, 3)
    unit = net.constants[net.nodes[-1].input[1]] * np.float32(0.0213) * np.float32(factor)
    unit = unit if each else unit[0]
    limit = 120 if dtype == "int8" else 3000
    steps = net.rng.integers(-limit, limit, 16).astype(dtype)
    names = [net.constant(steps), net.constant(np.float32(unit))]
    if zero is not None:
        names.append(net.constant(np.full(np.shape(unit), zero, dtype)))
    added = net.node("DequantizeLinear", *names, **({"axis": 0} if each else {}))
    return convolved(net, filters, added)


BIASES = {
    "another scale": {"factor": 1.37},
    "half the scale": {"factor": 0.5},
    "one scale": {"factor": 1.37, "each": False},
    "bytes": {"factor": 30, "dtype": "int8", "zero": 4},
    "no zero point": {"zero": None},
    "too large for 32 bits": {"factor": 1e4},
}


@pytest.mark.parametrize("name", BIASES)
def test_biases(name):
    report = check(bias(**BIASES[name]), distinct=2 if "large" in name else 20)
    assert kernels(report) == [BYTES]


# --- graphs ---------------------------------------------------------------------------------------


def test_a_tensor_with_several_readers():
    """Two convolutions, a mean and an output read the same numbers."""
    net = Net()
    x = net.dq("x")
    both = net.node("Add", net.conv(x, 16, 8, 3, 3, pads=[1] * 4), net.conv(x, 16, 8, 1, 1))
    mean = net.node("GlobalAveragePool", x)
    model = finish(net, both)
    for name in (mean, x):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    assert kernels(check(model, distinct=10)) == [BYTES, BYTES]


def test_parameters_that_are_inputs():
    net = Net()
    y = net.node("Conv", net.node("DequantizeLinear", "x", "s", "z"), net.weight(16, 8, 3, 3))
    report = check(finish(net, y, {**IMAGE, "s": ("f", ()), "z": ("u", ())}))
    assert "computed at run time" in report.floats[0].reason


def dynamic(net: Net, kind: str, weights: str, zero: str, **attrs) -> str:
    """A product of data that is quantized by its own range."""
    names = ["codes", "scale", "point"]
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], names, "dynamic"))
    sums = net.node(kind, "codes", weights, "point", zero, **attrs)
    unit = net.node("Mul", "scale", net.constant(np.float32(0.01)))
    return net.node("Mul", net.node("Cast", sums, to=TensorProto.FLOAT), unit)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_products_of_data_quantized_at_run_time(dtype):
    net = Net()
    zero = integers(net, (10,), dtype)
    y = dynamic(net, "MatMulInteger", integers(net, (24, 10), dtype), zero)
    report = check(ended(net, y, VECTORS, "f"))
    assert kernels(report) == ["matmul.dots"]


@pytest.mark.parametrize("attrs", [{}, {"pads": [1, 0, 2, 1], "strides": [2, 1]}], ids=str)
def test_convolutions_of_data_quantized_at_run_time(attrs):
    net = Net()
    zero = net.constant(np.uint8(9))
    y = dynamic(net, "ConvInteger", integers(net, (16, 8, 3, 3), "uint8"), zero, **attrs)
    assert kernels(check(ended(net, y, FLOATS, "f"))) == [BYTES, BYTES]


def test_sequences_of_the_integer_operators():
    """One axis: as fast as two."""
    net = Net()
    names = [*net.parameters(0.02, 7, "uint8"), integers(net, (16, 8, 3))]
    names += [*net.parameters(np.full(16, 0.002), np.zeros(16), "int8")]
    y = net.node("QLinearConv", "x", *names, *net.parameters(0.05, 60, "uint8"), pads=[1, 1])
    assert kernels(check(ended(net, y, {"x": ("u", (2, 8, 30))}))) == [BYTES]


def test_halves():
    """The quotient is a half, as ONNX says; ONNX Runtime's is a float32."""
    net = Net()

    def parameters(scale, zero):
        return net.constant(np.float16(scale)), net.constant(np.uint8(zero))

    first = parameters(0.02, 120)
    data = net.node("DequantizeLinear", net.node("QuantizeLinear", "x", *first), *first)
    y = net.node("Conv", data, weight(net, np.float16(0.002)))
    model = ended(
        net,
        net.node("QuantizeLinear", y, *parameters(0.05, 128)),
        {"x": ("float16", (2, 8, 9, 10))},
    )
    check(model, share=0.1)


def depth_of_nothing(net: Net) -> str:
    return net.dq(net.constant(np.zeros((0, 10), "i1")), 0.1, 0, "int8")


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        (lambda n, x: n.node("MatMul", x, n.weight(24, 10, axis=1)), {"x": ("u", (0, 24))}),
        (lambda n, x: n.conv(x, 16, 8, 3, 3), {"x": ("u", (0, 8, 9, 10))}),
        (lambda n, x: n.node("MatMul", x, depth_of_nothing(n)), {"x": ("u", (5, 0))}),
        (lambda n, x: n.conv(x, 16, 8, 3, 3), {"x": ("u", ("N", 8, 9, 10))}),
    ],
    ids=["no rows", "no images", "no terms", "batch unbound"],
)
def test_odd_sizes(body, inputs):
    net = Net()
    check(ended(net, net.q(body(net, net.dq("x")), 0.05, 60), inputs), distinct=0)


# --- refusals -------------------------------------------------------------------------------------


def short_points() -> onnx.ModelProto:
    net = Net()
    return convolved(net, weight(net, np.full(16, 0.002, "f4"), np.zeros(5, "i1"), axis=0))


def other_type() -> onnx.ModelProto:
    net = Net()
    names = [net.constant(np.float32(0.02)), net.constant(np.int8(3))]
    data = net.node("DequantizeLinear", "x", *names)
    return finish(net, net.node("Conv", data, net.weight(16, 8, 3, 3)))


def wrong_blocks() -> onnx.ModelProto:
    net = Net()
    matrix = net.node("DequantizeLinear", integers(net, (24, 10)), scales(net, 5, 10), axis=0,
                      block_size=8)  # fmt: skip
    return ended(net, net.q(net.node("MatMul", net.dq("x"), matrix)), ROWS)


def integer_bias() -> onnx.ModelProto:
    """QuantizeLinear to int32, which ONNX does not have."""
    net = Net()
    names = [net.constant(np.full(16, 0.002, "f4")), net.constant(np.zeros(16, np.int32))]
    values = net.constant(net.rng.uniform(-1, 1, 16).astype("f4"))
    codes = net.node("QuantizeLinear", values, *names, axis=0)
    filters = net.weight(16, 8, 3, 3)
    return convolved(net, filters, net.node("DequantizeLinear", codes, *names, axis=0))


REFUSED = {
    "axis 7": (along(7, 16), r"DequantizeLinear_0: .* axis 7 is out of range for rank 4"),
    "axis -9": (along(-9, 16), r"DequantizeLinear_0: .* axis -9 is out of range for rank 4"),
    "too few scales": (along(0, 15), r"DequantizeLinear_0: .*'c2' of shape \(15,\) does not fit"),
    "too few points": (short_points, r"DequantizeLinear_0: .*'c0' of shape \(5,\) does not fit"),
    "a point of another type": (other_type, r"DequantizeLinear_0: input 2 \('c1'\) is a tensor\(i"),
    "scales of other blocks": (wrong_blocks, r"DequantizeLinear_0: .* do not fit blocks \[3, 10\]"),
    "a bias quantized to int32": (
        integer_bias,
        r"QuantizeLinear_0: input 2 \('c1'\) is a tensor\(",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named(name):
    build, message = REFUSED[name]
    with pytest.raises(GraphoptError, match=message):
        graphopt.compile(build())


# --- quantize() of what is quantized --------------------------------------------------------------


def operators() -> onnx.ModelProto:
    net = Net()
    y = dynamic(net, "MatMulInteger", integers(net, (24, 10)), net.constant(np.int8(0)))
    return ended(net, y, VECTORS, "f")


def weights_alone() -> onnx.ModelProto:
    net = Net()
    return ended(net, net.node("MatMul", "x", net.weight(24, 10, axis=1)), VECTORS, "f")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (unsigned_product, "quantized already: DequantizeLinear reads '"),
        (operators, "quantized already: DynamicQuantizeLinear reads 'x'"),
        (weights_alone, "quantized already: DequantizeLinear reads '"),
    ],
)
def test_models_are_quantized_once(build, message):
    model = build()
    with pytest.raises(GraphoptError, match=message):
        graphopt.quantize(model, [feeds_of(model)])
