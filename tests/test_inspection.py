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


def convolutions(only_float: bool = False) -> ModelProto:
    """x[1, 32, 28, 28] → two 3×3 convolutions → a product of two activations."""
    make, rng = helper.make_node, np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((32, 32, 3, 3)).astype(np.float32), f"w{k}")
        for k in range(2)
    ]
    nodes = [
        make("Conv", ["x", "w0"], ["a"], "first", pads=[1] * 4),
        make("Relu", ["a"], ["b"], "relu"),
        make("Conv", ["b", "w1"], ["c"], "second", pads=[1] * 4),
        make("MatMul", ["c", "c"], ["y"], "attention"),
    ]
    if only_float:
        nodes = [make("MatMul", ["x", "x"], ["y"], "attention")]
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 32, 28, 28]) for n in ("x", "y")
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [] if only_float else weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_int8_is_foretold_from_the_instruction_set() -> None:
    found = {
        target: graphopt.inspect(convolutions(), target).int8
        for target in (
            "x86_64:x86-64-v3", "x86_64:cascadelake", "x86_64:sapphirerapids",
            "aarch64:cortex-a76", "aarch64:cortex-a72",
        )
    }  # fmt: skip
    gains = {target: each.least * each.most for target, each in found.items() if each}
    assert len(gains) == len(found)
    assert gains["x86_64:x86-64-v3"] < gains["x86_64:cascadelake"] < gains["x86_64:sapphirerapids"]
    assert gains["aarch64:cortex-a72"] < gains["aarch64:cortex-a76"]
    ways = [each.way.split(":")[0] for each in found.values() if each]
    assert ways[:4] == ["16-bit pairs", "VNNI", "AMX", "sdot"]
    (one,) = {each.share for each in found.values() if each}
    products = 2 * 32 * 28 * 28 * 32 * 9
    assert one == pytest.approx(products / (products + 32 * 28 * 28 * 28))
    first = found["x86_64:cascadelake"]
    assert first is not None
    (kept,) = first.floats
    assert (kept.op, kept.nodes) == ("MatMul", ("attention",))
    assert kept.share == pytest.approx(1 - one)


@pytest.mark.parametrize(
    ("model", "words"),
    [(convolutions(only_float=True), "nothing to quantize"), (network(), "are open")],
)
def test_why_there_is_no_forecast(model: ModelProto, words: str) -> None:
    found = graphopt.inspect(model)
    assert found.int8 is None
    assert words in (found.no_int8 or "")


def test_the_forecast_says_that_it_is_one(tmp_path, capsys) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(convolutions().SerializeToString())
    assert main(["inspect", str(path), "--target", "x86_64:cascadelake"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "int8 forecast" in text
    assert "not measured" in text
    assert "1 × MatMul" in text
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["int8"]) == {"way", "share", "least", "most", "floats"}
    assert found["no_int8"] is None
