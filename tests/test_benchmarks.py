"""The comparison harness: statistics, fair inputs, and every way a row must fail."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.bench import (
    EngineResult,
    Row,
    Spread,
    bench,
    geometric_mean,
    output_errors,
    paired_ratios,
    ratio_table,
    relative_error,
    sample_inputs,
    summarise,
    to_json,
)
from graphopt.bench import compare as compare_module
from graphopt.bench.inputs import bind_shapes, is_dynamic
from graphopt.bench.process import EngineError, EngineProcess, wait_until_idle
from graphopt.errors import InputError, OptionError

ROOT = Path(__file__).parent.parent
positive = st.floats(1e-6, 1e3)


def scaled_model(path: Path, factor: float, *, rows: int | None = 4) -> Path:
    """Write y = factor · relu(x) with x of shape [rows, 8]; an unbound first dimension if None."""
    shape = ["n" if rows is None else rows, 8]
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Mul", ["r", "factor"], ["y"]),
        ],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32(factor), "factor")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def embedding_model(rows: int) -> onnx.ModelProto:
    """A token embedding whose index is cast and reshaped on its way, times a mask."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["input_ids"], ["cast"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["cast", "flat"], ["index"]),
            helper.make_node("Gather", ["table", "index"], ["rows"], axis=0),
            helper.make_node("Mul", ["rows", "mask"], ["y"]),
        ],
        "embedding",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT32, [1, 64]),
            helper.make_tensor_value_info("mask", TensorProto.INT64, [64, 1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 3])],
        [
            numpy_helper.from_array(np.zeros((rows, 3), np.float32), "table"),
            numpy_helper.from_array(np.array([-1], np.int64), "flat"),
        ],
    )
    return helper.make_model(graph)


def measured(name: str, *latencies: float) -> EngineResult:
    return EngineResult(name, latencies=latencies)


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Row:
    """A real comparison of two installed engines."""
    path = scaled_model(tmp_path_factory.mktemp("row") / "scaled.onnx", 3.0)
    return bench(
        path, subject="openvino", vs=("onnxruntime",), threads=1, rounds=10, turn_seconds=0.002
    )


# Statistics


def test_ratios_are_paired_by_round() -> None:
    # The machine slows down by 10 from round 2 on: a ratio of medians would say 5.5.
    ours = measured("a", 1.0, 1.0, 10.0, 10.0)
    theirs = measured("b", 2.0, 2.0, 20.0, 20.0)
    ratio = paired_ratios(ours, theirs)
    assert ratio == Spread(0.5, 0.5, 0.5, 0.5, 0.5)


def test_spread_has_quartiles_and_extremes() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=30))
def test_swapping_engines_inverts_extremes(pairs: list[tuple[float, float]]) -> None:
    a = measured("a", *(x for x, _ in pairs))
    b = measured("b", *(y for _, y in pairs))
    forth, back = paired_ratios(a, b), paired_ratios(b, a)
    assert forth is not None
    assert back is not None
    assert forth.minimum == pytest.approx(1 / back.maximum)
    assert forth.minimum <= forth.low <= forth.median <= forth.high <= forth.maximum


def test_fastest_peer_decides_and_failed_rows_do_not_count() -> None:
    good = Row("m", 2, measured("g", 3.0), (measured("p", 1.0), measured("q", 2.0)), ())
    other = Row("n", 2, measured("g", 12.0), (measured("p", 1.0), measured("q", 8.0)), ())
    bad = Row("o", 2, measured("g", 1.0), (measured("p", 100.0),), ("p: wrong",))
    assert good.ratio_to_fastest == 3.0
    means = summarise([good, other, bad])
    assert means == {
        "p": pytest.approx(6.0),
        "q": pytest.approx(1.5),
        "fastest": pytest.approx(6.0),
    }
    assert to_json([good, bad])["failed"] == ["o"]
    assert math.isnan(geometric_mean([]))


# Accuracy


