"""The tolerance that a model is judged by."""

from __future__ import annotations

import pytest
from onnx import ModelProto, parser

from graphopt.tolerance import FLOAT, QUANTIZED, usual_tolerance


def model(body: str) -> ModelProto:
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    return parser.parse_model(f"{head} g (float[4] x, bool c) => (float[4] y) {{ {body} }}")


@pytest.mark.parametrize(
    ("body", "tolerance"),
    [
        ("y = Relu(x)", FLOAT),
        # Weights in eight bits are not rounded anew.
        (
            "s = Constant<value_float = 0.1>() w = Constant<value = int8[4] {1, 2, 3, 4}>() "
            "d = DequantizeLinear(w, s) y = Add(x, d)",
            FLOAT,
        ),
        (
            "s = Constant<value_float = 0.1>() q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
            QUANTIZED,
        ),
        (
            "y = If(c) <then_branch = g1 () => (float[4] a) {"
            "q, s, z = DynamicQuantizeLinear(x) a = DequantizeLinear(q, s, z)},"
            "else_branch = g2 () => (float[4] b) {b = Relu(x)}>",
            QUANTIZED,
        ),
    ],
    ids=["float", "weights", "activations", "branch"],
)
def test_only_what_quantizes_activations_is_given_steps(body, tolerance):
    assert usual_tolerance(model(body)) == tolerance
