"""inspect(): everything that stands in the way at once, open dimensions, costs, and the target."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

import graphopt
from graphopt.cli.main import main
from graphopt.extensions import extensions
from graphopt.target import TargetSpec

ODD = """
<ir_version: 9, opset_import: ["" : 17, "com.example" : 3]>
g (float[n, 4] x) => (float[n, 4] z) {
   a = com.example.Odd(x)
   b = Relu(a)
   c = NoSuchOperator(b)
   z = Add(c, x)
}
"""


def network(kernel: int = 3, stride: int = 1, groups: int = 1, filters: int = 16) -> ModelProto:
    """A convolution of 8 channels, its weight behind an Identity; open batch and rows."""
    weight = np.ones((filters, 8 // groups, kernel, kernel), np.float32)
    nodes = [
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("Conv", ["x", "v"], ["y"], strides=[stride, stride], group=groups),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, "rows", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_every_unsupported_node_is_named_at_once() -> None:
    model = parser.parse_model(ODD)
    for node, name in zip(model.graph.node, ("first", "second", "third", "last"), strict=True):
        node.name = name
    found = graphopt.inspect(model, shapes={"x": (2, 4)})
    assert not found.compiles
    assert [(n.node, n.op_type, n.domain, n.opset) for n in found.unsupported] == [
        ("first", "Odd", "com.example", 3),
        ("third", "NoSuchOperator", "", 17),
    ]
    assert all(node.reason for node in found.unsupported)


def test_open_dimensions_and_the_places_that_have_them() -> None:
    found = graphopt.inspect(network())
    assert found.dimensions == {"n": ("x[0]",), "rows": ("x[2]",)}
    assert found.memory_bytes is None
    bound = graphopt.inspect(network(), shapes={"x": (1, 8, 10, 10)})
    assert bound.dimensions == {}
    assert bound.flops == 2 * 16 * 8 * 8 * 8 * 9
    assert bound.memory_bytes == bound.packed_bytes + bound.activation_bytes


@pytest.mark.parametrize(
    ("options", "growth"),
    [
        ({"filters": 4096}, 2.0),  # more than a megabyte: the limit
        ({}, 4.0),  # less: what Winograd would take
        ({"kernel": 1}, 1.0),
        ({"stride": 2}, 1.0),
        ({"groups": 2}, 1.0),
    ],
)
def test_room_for_packed_weights(options: dict[str, int], growth: float) -> None:
    found = graphopt.inspect(network(**options))
    assert found.packed_bytes == growth * found.parameter_bytes
    assert found.parameter_bytes > 0


def test_what_is_reported_covers_what_compiling_takes() -> None:
    model, shapes = network(), {"x": (1, 8, 30, 10)}
    program = graphopt.compile(model, shapes=shapes, cache=False)
    assert program.report.weight_bytes <= graphopt.inspect(model, shapes=shapes).packed_bytes


def test_instruction_sets_of_named_processors() -> None:
    def present(target: str) -> set[str]:
        return {item.name for item in extensions(TargetSpec.parse(target)) if item.present}

    assert present("x86_64:haswell") == {"AVX2 and FMA"}
    assert present("x86_64:x86-64") == set()
    assert present("x86_64:cascadelake") == {"AVX2 and FMA", "AVX-512", "AVX-512 VNNI"}
    assert "AMX" in present("x86_64:sapphirerapids")
    assert present("aarch64:cortex-a72") == {"NEON"}
    assert {"NEON", "dotprod"} <= present("aarch64:cortex-a76")
    assert graphopt.inspect(network(), "x86_64:haswell").float_operations_per_cycle == 16
    assert graphopt.inspect(network(), "x86_64:cascadelake").float_operations_per_cycle == 32


def test_both_forms_on_the_terminal(tmp_path, capsys) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(parser.parse_model(ODD).SerializeToString())
    assert main(["inspect", str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["dimensions"] == {"n": ["x[0]"]}
    assert {"node", "op_type", "domain", "opset", "reason", "hint"} <= set(found["unsupported"][0])
    assert {"name", "present", "used", "brings"} <= set(found["extensions"][0])
    assert main(["inspect", str(path), "--target", "aarch64:cortex-a76"]) == 1
    shown = capsys.readouterr().out
    for words in ("n in x[0]", "NoSuchOperator", "com.example", "NEON", "packed weights"):
        assert words in shown, words
