"""The importer's contract: names, sites, outputs, and one error for all unsupported nodes."""

from __future__ import annotations

import numpy as np
import pytest
from frontend_reference import assert_close, benchmark_model, imported, run_graph
from onnx import TensorProto, helper
from test_frontend_prepare import FLOAT, INT64, info, model_of
from tvm import relax

from graphopt.errors import ModelError
from graphopt.frontend.diagnose import diagnose
from graphopt.frontend.load import load_model
from graphopt.ops import base, recurrent, resize

node = helper.make_node


def test_parameters_outputs_and_variables_are_named_after_onnx() -> None:
    proto = model_of(
        [node("Relu", ["in:0"], ["a.b/c"], name="r"), node("Exp", ["a.b/c"], ["out"], name="e")],
        [info("in:0", FLOAT, [2])],
        [info("out", FLOAT, [2]), info("a.b/c", FLOAT, [2])],
    )
    graph = imported(proto)
    assert [p.name for p in graph.module["main"].params] == ["in:0"]
    assert graph.outputs == ("out", "a.b/c")
    assert graph.sites == {"a_b_c": ("r",), "out": ("e",)}
    relax.analysis.well_formed(graph.module)


def test_outputs_may_be_inputs_constants_and_repeated() -> None:
    proto = model_of(
        [node("Identity", ["x"], ["y"]), node("Constant", [], ["c"], value_floats=[1.0, 2.0])],
        [info("x", FLOAT, [2])],
        [info("y", FLOAT, [2]), info("c", FLOAT, [2])],
    )
    x = np.array([3, 4], np.float32)
    want = {"y": x, "c": np.array([1, 2], np.float32)}
    assert_close(run_graph(imported(proto), {"x": x}), want)


def test_all_unsupported_nodes_are_listed_at_once() -> None:
    proto = model_of(
        [
            node("NonZero", ["x"], ["i"], name="where"),
            node("MaxPool", ["im"], ["p", "ind"], name="pool", kernel_shape=[2, 2]),
            node("Relu", ["p"], ["q"]),
            node("Fancy", ["q"], ["z"], name="fancy", domain="vendor"),
            node("Cast", ["i"], ["j"], to=FLOAT),
            node("Bernoulli", ["m"], ["d"], name="dice"),
        ],
        [info("x", FLOAT, [3]), info("im", FLOAT, [1, 1, 4, 4]), info("m", FLOAT, [3, 3])],
        [
            info("j", FLOAT, None),
            info("z", FLOAT, None),
            info("ind", INT64, None),
            info("d", FLOAT, [3, 3]),
        ],
        imports=[helper.make_opsetid("vendor", 3)],
    )
    with pytest.raises(ModelError) as caught:
        imported(proto)
    text = str(caught.value)
    assert "3 node(s)" in text
    for line in (
        "where: NonZero (operator set 18) — the shape of its result depends on the data",
        "fancy: vendor.Fancy (operator set 3)",
        "dice: Bernoulli (operator set 18) — random operators are not supported",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (node("Conv", ["x", "w"], ["y"], pads=[-1, 0, 0, 0]), "negative"),
        (node("Bernoulli", ["x"], ["y"]), "random"),
        (node("Gather", ["x", "far"], ["y"]), "out of range"),
        (node("GroupNormalization", ["x", "g", "b"], ["y"], num_groups=3), "3 groups"),
    ],
)
def test_what_a_converter_does_not_handle_is_refused_by_name(made: object, reason: str) -> None:
    ones = np.ones(2, np.float32)
    weights = {
        "w": np.ones((2, 2, 3, 3), np.float32),
        "s": np.array([1, 1, 2, 2], np.float32),
        "r": np.zeros(8, np.float32),
        "g": ones,
        "b": ones,
        "m": ones,
        "v": ones,
        "p": np.array([0, 0, 9, 0, 0, 0, 0, 0], np.int64),
        "far": np.array([7], np.int64),
    }
    used = {k: v for k, v in weights.items() if k in made.input}
    proto = model_of(
        [made], [info("x", FLOAT, [1, 2, 4, 4])], [info("y", FLOAT, None)], used, opset=21
    )
    with pytest.raises(ModelError, match=reason):
        imported(proto)


