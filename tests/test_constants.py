"""Inputs that act as counts or modes are compiled in by value, and remain inputs."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt.artifact import bundle
from graphopt.cache import default_cache
from graphopt.cli.main import main
from graphopt.errors import InputError, OptionError

Array = np.ndarray[Any, Any]


def reference(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    """ONNX Runtime, optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, ["CPUExecutionProvider"])


def agree(actual: Mapping[str, Array], expected: list[Array], tolerance: float = 1e-4) -> None:
    for found, ref in zip(actual.values(), expected, strict=True):
        assert (found.dtype, found.shape) == (ref.dtype, ref.shape)
        assert np.abs(found - ref).max() <= tolerance * np.abs(ref).max()


@pytest.fixture(scope="module")
def tiles() -> onnx.ModelProto:
    """x[2, n], repeats[2], loud → y = tile(exp(x), repeats), doubled if `loud`."""
    make, info = helper.make_node, helper.make_tensor_value_info

    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [info(node.output[0], TensorProto.FLOAT, None)])

    nodes = [
        make("Exp", ["x"], ["e"], "exp"),
        make("Tile", ["e", "repeats"], ["t"], "tile"),
        make(
            "If",
            ["loud"],
            ["y"],
            "choice",
            then_branch=branch("yes", make("Add", ["t", "t"], ["doubled"], "double")),
            else_branch=branch("no", make("Identity", ["t"], ["same"], "keep")),
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "tiles",
        [
            info("repeats", TensorProto.INT64, [2]),
            info("x", TensorProto.FLOAT, [2, "n"]),
            info("loud", TensorProto.BOOL, []),
        ],
        [info("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def feeds(n: int = 3, repeats: tuple[int, int] = (2, 1), loud: bool = False) -> dict[str, Array]:
    x = np.random.default_rng(n).standard_normal((2, n), np.float32)
    return {"x": x, "repeats": np.array(repeats), "loud": np.array(loud)}


CASES = [feeds(), feeds(loud=True), feeds(4), feeds(3, (1, 3)), feeds(4, (1, 3), True), feeds()]


def test_each_value_seen_is_compiled_once(tiles: onnx.ModelProto) -> None:
    model, ref = graphopt.compile(tiles, threads=2), reference(tiles)
    assert [spec.name for spec in model.inputs] == ["repeats", "x", "loud"]
    for case in (*CASES, *CASES):
        agree(model.run(case), ref.run(None, case))
    assert len(model.shapes) == len(model.constants) == 5
    assert model.shapes[-1] == {"repeats": (2,), "x": (2, 3), "loud": ()}  # used last
    assert model.constants[-1]["repeats"].tolist() == [2, 1]
    assert model.report.constants == {"repeats": [2, 1], "loud": False}
    assert model.specialisations[-1] == "x=2,3 with repeats = [2, 1], loud = False"
    assert model.profile(CASES[0], repeats=2).rows
    out = np.empty((4, 3), np.float32)
    assert model.run(CASES[0], out={"y": out})["y"] is out


def test_values_given_ahead_are_saved_and_others_refused(
    tiles: onnx.ModelProto, tmp_path: Path
) -> None:
    ref = reference(tiles)
    shapes = [{"x": (2, 3)}, {"x": (2, 4)}]
    constants = [{"repeats": (2, 1), "loud": False}, {"repeats": [1, 3], "loud": True}]
    for name in ("0.gopt", "1.gopt"):
        model = graphopt.compile(tiles, shapes=shapes, constants=constants, threads=2)
        model.save(tmp_path / name)
    assert [c["loud"].item() for c in model.constants] == [False, True]
    assert model.constants[0]["repeats"].dtype == np.int64
    assert (tmp_path / "0.gopt").read_bytes() == (tmp_path / "1.gopt").read_bytes()

    loaded = graphopt.load(tmp_path / "0.gopt")
    assert [spec.name for spec in loaded.inputs] == ["repeats", "x", "loud"]
    assert loaded.inputs[1].shape == (2, None)
    assert [c["repeats"].tolist() for c in loaded.constants] == [[2, 1], [1, 3]]
    for case in (CASES[0], CASES[4]):
        agree(loaded.run(case), ref.run(None, case))
    with pytest.raises(
        InputError,
        match=r"for x=2,3 with repeats = \[5, 1\], loud = False.*"
        r"it has: x=2,3 with repeats = \[2, 1\], loud = False; x=2,4 with repeats = \[1, 3\]",
    ):
        loaded.run(feeds(3, (5, 1)))
    with pytest.raises(InputError, match="'loud'"):
        loaded.run({"x": CASES[0]["x"], "repeats": CASES[0]["repeats"]})
    with pytest.raises(InputError, match=r"'repeats' has the wrong type; expected int64"):
        loaded.run({**CASES[0], "repeats": np.array([2, 1], np.int32)})
    loaded.save(tmp_path / "again.gopt")
    assert (tmp_path / "again.gopt").read_bytes() == (tmp_path / "0.gopt").read_bytes()
    assert graphopt.verify(loaded, tiles).ok
    entry = bundle.load(tmp_path / "0.gopt").manifest.entries[0]
    assert [(b.name, b.values) for b in entry.bound] == [("repeats", (2, 1)), ("loud", (0,))]


def test_one_set_of_values_goes_with_all_shapes(tiles: onnx.ModelProto) -> None:
    values = {"repeats": (2, 1), "loud": True}
    model = graphopt.compile(tiles, shapes=[{"x": (2, 3)}, {"x": (2, 4)}], constants=values)
    assert [shapes["x"] for shapes in model.shapes] == [(2, 3), (2, 4)]
    assert all(c["loud"].item() for c in model.constants)
    agree(model.run(feeds(4, loud=True)), reference(tiles).run(None, feeds(4, loud=True)))


def test_the_cache_tells_values_apart(
    tiles: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE", str(tmp_path))
    for case in (CASES[0], CASES[1], CASES[0]):
        model = graphopt.compile(tiles, cache=True)
        agree(model.run(case), reference(tiles).run(None, case))
    assert len(default_cache().entries()) == 2


def test_inputs_that_are_data_may_be_compiled_in_too() -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        "sum",
        [info("a", TensorProto.INT32, [2]), info("b", TensorProto.INT32, [1])],
        [info("y", TensorProto.INT32, [2])],
    )
    model = graphopt.compile(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        constants={"b": -7},  # one number for a tensor of one element
    )
    for b in (-7, 5):
        inputs = {"a": np.array([1, 2], np.int32), "b": np.array([b], np.int32)}
        np.testing.assert_array_equal(model.run(inputs)["y"], inputs["a"] + b)
    assert [c["b"].tolist() for c in model.constants] == [[-7], [5]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shapes": {"x": (2, 3)}}, r"'repeats' is needed to compile node tile.*--constant"),
        ({"shapes": {"x": (2, 3)}, "constants": {"loud": True}}, "'repeats' is needed"),
        ({"constants": {"loud": True, "repeats": [1, 1]}}, r"'x' has unbound.*--shape"),
        ({"constants": {"lout": True}}, "did you mean 'loud'"),
        ({"constants": {"loud": 2}}, "2 is no value of input 'loud'"),
        ({"constants": {"loud": 0.5}}, "0.5 is no value of input 'loud', which is bool"),
        ({"constants": {"loud": "yes"}}, "must be a number"),
        ({"constants": {"loud": [[1], [1, 2]]}}, "must be a number"),
        ({"constants": {"repeats": [1, 1, 1], "loud": 0}, "shapes": {"x": (2, 3)}}, "2"),
        ({"constants": 5}, "must map input names"),
        ({"constants": []}, "is empty"),
        ({"constants": {3: 1}}, "must be a string"),
        (
            {"shapes": [{"x": (2, 3)}, {"x": (2, 4)}, {"x": (2, 5)}], "constants": [{}, {}]},
            "3 sets of shapes and 2 sets of constants",
        ),
    ],
)
def test_wrong_values_are_refused(
    tiles: onnx.ModelProto, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        graphopt.compile(tiles, **options)


def test_saving_before_a_value_is_known_names_the_flags(
    tiles: onnx.ModelProto, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"shapes=.* and constants=.*--constant"):
        graphopt.compile(tiles).save(tmp_path / "m.gopt")


def test_one_bound_holds_for_all_specialisations() -> None:
    """Concurrent callers on two specialisations: exact results, and threads − 1 workers in all."""
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.standard_normal(shape, np.float32) / 10, name)
        for name, shape in {"w0": (32, 3, 3, 3), "w1": (32, 32, 3, 3)}.items()
    ]
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["a", "w1"], ["y"], pads=[1] * 4),
    ]
    sizes = [info("x", TensorProto.FLOAT, [1, 3, "h", 32])]
    graph = helper.make_graph(nodes, "g", sizes, [info("y", TensorProto.FLOAT, None)], weights)
    opsets = [helper.make_opsetid("", 17)]
    source = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    model = graphopt.compile(source, shapes=[{"x": (1, 3, h, 32)} for h in (32, 40)], threads=3)
    images = [rng.standard_normal((1, 3, h, 32), np.float32) for h in (32, 40)]
    expected = [model.run({"x": image})["y"] for image in images]
    wrong: list[str] = []
    most = busy = 0

    def team() -> int:
        return sum(thread.name.startswith("graphopt-worker") for thread in threading.enumerate())

    before = team() - 2

    def call(index: int) -> None:
        nonlocal most, busy
        for turn in range(200):
            which = (index + turn // 5) % 2
            if not np.array_equal(model.run({"x": images[which]})["y"], expected[which]):
                wrong.append(f"caller {index}, run {turn}")
            most, busy = max(most, team()), max(busy, model._workers.permits._busy)

    callers = [threading.Thread(target=call, args=(index,)) for index in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert not wrong
    assert most <= before + 2
    assert busy <= 3


def silero(name: str) -> Path:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        pytest.skip("the package silero-vad is not installed (make setup)")
    return Path(spec.origin).parent / "data" / name


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("silero_vad_16k_op15.onnx", [(1, 16000), (2, 16000)]),
        ("silero_vad_op18_ifless.onnx", [(1, 16000), (1, 8000), (2, 8000)]),
        ("silero_vad.onnx", [(1, 16000), (1, 8000), (2, 16000)]),
    ],
)
def test_silero_vad_over_several_steps(
    name: str, cases: list[tuple[int, int]], tmp_path: Path
) -> None:
    path = silero(name)
    ref, rng = reference(path), np.random.default_rng(0)
    first_batch, first_rate = cases[0]
    shapes = {"input": (first_batch, 576), "state": (2, first_batch, 128)}
    model = graphopt.compile(path, shapes=shapes, constants={"sr": first_rate}, threads=2)
    model.save(tmp_path / "m.gopt")
    programs = {case: [model] for case in cases}
    programs[cases[0]].append(graphopt.load(tmp_path / "m.gopt"))  # type: ignore[arg-type]
    for (batch, rate), runners in programs.items():
        for program in runners:
            state = (rng.standard_normal((2, batch, 128)) / 2).astype(np.float32)
            theirs = state.copy()
            for _ in range(6):
                x = (rng.standard_normal((batch, 576 * rate // 16000)) / 10).astype(np.float32)
                inputs = {"input": x, "sr": np.array(rate)}
                found = program.run({**inputs, "state": state})
                expected = ref.run(None, {**inputs, "state": theirs})
                # Errors of earlier steps are fed back.
                agree(found, expected, 2e-4)
                state, theirs = found["stateN"], expected[1]
    assert len(model.shapes) == len(cases)


def test_command_line(
    tiles: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, program = tmp_path / "m.onnx", tmp_path / "m.gopt"
    onnx.save(tiles, path)

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    code, out, _ = run("inspect", path, "--json")
    assert (code, sorted(json.loads(out)["values"])) == (0, ["loud", "repeats"])
    flags = ("--constant", "repeats=2,1", "--constant", "loud=true")
    assert run("inspect", path, "--shape", "x=2,3", *flags)[0] == 0
    code, _, err = run("compile", path, "-o", program, "--shape", "x=2,3")
    assert (code, "--constant repeats=" in err) == (2, True)
    code, out, _ = run("compile", path, "-o", program, "--shape", "x=2,3", *flags)
    assert (code, "repeats=[2, 1]  loud=True" in out) == (0, True)
    np.savez(tmp_path / "in.npz", **CASES[1])  # type: ignore[arg-type]
    assert run("run", program, "--input", tmp_path / "in.npz")[0] == 0
    assert run("verify", program, "--against", path)[0] == 0
    assert run("verify", path, "--shape", "x=2,4", *flags)[0] == 0
    assert run("verify", path, "--input", tmp_path / "in.npz")[0] == 0
    code, _, err = run("verify", path, "--shape", "x=2,4")
    assert (code, "--constant" in err) == (2, True)
    assert run("profile", program, "--repeats", 2)[0] == 0
    assert run("profile", program, "--repeats", 2, "--constant", "loud=true")[0] == 0
    code, _, err = run("profile", program, "--constant", "loud=false")
    assert (code, "it has: x=2,3 with repeats = [2, 1], loud = True" in err) == (2, True)
    code, out, _ = run("bench", path, "--shape", "x=2,3", *flags, "--rounds", 1, "--json")
    row = json.loads(out)["rows"][0]
    assert row["subject"]["errors"]["y"] <= 1e-4, row


@pytest.fixture(scope="module")
def enlarging() -> onnx.ModelProto:
    """x[1, 1, 2, n], scales[4] → y = x resized; steps = range(start, 1, 0.25)."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Resize", ["x", "", "scales"], ["y"], "resize", mode="nearest"),
            helper.make_node("Range", ["start", "one", "step"], ["steps"], "range"),
        ],
        "enlarging",
        [
            info("x", TensorProto.FLOAT, [1, 1, 2, "n"]),
            info("scales", TensorProto.FLOAT, [4]),
            info("start", TensorProto.FLOAT, []),
        ],
        [info("y", TensorProto.FLOAT, None), info("steps", TensorProto.FLOAT, [None])],
        [
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("step", TensorProto.FLOAT, [], [0.25]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_scales_and_bounds_of_floats_are_compiled_in(
    enlarging: onnx.ModelProto, tmp_path: Path
) -> None:
    model = graphopt.compile(enlarging)
    session = reference(enlarging)
    x = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    for factor, start in ((2.0, 0.0), (3.0, 0.0), (2.0, 0.1), (2.0, 0.0)):
        inputs = {
            "x": x,
            "scales": np.array([1, 1, factor, 2], np.float32),
            "start": np.array(start, np.float32),
        }
        agree(model.run(inputs), session.run(None, inputs))
    assert len(model.specialisations) == 3
    model.save(tmp_path / "m.gopt")
    loaded = graphopt.load(tmp_path / "m.gopt")
    np.testing.assert_array_equal(loaded.run(inputs)["y"], model.run(inputs)["y"])
    assert [c["start"].dtype for c in loaded.constants] == [np.float32] * 3
    with pytest.raises(InputError, match=r"start = 0\.2"):
        loaded.run({**inputs, "start": np.array(0.2, np.float32)})


def test_floats_are_given_as_options_and_on_the_command_line(
    enlarging: onnx.ModelProto, tmp_path: Path
) -> None:
    x = np.ones((1, 1, 2, 3), np.float32)
    scales = np.array([1, 1, 1.5, 2], np.float32)
    model = graphopt.compile(
        enlarging, shapes={"x": x.shape}, constants={"scales": [1, 1, 1.5, 2], "start": 0}
    )
    got = model.run({"x": x, "scales": scales, "start": np.float32(0)})
    assert got["y"].shape == (1, 1, 3, 6)
    onnx.save(enlarging, tmp_path / "m.onnx")
    flags = ["--shape", "x=1,1,2,3", "--constant", "scales=1,1,1.5,2", "--constant", "start=-1e-3"]
    out = str(tmp_path / "m.gopt")
    assert main(["compile", str(tmp_path / "m.onnx"), "-o", out, *flags]) == 0
    loaded = graphopt.load(out)
    got = loaded.run({"x": x, "scales": scales, "start": np.array(-1e-3, np.float32)})
    assert got["steps"].shape == (5,)


def test_equal_floats_with_other_bits_are_other_values(enlarging: onnx.ModelProto) -> None:
    model = graphopt.compile(enlarging)
    inputs = {"x": np.ones((1, 1, 2, 2), np.float32), "scales": np.ones(4, np.float32)}
    for zero in (0.0, -0.0):
        steps = model.run({**inputs, "start": np.array(zero, np.float32)})["steps"]
        assert np.signbit(steps[0]) == np.signbit(zero)