def test_error_is_relative_to_the_largest_reference_value() -> None:
    assert relative_error(np.array([1.0, -9.0]), np.array([0.0, -10.0])) == pytest.approx(0.1)
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(np.zeros((2, 0)), np.zeros((2, 0))) == 0.0


@pytest.mark.parametrize("wrong", [[1.0, np.inf, 2.0], [1.0, np.nan, np.nan], [1.0, 5.0, np.nan]])
def test_non_finite_values_must_agree(wrong: list[float]) -> None:
    reference = np.array([1.0, np.inf, np.nan])
    assert relative_error(reference.copy(), reference) == 0.0
    assert relative_error(np.array(wrong), reference) == math.inf


def test_missing_and_misshapen_outputs_are_infinitely_wrong() -> None:
    reference = {"a": np.ones(2), "b": np.ones(2)}
    assert output_errors({"a": np.ones((2, 1))}, reference) == {"a": math.inf, "b": math.inf}


# Inputs


def test_token_ids_stay_inside_the_table_and_masks_are_ones() -> None:
    feeds = sample_inputs(embedding_model(rows=7))
    assert feeds["input_ids"].dtype == np.int32
    assert set(feeds["input_ids"].ravel()) == set(range(7))
    assert (feeds["mask"] == 1).all()


def test_inputs_are_seeded_limited_and_replaceable() -> None:
    model = embedding_model(rows=7)
    again = sample_inputs(model)
    assert (sample_inputs(model)["input_ids"] == again["input_ids"]).all()
    assert (sample_inputs(model, seed=1)["input_ids"] != again["input_ids"]).any()
    assert sample_inputs(model, limits={"input_ids": 2})["input_ids"].max() == 1
    mask = np.zeros((64, 1), np.int64)
    assert sample_inputs(model, given={"mask": mask})["mask"] is mask


def test_unbound_shapes_must_be_given(tmp_path: Path) -> None:
    model = onnx.load(scaled_model(tmp_path / "m.onnx", 1.0, rows=None))
    with pytest.raises(InputError, match="unbound"):
        sample_inputs(model)
    with pytest.raises(InputError, match="does not fit"):
        sample_inputs(model, {"x": (2, 9)})
    with pytest.raises(InputError, match="no input named z"):
        sample_inputs(model, {"z": (2, 9)})
    feeds = sample_inputs(model, {"x": (2, 8)})
    bound = bind_shapes(model, feeds)
    assert is_dynamic(model)
    assert not is_dynamic(bound)
    onnx.checker.check_model(bound, full_check=True)


# Rows


def test_a_good_row_is_complete(row: Row) -> None:
    assert row.ok, row.failures
    for engine in (row.subject, *row.peers):
        assert len(engine.latencies) == 10
        assert all(seconds > 0 for seconds in engine.latencies)
        assert engine.error <= 1e-6
        assert engine.version
        assert engine.compile_seconds > 0
        assert engine.compile_peak_bytes > 10 << 20
        assert engine.run_peak_bytes > 10 << 20
    spread = row.ratios["onnxruntime"]
    assert spread.minimum <= spread.median <= spread.maximum
    assert row.ratio_to_fastest == spread.median
    assert row.peers[0].settings["spinning"] in (True, False)


def test_a_row_prints_and_serialises(row: Row) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(ratio_table([row], ["onnxruntime"], "openvino"))
    assert "scaled" in console.export_text()
    stored = json.loads(json.dumps(to_json([row]), allow_nan=False))
    assert stored["rows"][0]["ok"] is True
    assert stored["rows"][0]["ratios"]["onnxruntime"]["median"] > 0


def test_a_dynamic_model_is_measured_at_the_given_shape(tmp_path: Path) -> None:
    path = scaled_model(tmp_path / "m.onnx", 2.0, rows=None)
    result = bench(
        path,
        subject="onnxruntime",
        vs=("openvino",),
        shapes={"x": (5, 8)},
        threads=1,
        rounds=1,
        turn_seconds=0.001,
    )
    assert result.ok, result.failures


