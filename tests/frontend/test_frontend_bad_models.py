"""Damaged, contradictory and hostile models: one GraphoptError that says what and where."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.cli.main import main
from graphopt.errors import GraphoptError

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
info = helper.make_tensor_value_info


def node(op: str, inputs: list[str], outputs: list[str], name: str, **attrs: Any) -> Any:
    return helper.make_node(op, inputs, outputs, name=name, **attrs)


def tensor(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def model_of(
    nodes: list[Any],
    init: list[onnx.TensorProto] | None = None,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    opsets: list[tuple[str, int]] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", FLOAT, [2, 3])] if inputs is None else inputs,
        [info("y", FLOAT, None)] if outputs is None else outputs,
        init or [],
    )
    imports = [helper.make_opsetid(*opset) for opset in opsets or [("", 17)]]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions or [])


def relu(**changes: Any) -> onnx.ModelProto:
    return model_of([node("Relu", ["x"], ["y"], "R")], **changes)


def weights(**fields: Any) -> onnx.ModelProto:
    """y = x + w, with w as given."""
    made = TensorProto(**{"name": "w", "data_type": FLOAT, "dims": [3], **fields})
    return model_of([node("Add", ["x", "w"], ["y"], "A")], [made])


def if_of(then: list[Any], constant: bool) -> onnx.ModelProto:
    branches = {
        "then_branch": helper.make_graph(then, "t", [], [info("t", FLOAT, None)]),
        "else_branch": helper.make_graph(
            [node("Relu", ["x"], ["e"], "E")], "e", [], [info("e", FLOAT, None)]
        ),
    }
    made = node("If", ["c"], ["y"], "I", **branches)
    if constant:
        return model_of([made], [tensor("c", True)])
    return model_of([made], inputs=[info("x", FLOAT, [2, 3]), info("c", TensorProto.BOOL, [])])


def with_attribute(**fields: Any) -> onnx.ModelProto:
    """A Softmax with an attribute made by hand."""
    made = node("Softmax", ["x"], ["y"], "S")
    made.attribute.add(**fields)
    return model_of([made])


def doubling(depth: int) -> onnx.ModelProto:
    """A function that stands for 2^depth nodes."""
    ours = [helper.make_opsetid("f", 1), helper.make_opsetid("", 17)]
    functions = [
        helper.make_function("f", "F0", ["a"], ["b"], [node("Relu", ["a"], ["b"], "")], ours)
    ]
    for i in range(1, depth):
        body = [
            helper.make_node(f"F{i - 1}", ["a"], ["t"], domain="f"),
            helper.make_node(f"F{i - 1}", ["t"], ["b"], domain="f"),
        ]
        functions.append(helper.make_function("f", f"F{i}", ["a"], ["b"], body, ours))
    call = node(f"F{depth - 1}", ["x"], ["y"], "call", domain="f")
    return model_of([call], opsets=[("", 17), ("f", 1)], functions=functions)


def recursive() -> onnx.ModelProto:
    ours = [helper.make_opsetid("f", 1)]
    body = [helper.make_node("F", ["a"], ["b"], domain="f")]
    function = helper.make_function("f", "F", ["a"], ["b"], body, ours)
    call = node("F", ["x"], ["y"], "call", domain="f")
    return model_of([call], opsets=[("", 17), ("f", 1)], functions=[function])


def sparse(index: int, size: int) -> onnx.ModelProto:
    made = model_of([node("Add", ["x", "w"], ["y"], "A")])
    added = made.graph.sparse_initializer.add(dims=[size])
    added.values.CopyFrom(tensor("w", np.ones(1, np.float32)))
    added.indices.CopyFrom(tensor("i", np.array([index])))
    return made


def hostile(op: str, *parameters: Any, shape: tuple[int, ...] = (2, 3), **attrs: Any) -> Any:
    """A node H of x and constants, whose result is far too large or impossible."""
    init = [tensor(f"p{i}", p) for i, p in enumerate(parameters) if p is not None]
    names = [f"p{i}" if p is not None else "" for i, p in enumerate(parameters)]
    first = [] if op in ("ConstantOfShape", "Range") else ["x"]
    made = node(op, [*first, *names], ["y"], "H", **attrs)
    kind = INT if op == "OneHot" else FLOAT
    return model_of(
        [made], init, [info("x", kind, shape)], [info("y", TensorProto.UNDEFINED, None)]
    )


BIG = 10**12
STRUCTURE: dict[str, tuple[onnx.ModelProto, str | None, str]] = {
    "cycle": (
        model_of([node("Add", ["x", "b"], ["a"], "A"), node("Relu", ["a"], ["b"], "B"),
                  node("Relu", ["b"], ["y"], "C")]), "A", "form a cycle"),
    "self_loop": (model_of([node("Add", ["x", "y"], ["y"], "A")]), "A", "form a cycle"),
    "order": (
        model_of([node("Relu", ["a"], ["y"], "second"), node("Abs", ["x"], ["a"], "first")]),
        "second", "must come in order"),
    "missing_initializer": (
        model_of([node("Add", ["x", "w"], ["y"], "A")]), "A", "'w', which the node reads, is no"),
    "missing_in_branch": (
        if_of([node("Add", ["x", "nobody"], ["t"], "T")], False), "I", "'nobody'"),
    "missing_in_dead_branch": (
        if_of([node("Add", ["x", "nobody"], ["t"], "T")], True), "I", "'nobody'"),
    "value_twice": (
        model_of([node("Relu", ["x"], ["y"], "A"), node("Abs", ["x"], ["y"], "B")]),
        "B", "the result of node A too"),
    "value_is_input": (
        model_of([node("Relu", ["x"], ["x"], "A"), node("Abs", ["x"], ["y"], "B")]),
        "A", "is an input too"),
    "value_is_initializer": (
        model_of([node("Relu", ["x"], ["w"], "A"), node("Abs", ["w"], ["y"], "B")],
                 [tensor("w", np.ones(3, np.float32))]), "A", "is an input too"),
    "input_twice": (
        relu(inputs=[info("x", FLOAT, [2, 3])] * 2), None, "input 'x' is listed twice"),
    "initializer_twice": (
        relu(init=[tensor("w", np.ones(3))] * 2), None, "initializer 'w' is listed twice"),
    "output_twice": (
        relu(outputs=[info("y", FLOAT, None)] * 2), None, "output 'y' is listed twice"),
    "unknown_output": (
        relu(outputs=[info("z", FLOAT, None)]), None, "Nothing computes the output 'z'"),
    "attribute_string_for_int": (
        model_of([node("Softmax", ["x"], ["y"], "S", axis="one")]), "S", "Expected: 'INT'"),
    "attribute_ints_for_int": (
        model_of([node("Concat", ["x", "x"], ["y"], "C", axis=[0, 1])]), "C", "Expected: 'INT'"),
    "attribute_missing": (
        model_of([node("Concat", ["x", "x"], ["y"], "C")]), "C", "'axis' is missing"),
    "attribute_without_type": (with_attribute(name="axis", i=1), "S", "Field 'type'"),
    "attribute_without_name": (with_attribute(i=1, type=onnx.AttributeProto.INT), "S", "'name'"),
    "attribute_unknown": (
        model_of([node("Relu", ["x"], ["y"], "R", blob=b"x" * 10_000_000)]), "R", "blob"),
    "branch_is_no_graph": (
        model_of([node("If", ["x"], ["y"], "I", then_branch=1, else_branch=2)]), "I", "'GRAPH'"),
    "constant_without_value": (
        model_of([node("Constant", [], ["k"], "K"), node("Add", ["x", "k"], ["y"], "A")]),
        "K", "no value"),
    "too_many_inputs": (model_of([node("Relu", ["x"] * 3, ["y"], "R")]), "R", "input size 3"),
    "too_few_inputs": (model_of([node("Add", ["x"], ["y"], "A")]), "A", "input size 1"),
    "empty_input": (model_of([node("Add", ["x", ""], ["y"], "A")]), "A", "input 1"),
    "types_differ": (
        model_of([node("Add", ["x", "w"], ["y"], "A")], [tensor("w", np.ones(3, np.int64))]),
        "A", "tensor\\(int64\\)"),
    "output_shape": (
        relu(outputs=[info("y", FLOAT, [7, 3])]), "R", r"declared with the shape \(7, 3\)"),
    "output_rank": (relu(outputs=[info("y", FLOAT, [6])]), "R", "declared with the shape"),
    "output_type": (relu(outputs=[info("y", INT, [2, 3])]), "R", "declared as int64, it is float"),
    "no_operator_set": (relu(opsets=[("com.microsoft", 1)]), "R", "imports no operator set"),
    "new_operator_set": (relu(opsets=[("", 999)]), None, "operator set 999"),
    "operator_set_zero": (relu(opsets=[("", 0)]), None, "operator set 0"),
    "operator_set_negative": (relu(opsets=[("", -1)]), None, "operator set -1"),
    "two_operator_sets": (
        relu(opsets=[("", 17), ("ai.onnx", 11)]), None, "operator sets 17 and 11"),
    "unknown_domain": (
        model_of([node("Frob", ["x"], ["y"], "F", domain="com.evil")]), "F", "com.evil"),
    "unknown_operator": (model_of([node("Frob", ["x"], ["y"], "F")]), "F", "no converter"),
    "no_operator": (model_of([node("", ["x"], ["y"], "F")]), "F", "op_type"),
    "short_initializer": (weights(raw_data=bytes(8)), None, "w"),
    "wrong_data_field": (weights(int32_data=[1, 2, 3]), None, "int32_data"),
    "two_data_fields": (weights(raw_data=bytes(12), float_data=[1, 2, 3]), None, "one value field"),
    "negative_dimension": (weights(dims=[-3], raw_data=bytes(12)), None, "negative dimension"),
    "initializer_of_2_to_62": (weights(dims=[2**62], raw_data=bytes(12)), "A", "w"),
    "initializer_overflow": (weights(dims=[2**62, 2**62, 0]), "A", "does not have the data"),
    "initializer_of_100_axes": (
        weights(dims=[1] * 100, raw_data=bytes(4)), None, "100 dimensions"),
    "unknown_element_type": (
        weights(data_type=99, raw_data=bytes(12)), None, "unknown element type 99"),
    "input_of_unknown_type": (
        relu(inputs=[info("x", 99, [2])]), None, "unknown element type 99"),
    "input_of_100_axes": (relu(inputs=[info("x", FLOAT, [1] * 100)]), None, "100 dimensions"),
    "input_of_2_to_62": (relu(inputs=[info("x", FLOAT, [2**62] * 2)]), None, "2\\^31 elements"),
    "sparse_index": (sparse(10**9, 3), None, "indices outside its shape"),
    "sparse_negative": (sparse(-1, 3), None, "indices outside its shape"),
    "sparse_huge": (sparse(1, BIG), None, "too large"),
    "recursion": (recursive(), None, "F"),
    "function_bomb": (doubling(40), "call", "stands for more than"),
}  # fmt: skip

HOSTILE: dict[str, Callable[[], onnx.ModelProto]] = {
    "reshape": lambda: hostile("Reshape", np.array([BIG, 6])),
    "constant": lambda: hostile("ConstantOfShape", np.array([BIG])),
    "constant_2_to_80": lambda: hostile("ConstantOfShape", np.array([2**40, 2**40])),
    "constant_negative": lambda: hostile("ConstantOfShape", np.array([-5])),
    "expand": lambda: hostile("Expand", np.array([BIG, 2, 3])),
    "tile": lambda: hostile("Tile", np.array([10**6, 10**6])),
    "pad": lambda: hostile("Pad", np.array([BIG, 0, 0, 0])),
    "resize": lambda: hostile(
        "Resize", None, np.array([1, 1, 1e6, 1e6], np.float32), shape=(1, 1, 2, 2)
    ),
    "range": lambda: hostile("Range", np.array(0), np.array(BIG), np.array(1)),
    "range_by_zero": lambda: hostile("Range", np.array(0), np.array(5), np.array(0)),
    "range_to_infinity": lambda: hostile(
        "Range", *(np.array(v, np.float32) for v in (0, np.inf, 1))
    ),
    "convolution": lambda: hostile(
        "Conv", np.ones((1, 1, 3, 3), np.float32), shape=(1, 1, 8, 8), pads=[10**6] * 4
    ),
    "dilation": lambda: hostile(
        "Conv", np.ones((1, 1, 3, 3), np.float32), shape=(1, 1, 8, 8), dilations=[2**62] * 2
    ),
    "no_groups": lambda: hostile(
        "Conv", np.ones((1, 1, 3, 3), np.float32), shape=(1, 1, 8, 8), group=0
    ),
    "window": lambda: hostile("MaxPool", shape=(1, 1, 8, 8), kernel_shape=[2**40] * 2),
    "no_window": lambda: hostile("MaxPool", shape=(1, 1, 8, 8), kernel_shape=[0, 0]),
    "outer_product": lambda: hostile("MatMul", np.ones((1, 10**6), np.float32), shape=(10**6, 1)),
    "one_hot": lambda: hostile("OneHot", np.array(BIG), np.array([0.0, 1.0]), shape=(8,)),
    "axes": lambda: hostile("Unsqueeze", np.arange(10**5)),
    "index": lambda: hostile("Gather", np.array([BIG])),
}


@pytest.mark.parametrize("case", list(STRUCTURE))
def test_a_model_that_does_not_hold_together(case: str) -> None:
    model, name, reason = STRUCTURE[case]
    with pytest.raises(GraphoptError, match=reason) as caught:
        graphopt.compile(model.SerializeToString())
    assert caught.value.node == name
    assert caught.value.stage != "internal"
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("case", list(HOSTILE))
def test_a_result_that_cannot_be_is_refused_by_node(case: str) -> None:
    data = HOSTILE[case]().SerializeToString()
    with pytest.raises(GraphoptError) as caught:
        graphopt.compile(data)
    assert caught.value.node == "H"
    assert caught.value.stage in ("prepare", "import")


@pytest.mark.parametrize("case", list(STRUCTURE))
def test_inspect_says_so_too(case: str) -> None:
    try:
        compiles = graphopt.inspect(STRUCTURE[case][0].SerializeToString()).compiles
    except GraphoptError:
        return
    assert not compiles


def test_shapes_that_the_user_binds_may_contradict_the_declared_output() -> None:
    model = relu(inputs=[info("x", FLOAT, ["n", 3])], outputs=[info("y", FLOAT, [1, 3])])
    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(
        graphopt.compile(model, shapes={"x": (4, 3)}).run({"x": x})["y"], x
    )


def test_truncation_at_every_kind_of_place() -> None:
    data = model_of(
        [node("Add", ["x", "w"], ["a"], "A"), node("Relu", ["a"], ["y"], "R")],
        [tensor("w", np.ones((64, 3), np.float32)[:1])],
    ).SerializeToString()
    for end in range(len(data)):
        with pytest.raises(GraphoptError):
            graphopt.compile(data[:end])


def test_nesting_deeper_than_protobuf_reads() -> None:
    # Written by hand: protobuf refuses to build such a model too.
    def field(number: int, body: bytes) -> bytes:
        length, head = len(body), bytes([number << 3 | 2])
        digits = b""
        while length >= 128:
            digits += bytes([length & 127 | 128])
            length >>= 7
        return head + digits + bytes([length]) + body

    graph = field(2, b"leaf")
    for _ in range(1000):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(4, b"If") + field(5, attribute))
    data = b"\x08\x08" + field(7, graph)
    with pytest.raises(GraphoptError, match="nests subgraphs deeper"):
        graphopt.compile(data)


def test_many_nodes_are_refused_before_they_are_compiled() -> None:
    names = ["x", *(f"v{i}" for i in range(29_999)), "y"]
    nodes = [node("Relu", [a], [b], "") for a, b in pairwise(names)]
    with pytest.raises(GraphoptError, match="30000 nodes"):
        graphopt.compile(model_of(nodes).SerializeToString())


def external(folder: Path, location: str, dims: list[int], **fields: str) -> Path:
    """y = x + w with w in another file."""
    made = TensorProto(name="w", data_type=FLOAT, dims=dims)
    made.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        made.external_data.add(key=key, value=value)
    model = model_of([node("Add", ["x", "w"], ["y"], "A")], [made])
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    np.arange(8, dtype=np.float32).tofile(folder / "w.bin")
    compiled = graphopt.compile(external(folder, "w.bin", [3], offset="4", length="12"))
    x = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(compiled.run({"x": x})["y"], [[1, 2, 3]] * 2)
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "folder.bin").mkdir()
    os.mkfifo(folder / "pipe.bin")
    for location, fields, reason in (
        ("../secret.bin", {}, "outside the model's folder"),
        (str(tmp_path / "secret.bin"), {}, "outside the model's folder"),
        ("link.bin", {}, "outside the model's folder"),
        ("", {}, "outside the model's folder"),
        ("nothing.bin", {}, "which is missing"),
        ("folder.bin", {}, "which is missing"),
        ("pipe.bin", {}, "which is missing"),
        ("w.bin", {"offset": "24"}, "has only 32"),
        ("w.bin", {"offset": "-4"}, "has only 32"),
        ("w.bin", {"offset": str(2**70)}, "has only 32"),
        ("w.bin", {"offset": "four"}, "no number"),
        ("w.bin", {"length": "16"}, "states 16 bytes"),
    ):
        with pytest.raises(GraphoptError, match=reason):
            graphopt.compile(external(folder, location, [3], **fields))
    with pytest.raises(GraphoptError, match="w"):
        graphopt.compile(external(folder, "w.bin", [2**62]))


def test_a_pipe_or_device_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path / "pipe.onnx", Path("/dev/zero")):
        with pytest.raises(GraphoptError, match="no regular file"):
            graphopt.compile(path)


@pytest.mark.parametrize("case", ["cycle", "attribute_string_for_int", "unknown_operator"])
def test_the_command_line_says_it_without_a_traceback(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(STRUCTURE[case][0].SerializeToString())
    assert main(["compile", str(path), "-o", str(tmp_path / "out.gopt")]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert f"node {STRUCTURE[case][1]}" in " ".join(shown.err.split())


def test_weights_of_several_gigabytes_are_not_copied(tmp_path: Path) -> None:
    rows, columns = 20_000, 40_000
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(rows * columns * 4)  # sparse: takes no space
    made = TensorProto(name="w", data_type=FLOAT, dims=[rows, columns])
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value="w.bin")
    inputs = [info("x", FLOAT, [1, rows])]
    whole = model_of([node("MatMul", ["x", "w"], ["y"], "M")], [made], inputs)
    part = model_of(
        [node("MatMul", ["x", "w"], ["unused"], "M"), node("Relu", ["x"], ["y"], "R")],
        [made],
        inputs,
    )
    for name, model in (("whole", whole), ("part", part)):
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    code = (
        "import resource, sys, graphopt\n"
        "from graphopt.frontend.load import load_model\n"
        "from graphopt.frontend.prepare import prepare\n"
        "prepare(load_model(sys.argv[1] + '/whole.onnx'))\n"
        "assert graphopt.inspect(sys.argv[1] + '/whole.onnx').compiles\n"
        "graphopt.compile(sys.argv[1] + '/part.onnx')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert int(done.stdout.split()[-1]) < 1500  # MiB, of which TVM takes 300