def test_recurrent_variants_are_refused_by_name() -> None:
    def lstm(inputs: list[str], **attributes: object) -> object:
        return model_of(
            [node("LSTM", inputs, ["y"], hidden_size=3, **attributes)],
            [
                info("x", FLOAT, [4, 2, 5]),
                info("w", FLOAT, [1, 12, 5]),
                info("r", FLOAT, [1, 12, 3]),
                info("p", FLOAT, [1, 9]),
                info("n", TensorProto.INT32, [2]),
            ],
            [info("y", FLOAT, None)],
        )

    for model, reason in (
        (lstm(["x", "w", "r"], activations=["Relu", "Tanh"]), "2 activations are given, 3 needed"),
        (lstm(["x", "w", "r"], activations=["Gelu", "Tanh", "Tanh"]), "activation gelu is unknown"),
        (lstm(["x", "w", "r"], activations=["Affine", "Tanh", "Tanh"]), "affine needs its alpha"),
        (lstm(["x", "w", "r"], direction="sideways"), "direction 'sideways' is unknown"),
        (lstm(["x", "w", "r"], direction="bidirectional"), "W has shape"),
    ):
        with pytest.raises(ModelError, match=reason):
            imported(model)


def test_an_unknown_attribute_is_not_overlooked() -> None:
    made = node("Softmax", ["x"], ["y"], domain="com.microsoft")
    gelu = node("Gelu", ["x"], ["y"], domain="com.microsoft", secret=1)
    for one in (made, gelu):
        proto = model_of(
            [one],
            [info("x", FLOAT, [2])],
            [info("y", FLOAT, [2])],
            imports=[helper.make_opsetid("com.microsoft", 1)],
        )
        with pytest.raises(ModelError, match=r"attribute secret|no converter"):
            imported(proto)


def test_tied_weights_stay_one_constant() -> None:
    proto = model_of(
        [node("MatMul", ["x", "w"], ["a"]), node("MatMul", ["a", "w"], ["y"])],
        [info("x", FLOAT, [3, 3])],
        [info("y", FLOAT, [3, 3])],
        {"w": np.eye(3, dtype=np.float32)},
    )
    first, second, _ = imported(proto).module["main"].body.blocks[0].bindings
    assert first.value.args[1].same_as(second.value.args[1])


def test_own_operators_infer_their_types_and_refuse_wrong_shapes() -> None:
    x = relax.Var("x", relax.TensorType((4, 2, 5), "float32"))
    weights = [
        relax.const(np.zeros(shape, np.float32)) for shape in ((12, 5), (12, 3), (24,), (2, 3))
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        w, r, b, state = weights
        plain = tuple((name, 0.0, 0.0) for name in ("sigmoid", "tanh", "tanh"))
        options = recurrent.CellOptions(3, True, plain)
        call = recurrent.lstm(x, w, r, b, state, state, options)
        assert [int(d) for d in builder.normalize(call).ty.shape] == [6, 2, 3]
        attributes = base.attributes(call)
        assert (attributes["hidden"], attributes["reverse"]) == (3, True)
        assert attributes["activations"] == plain
        wrong = recurrent.lstm(x, w, r, state, state, state, options)
        with pytest.raises(ValueError, match="argument 3 has shape"):
            builder.normalize(wrong)
        builder.emit_func_output(x)
    with pytest.raises(ValueError, match="method"):
        resize.resize2d(x, size=(1, 1), scales=(1, 1), method="lanczos")


def test_diagnosis_counts_what_resnet18_is_known_to_have() -> None:
    report = diagnose(load_model(benchmark_model("resnet18")))
    assert report.compiles
    assert report.histogram["Conv"] == 20
    assert report.parameters == pytest.approx(11.69e6, rel=1e-2)
    assert report.flops == pytest.approx(3.63e9, rel=1e-2)  # 1.81 G multiply-adds
    assert report.to_dict()["inputs"][0]["shape"] == (1, 3, 224, 224)


def test_diagnosis_of_a_dynamic_model_with_unsupported_nodes() -> None:
    proto = model_of(
        [
            node("Bernoulli", ["x"], ["d"], name="dice"),
            node("NonZero", ["x"], ["z"], name="nz"),
            node("Add", ["rows", "rows"], ["twice"]),
            node("Tile", ["x", "twice"], ["t"], name="tile"),
        ],
        [info("x", FLOAT, ["N", "N"]), info("rows", INT64, [2])],
        [info("d", FLOAT, ["N", "N"]), info("z", INT64, None), info("t", FLOAT, None)],
    )
    report = diagnose(load_model(proto))
    assert report.unbound == ("x",)
    # What a converter refuses for its attributes or shapes is known when these are.
    assert report.unsupported == ()
    assert report.doubtful[0].startswith("tile: is compiled for each value of input 'rows'")
    bound = diagnose(load_model(proto), {"x": (3, 3)})
    # tile only lacks a value; nz is run by a program that is cut at it.
    assert [item.node for item in bound.unsupported] == ["dice"]
    assert not bound.compiles