def determinant_model(path: Path) -> Path:
    """An operator that ONNX Runtime runs, and OpenVINO and ncnn do not know."""
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"])],
        "determinant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_engines_beside_are_measured(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "cnn.onnx"
    onnx.save(tiny_cnn, path)
    result = bench(
        path,
        subject="onnxruntime",
        vs=(),
        beside=("ncnn", "mnn"),
        threads=1,
        rounds=2,
        turn_seconds=0.001,
    )
    assert result.ok, result.failures
    assert [engine.failure for engine in result.beside] == [None, None]
    assert set(result.ratios_beside) == {"ncnn", "mnn"}
    assert all(engine.error < 1e-3 for engine in result.beside)


def test_engines_beside_may_fail(tmp_path: Path) -> None:
    path = determinant_model(tmp_path / "det.onnx")
    result = bench(path, subject="onnxruntime", vs=(), beside=("ncnn",), threads=1, rounds=1)
    assert result.ok, result.failures
    assert [engine.name for engine in result.beside if engine.failure] == ["ncnn"]
    assert result.ratios_beside == {}


def test_a_peer_that_cannot_load_fails_the_row(tmp_path: Path) -> None:
    path = determinant_model(tmp_path / "det.onnx")
    result = bench(path, subject="onnxruntime", vs=("openvino",), threads=1, rounds=1)
    assert not result.ok
    assert [failure.split(":")[0] for failure in result.failures] == ["openvino"]
    assert result.subject.latencies
    assert result.subject.error < 1e-6
    assert result.ratios == {}
    assert to_json([result])["failed"] == ["det"]


def test_a_wrong_output_fails_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scaled_model(tmp_path / "m.onnx", 3.0)
    other = scaled_model(tmp_path / "other.onnx", 3.01)
    # The engines get a model that differs by 0.3 % from the one the reference runs.
    original = compare_module._reference
    monkeypatch.setattr(
        compare_module,
        "_reference",
        lambda job: original(compare_module._with_model(job, other)),
    )
    result = bench(
        path, subject="onnxruntime", vs=("openvino",), threads=1, rounds=1, turn_seconds=0.001
    )
    assert result.subject.error == pytest.approx(0.01 / 3.01, rel=1e-3)
    # 0.3 % is beyond our tolerance, though a peer would be forgiven.
    assert [failure.split(":")[0] for failure in result.failures] == ["onnxruntime"]
    assert result.ratios  # measured, but it does not count
    assert summarise([result]) == {}


def test_unknown_engines_and_no_rounds_are_refused(tmp_path: Path) -> None:
    path = scaled_model(tmp_path / "m.onnx", 1.0)
    with pytest.raises(OptionError, match="unknown engine 'tensorflow'"):
        bench(path, vs=("tensorflow",))
    with pytest.raises(OptionError, match="rounds"):
        bench(path, rounds=0)


# Processes


@pytest.fixture
def process() -> Iterator[EngineProcess]:
    with EngineProcess("reference", 1) as started:
        yield started


def test_a_dead_worker_is_reported(process: EngineProcess) -> None:
    os.kill(process.pid, 9)
    with pytest.raises(EngineError, match="status -9"):
        process.ask("run", iterations=1)


def test_a_failing_command_is_reported_and_survived(process: EngineProcess) -> None:
    for _ in range(2):
        with pytest.raises(EngineError, match="FileNotFoundError"):
            process.ask(
                "open",
                engine="reference",
                model="none.onnx",
                threads=1,
                outputs=[],
                settings={},
                inputs="none.npz",
                input_names=[],
            )


