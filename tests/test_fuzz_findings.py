"""What the fuzzer found, reduced: each is refused with a reason, or computed as by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, parser

import graphopt

REFUSED = {
    "or-of-numbers": (
        "(uint8[3] a, bool[3] b) => (bool[3] y) { y = Or(a, b) }",
        "input 0 .*uint8.* Or does not take",
    ),
    "xor-of-numbers": (
        "(uint64[3] a, uint64[3] b) => (uint64[3] y) { y = Xor(a, b) }",
        "input 0 .*uint64.* Xor does not take",
    ),
    "product-of-bools": (
        "(bool[2, 3] a) => (float[2, 3] y) <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>"
        " { y = MatMul(a, w) }",
        "input 0 .*bool.* MatMul does not take",
    ),
    "two-types": (
        "(float[3] a, double[3] b) => (float[3] y) { y = Add(a, b) }",
        r"tensor\(double\), and input 0 is a tensor\(float\)",
    ),
    "scores-of-one-dimension": (
        "(float[1, 4, 4] b, float[4] s) => (int64[n, 3] y) { y = NonMaxSuppression(b, s) }",
        "NonMaxSuppression",
    ),
    "a-sequence-for-a-position": (
        "(float[2] x) => (float[2] y) { s = SequenceConstruct(x, x) y = SequenceAt(s, s) }",
        r"input 1 .*seq\(tensor\(float\)\)",
    ),
    "a-map-over-no-sequence": (
        "(float[2] x) => (seq(float[2]) y) { y = SequenceMap (x) <body = g (float[2] e) =>"
        " (float[2] f) { f = Relu(e) }> }",
        "input 0 .*SequenceMap does not take",
    ),
    "a-shape-of-two-dimensions": (
        "(float[4] x, int64[1, 2] s) => (float[2, 2] y) { y = Reshape(x, s) }",
        "Reshape|acts as a shape",
    ),
    "an-operator-of-a-later-set": (
        "(float[1, 2, 4, 3] x, float[1, 2, 1, 3] u) => (float[1, 2, 4, 3] y)"
        " { y = TensorScatter(x, u) }",
        "TensorScatter came with operator set 24, the model is in 18",
    ),
    "axes-of-floats": (
        "(float[2] x, float[1] a) => (float[1, 2] y) { y = Unsqueeze(x, a) }",
        "input 1 .*float.* Unsqueeze does not take",
    ),
    "number-of-outputs": (
        "(float[2, 4] x) => (float[2, 2] y, float[2, 2] z)"
        " { y, z = Split <axis = 1, num_outputs = 1> (x) }",
        "num_outputs is 1, but the node has 2 outputs",
    ),
    "backwards-to-the-end": (
        "(float[4] x) => (float[n] y) <int64[1] s = {-1}, int64[1] e = {9223372036854775807},"
        " int64[1] a = {0}, int64[1] t = {-1}> { y = Slice(x, s, e, a, t) }",
        "empty by the standard and whole in ONNX Runtime",
    ),
    "seven-is-no-mode": (
        "(float[2, 3] x, float[3] s) => (float[2, 3] y, float[3] m, float[3] v)"
        " { y, m, v = BatchNormalization <training_mode = 7> (x, s, s, s, s) }",
        "training_mode is 7; it must be 0 or 1",
    ),
    "minus-one-is-no-flag": (
        "(float[1, 1, 8, 8] x) => (float[1, 1, n, m] y)"
        " { y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = -1> (x) }",
        "ceil_mode is -1; it must be 0 or 1",
    ),
    "seven-is-no-flag": (
        "(float[2, 3] a) => (int64[2] y) { y = ArgMin <axis = 1, keepdims = 7> (a) }",
        "keepdims is 7; it must be 0 or 1",
    ),
}


ACCEPTED = {
    "number-to-bool-to-number": "(uint8[4] x) => (float[4] y) { b = Cast <to = 9> (x)"
    " y = Cast <to = 1> (b) }",
    "division-by-zero": "(float[6] x) => (float[6] y) <float z = {0.0}>"
    " { d = Div(x, z) y = Erf(d) }",
    "division-by-a-float16-zero": "(float[6] x) => (float[6] y) <float f = {0.0}>"
    " { h = Cast <to = 10> (x) z = Cast <to = 10> (f) d = Div(h, z) y = Cast <to = 1> (d) }",
    "a-comparison-used-twice": "(float[6] x) => (float[6] y) <float a = {0.5}, float z = {3.0}>"
    " { n = Tanh(x) l = Less(a, n) f = Cast <to = 1> (l) y = Where(l, f, z) }",
    "deep-chain": "(float[64] x) => (float[64] y) { s = Softplus(x) t = Tanh(s) y = Mul(x, t)"
    " z = Mul(x, t) }",
}


def model(text: str):
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {text}')


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(graphopt.ModelError, match=reason):
        graphopt.compile(model(text), cache=False)


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED)
def test_computed_as_by_onnxruntime(text: str) -> None:
    proto = model(text)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (spec,) = session.get_inputs()
    x = np.arange(spec.shape[0]) % 3 - (spec.type == "tensor(float)")
    x = x.astype(np.uint8 if spec.type == "tensor(uint8)" else np.float32)
    (expected,) = session.run(None, {"x": x})
    found = graphopt.compile(proto, cache=False).run({"x": x})["y"]
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", [b"op_type", b"x_input", b"y_value"])
def test_names_that_are_no_text(name: bytes) -> None:
    text = "(float[2] x_input) => (float[2] z) { y_value = op_type(x_input) z = Relu(y_value) }"
    data = model(text).SerializeToString().replace(name, b"\xd5" + name[1:])
    for form in (data, ModelProto.FromString(data)):
        with pytest.raises(graphopt.ModelError, match="not valid UTF-8"):
            graphopt.compile(form, cache=False)


def test_a_shape_of_more_dimensions_than_fit_into_memory() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 1])
    shape = helper.make_tensor_value_info("s", TensorProto.INT64, [2**62])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 3, 3])
    node = helper.make_node("Expand", ["x", "s"], ["y"])
    graph = helper.make_graph([node], "g", [x, shape], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
    with pytest.raises(graphopt.GraphoptError, match="acts as a shape"):
        graphopt.compile(proto, cache=False)


def test_corners_of_an_axis_of_one_element() -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]> g (float[1, 2, 3] t) => (float[1, 1, 2, 2] y)
    <int64[4] s = {1, 1, 1, 2}> { y = AffineGrid <align_corners = ALIGNED> (t, s) }"""
    with pytest.raises(graphopt.ModelError, match="divides by zero in ONNX's definition"):
        graphopt.compile(parser.parse_model(text.replace("ALIGNED", "1")), cache=False)
    grid = graphopt.compile(parser.parse_model(text.replace("ALIGNED", "0")), cache=False)
    found = grid.run({"t": np.float32([[[1, 0, 0], [0, 1, 0]]])})["y"]
    assert np.allclose(found, [[[[-0.5, 0], [0.5, 0]]]])


