"""What a model takes and gives, and how shapes bind it."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.codegen.plan import TensorSpec
from graphopt.errors import ModelError, OptionError
from graphopt.frontend.model import OnnxModel
from graphopt.samples import random_inputs
from graphopt.signature import Signature, signature_of


def signature(
    *inputs: onnx.ValueInfoProto, outputs: list[onnx.ValueInfoProto] | None = None
) -> Signature:
    graph = helper.make_graph([], "g", list(inputs), outputs or [])
    return signature_of(OnnxModel(helper.make_model(graph)))


def info(
    name: str, dims: list[int | str | None] | None, kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def test_open_dimensions_are_none() -> None:
    found = signature(
        info("a", [1, 3]),
        info("b", ["n", None, 0], TensorProto.INT64),
        info("half", [2], TensorProto.BFLOAT16),
        outputs=[info("y", ["n"]), info("z", None)],
    )
    assert found.inputs == (
        TensorSpec("a", "float32", (1, 3)),
        TensorSpec("b", "int64", (None, None, None)),
        TensorSpec("half", "bfloat16", (2,)),
    )
    assert found.outputs == (TensorSpec("y", "float32", (None,)), TensorSpec("z", "float32", ()))
    assert not found.static
    assert signature(info("a", [1, 3]), info("s", [])).static
    assert not signature(info("a", None)).static  # no rank is not a scalar


def test_weights_are_no_inputs() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph([], "g", [info("x", [1]), info("w", [1])], [], [weight])
    found = signature_of(OnnxModel(helper.make_model(graph)))
    assert [spec.name for spec in found.inputs] == ["x"]


def test_names_of_dimensions_bind_other_inputs() -> None:
    found = signature(info("ids", ["batch", "seq"]), info("mask", ["batch", "seq"]), info("c", [4]))
    assert found.bind({"ids": (2, 8)}) == {"ids": (2, 8), "mask": (2, 8), "c": (4,)}
    with pytest.raises(OptionError, match="'batch' is 2 in input 'ids' and 3 in input 'mask'"):
        found.bind({"ids": (2, 8), "mask": (3, 8)})


def test_what_stays_open_is_named_with_the_flag() -> None:
    with pytest.raises(OptionError, match=r"'b' has unbound dimensions \(n, 3\).*--shape b="):
        signature(info("a", ["m"]), info("b", ["n", 3])).bind({"a": (1,)})
    with pytest.raises(OptionError, match="unknown rank"):
        signature(info("a", None)).bind({})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (helper.make_tensor_type_proto(TensorProto.STRING, [1]), "strings"),
        (
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.STRING, [1])),
            "strings",
        ),
        (helper.make_tensor_type_proto(TensorProto.UNDEFINED, [1]), "no element type"),
    ],
)
def test_other_inputs_than_tensors_of_numbers_are_refused(kind: onnx.TypeProto, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        signature(helper.make_value_info("x", kind))


def test_random_inputs_respect_types_and_repeat() -> None:
    specs = (
        TensorSpec("x", "float32", (None, 3)),
        TensorSpec("half", "float16", (4,)),
        TensorSpec("ids", "int64", (100,)),
        TensorSpec("attention_mask", "int64", (5,)),
        TensorSpec("flag", "bool", ()),
    )
    shapes = {"x": (2, 3), "half": (4,), "ids": (100,), "attention_mask": (5,), "flag": ()}
    made = random_inputs(specs, shapes)
    assert [str(array.dtype) for array in made.values()] == [spec.dtype for spec in specs]
    assert {name: array.shape for name, array in made.items()} == shapes
    assert set(made["ids"].tolist()) == {0, 1}
    assert made["attention_mask"].tolist() == [1] * 5
    assert made["flag"].item() is True
    again = random_inputs(specs, shapes)
    assert all((made[name] == again[name]).all() for name in made)
    assert not (random_inputs(specs, shapes, seed=1)["x"] == made["x"]).all()