def test_a_busy_process_is_not_idle(tmp_path: Path, process: EngineProcess) -> None:
    path = scaled_model(tmp_path / "m.onnx", 1.0)
    np.savez(tmp_path / "in.npz", **{"0": np.ones((4, 8), np.float32)})
    process.ask(
        "open",
        engine="reference",
        model=str(path),
        threads=1,
        outputs=["y"],
        settings={},
        inputs=str(tmp_path / "in.npz"),
        input_names=["x"],
    )
    assert wait_until_idle([process], limit=30.0)

    def work() -> None:
        with contextlib.suppress(EngineError):  # ended by the time limit, far from finished
            process.ask("run", timeout=1.0, iterations=10**9)

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.1)
    idle = wait_until_idle([process], limit=0.5)
    worker.join()
    assert not idle


# The scripts


def test_compare_script_measures_the_catalogue(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [
        *(sys.executable, str(ROOT / "benchmarks" / "compare.py")),
        *("--subject", "onnxruntime", "--vs", "openvino", "--models", "bilstm"),
        *("--rounds", "1", "--turn", "0.005", "--threads", "1", "--json", str(out)),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "geometric mean" in ran.stdout
    stored = json.loads(out.read_text())
    assert [entry["model"] for entry in stored["rows"]] == ["bilstm"]
    assert stored["rows"][0]["subject"]["errors"]["y"] < 1e-4


def test_compare_script_has_peers_for_each_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import compare

    def peers(*words: str) -> tuple[str, str, str]:
        found = compare.parse_arguments(list(words))
        return found.target, found.vs, found.beside

    assert peers() == ("cpu", "onnxruntime,openvino", "")
    assert peers("--target", "cuda") == ("cuda", "onnxruntime-cuda", "tensorrt")
    assert peers("--target", "cuda:sm_80", "--vs", "", "--beside", "onnxruntime")[1:] == (
        "",
        "onnxruntime",
    )


def test_gpu_engines_say_that_there_is_no_gpu(tiny_cnn: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny_cnn, path)
    engines = ("onnxruntime-cuda", "tensorrt")
    row = bench(path, subject="onnxruntime", vs=(), beside=engines, threads=1, rounds=1)
    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        assert all("cannot use" in str(engine.failure) for engine in row.beside)


def test_roofline_measures_the_machine_and_places_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import machine
    import roofline
    from rich.console import Console

    measured = machine.measure(1, large_bytes=1 << 20)
    assert measured.flops > 1e8
    assert min(measured.memory, measured.cache) > 1e7
    known = machine.Machine(threads=2, flops=1e9, memory=1e8, cache=1e9, l2_bytes=1000)
    assert known.roof(flops=1e9, nbytes=1e3) == 1.0  # arithmetic decides
    assert known.roof(flops=1e3, nbytes=2e3) == 2e-6  # bytes in the cores' L2
    assert known.roof(flops=1e3, nbytes=1e4) == 1e-4  # bytes from memory
    sites = [
        roofline.Site("conv#0", ("Conv_0", "Relu_1"), 2e-3, 1e6, 1e4),
        roofline.Site("outside kernels", (), 1e-3, 0.0, 0.0),
    ]
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "log").open("w"))
    console.print(roofline.table(sites, known, top=5))
    text = console.export_text()
    assert "Conv_0, Relu_1" in text
    assert "66.7%" in text
    roofline.plot(sites, known, "two sites", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(find_spec("rapidocr") is None, reason="pip install --no-deps rapidocr==3.10.0")
def test_demo_reads_its_own_text() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "demo.py"), "--text", "Tested: 42 words"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "read     Tested: 42 words" in ran.stdout
    assert "compiler imported: no" in ran.stdout
    assert "ONNX Runtime" in ran.stdout


@pytest.mark.slow
def test_cost_scripts_run_on_resnet50() -> None:
    for script in ("compile_cost.py", "load_time.py"):
        command = [sys.executable, str(ROOT / "benchmarks" / script)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in ran.stderr, ran.stderr
        assert "graphopt" in ran.stdout


@pytest.mark.slow
def test_calibrating_with_many_batches_takes_no_more_memory() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "calibration_memory.py")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