def test_integers_through_a_float_of_8_bits() -> None:
    cast = model("(int8[8] x) => (float[8] y) { c = Cast <to = 18> (x) y = Cast <to = 1> (c) }")
    x = np.arange(-4, 4, dtype=np.int8)
    assert np.array_equal(graphopt.compile(cast, cache=False).run({"x": x})["y"], x)


def test_two_is_no_flag_of_a_composite_operator() -> None:
    text = """<ir_version: 11, opset_import: ["" : 23]> g
    (float[1, 2, 3, 8] x, float[1, 3, 4] c, float[1, 3, 4] s) => (float[1, 2, 3, 8] y)
    { y = RotaryEmbedding <interleaved = 2> (x, c, s) }"""
    with pytest.raises(graphopt.ModelError, match="interleaved is 2; it must be 0 or 1"):
        graphopt.compile(parser.parse_model(text), cache=False)


@pytest.mark.parametrize("softcap", [-2.0, float("nan")])
def test_a_softcap_that_is_not_positive_is_none(softcap: float) -> None:
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 3, 8]) for n in "qkvy"]
    shape = np.random.default_rng(0).standard_normal((3, 1, 1, 3, 8)).astype(np.float32)
    found = []
    for attributes in ({}, {"softcap": softcap}):
        node = helper.make_node("Attention", ["q", "k", "v"], ["y"], **attributes)
        graph = helper.make_graph([node], "g", kinds[:3], kinds[3:])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
        feeds = dict(zip("qkv", shape, strict=True))
        found.append(graphopt.compile(proto, cache=False).run(feeds)["y"])
    np.testing.assert_array_equal(*found)


def test_a_sequence_map_whose_body_takes_more() -> None:
    text = """(seq(float[2]) s) => (seq(float[2]) r) { r = SequenceMap(s) <body = b
    (float[2] e, float[2] f) => (float[2] g) { g = Add(e, f) }> }"""
    with pytest.raises(graphopt.ModelError, match=r"SequenceMap"):
        graphopt.compile(model(text), cache=False)


def test_sizes_that_are_no_list() -> None:
    split = model("(float[0] x, int64[3, 17] s) => (float[0] a) { a, b, c = Split(x, s) }")
    inputs = {"x": np.zeros(0, np.float32), "s": np.zeros((3, 17), np.int64)}
    with pytest.raises(graphopt.GraphoptError, match=r"Split.*is not a list of numbers"):
        graphopt.compile(split, cache=False).run(inputs)


def test_operators_of_several_types_are_not_refused() -> None:
    text = """
    (float[2, 3] x, int64[2] i, bool[2, 3] c) => (float[2, 3] y, bool[2, 3] z) {
        g = Gather(x, i)
        y = Where(c, g, x)
        f = Cast <to = 1> (c)
        l = Less(f, y)
        z = And(l, c)
    }"""
    rng = np.random.default_rng(0)
    x, i, c = rng.random((2, 3), np.float32), np.array([1, 0]), rng.random((2, 3)) < 0.5
    found = graphopt.compile(model(text), cache=False).run({"x": x, "i": i, "c": c})
    y = np.where(c, x[i], x)
    assert np.array_equal(found["y"], y)
    assert np.array_equal(found["z"], (c.astype(np.float32) < y) & c)
