"""How often scalar operations repeat their arguments, and that chains of them compile soon."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt.lowering.groups import MAX_REPETITION
from schedules.interface import Step
from schedules.scalar_repetition import repetitions


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Step("add", (0, 1)), (1, 1)),
        (Step("abs", (0,)), (1,)),
        (Step("leaky_relu", (0,), (("alpha", 0.1),)), (3,)),  # x > 0, x, alpha·x
        (Step("round", (0,)), (4,)),  # |x| < 2²³, |x|, sign of x, x
    ],
)
def test_repetitions(step: Step, expected: tuple[int, ...]) -> None:
    assert repetitions(step, ("float32",) * len(expected)) == expected


@pytest.mark.parametrize(
    ("chain", "kernels"),
    [
        (["Relu"] * 6 + ["Neg"] * 6, 1),
        (["Softplus"], 2),
        (["Mul", "Sigmoid", "Mul"], 1),
        (["Sigmoid"] * 6, 3),
        (["LeakyRelu"] * 12, 3),
        (["Softplus", "Tanh"], 3),
    ],
)
def test_long_chains_are_cut_into_several_kernels(chain: list[str], kernels: int) -> None:
    names = ["x", *(f"v{i}" for i in range(1, len(chain))), "y"]
    nodes = [
        helper.make_node(op, [names[i], "x"] if op == "Mul" else [names[i]], [names[i + 1]])
        for i, op in enumerate(chain)
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [64, 64]) for n in "xy")
    graph = helper.make_graph(nodes, "chain", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    report = graphopt.compile(model, cache=False).report
    assert len(report.calls) == kernels
    assert MAX_REPETITION > 100
