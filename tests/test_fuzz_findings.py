"""What the fuzzer found, reduced: each is refused with a reason, or computed as by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

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
    "seven-is-no-flag": (
        "(float[2, 3] a) => (int64[2] y) { y = ArgMin <axis = 1, keepdims = 7> (a) }",
        "keepdims is 7; it must be 0 or 1",
    ),
}


def model(text: str):
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(graphopt.ModelError, match=reason):
        graphopt.compile(model(text), cache=False)


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
