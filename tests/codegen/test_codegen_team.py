"""What the generated control flow promises beside calling kernels in order."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import graphopt


def scaled_down(factor):
    """y = (x * factor) / factor: subnormal in between when factor is tiny."""
    nodes = [
        helper.make_node("Mul", ["x", "tiny"], ["small"]),
        helper.make_node("Transpose", ["small"], ["moved"], perm=[1, 0]),
        helper.make_node("Mul", ["moved", "huge"], ["y"]),
    ]
    constants = [
        helper.make_tensor("tiny", TensorProto.FLOAT, [], [factor]),
        helper.make_tensor("huge", TensorProto.FLOAT, [], [1.0 / factor]),
    ]
    graph = helper.make_graph(
        nodes,
        "subnormal",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 48])],
        [helper.make_tensor_value_info("small", TensorProto.FLOAT, [64, 48])],
        constants,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_numbers_are_zero_by_default_and_kept_when_strict(threads):
    x = np.ones((64, 48), np.float32)
    model = scaled_down(1e-40)
    fast = graphopt.compile(model, threads=threads).run({"x": x})["small"]
    exact = graphopt.compile(model, threads=threads, numerics="strict").run({"x": x})["small"]
    assert np.all(fast == 0)
    assert np.all(exact == np.float32(1e-40))


def test_the_callers_floating_point_mode_is_left_alone():
    program = graphopt.compile(scaled_down(0.5), threads=1)
    program.run({"x": np.ones((64, 48), np.float32)})
    subnormal = np.full(64, 1e-40, np.float32)
    assert np.all(subnormal * np.float32(2.0) > 0)
