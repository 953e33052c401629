"""Saved programs: bundled, loaded and run without the compiler. Real kernels, no ONNX involved."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import te

import graphopt
from graphopt.artifact import bundle
from graphopt.bundling import parts
from graphopt.codegen.executable import build, control_object, kernel_object
from graphopt.codegen.kernel import lower, to_kernel
from graphopt.codegen.linker import find_linker, shared_library
from graphopt.codegen.plan import Buffer, Call, Plan, TensorSpec
from graphopt.errors import ArtifactError, InputError, OptionError
from graphopt.loaded import LoadedModel
from graphopt.lowering.weights import aligned_empty
from graphopt.programs import Specialisation
from graphopt.report import KernelRow, PassRow, Report
from graphopt.target import TargetSpec

WIDTH = 32


def weights() -> np.ndarray[Any, Any]:
    memory = aligned_empty(4 * WIDTH)
    memory.view(np.float32)[:] = np.arange(WIDTH)
    return memory


def adding(rows: int, block: np.ndarray[Any, Any], threads: int = 2) -> Specialisation:
    """y[rows, WIDTH] = x[rows, WIDTH] + w[WIDTH], w being the weights."""
    target = TargetSpec.parse("cpu")
    x = te.placeholder((rows, WIDTH), name="x")
    w = te.placeholder((WIDTH,), name="w")
    y = te.compute((rows, WIDTH), lambda i, j: x[i, j] + w[j], name="y")
    kernel = to_kernel(lower(te.create_prim_func([x, w, y]), target.tvm_target(threads)))
    nbytes = 4 * rows * WIDTH
    plan = Plan(
        inputs=(TensorSpec("x", "float32", (rows, WIDTH)),),
        outputs=(TensorSpec("y", "float32", (rows, WIDTH)),),
        buffers=(Buffer("input", 0, nbytes), Buffer("weight", 0, 128), Buffer("output", 0, nbytes)),
        calls=(Call("s0", "add", (0, 1, 2), ("Add#0",), True, 1.0 * rows * WIDTH, 8.0 * nbytes),),
        arena_bytes=0,
        weight_bytes=128,
        threads=threads,
    )
    machine, kernels = target.tvm_target(threads), {"add": kernel}
    module = build(plan, kernels, machine, target.arch)
    objects = (
        control_object(plan, machine, target.arch),
        kernel_object(kernels, machine, target.arch),
    )
    report = Report(
        target=target.key(threads),
        threads=threads,
        shapes={"x": (rows, WIDTH)},
        constants={},
        seconds={"import": 0.1 * rows},
        nodes=1,
        operations=1,
        groups=1,
        kernels=1,
        layout_changes=0,
        arena_bytes=0,
        weight_bytes=128,
        constant_bytes=128,
        passes=(PassRow("fold", 1, ("bias at Add#0: no",), 0.5, 2, 1),),
        calls=(KernelRow("s0", "add", "elementwise", "default", ("Add#0",)),),
        warnings=("careful",),
    )
    return Specialisation(
        plan,
        plan.inputs,
        (),
        lambda: block,
        report,
        target.key(threads),
        target.arch,
        tuple(sorted(target.features)),
        lambda: module,
        lambda: shared_library(objects, find_linker(target.arch)),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two specialisations that share their weights."""
    path = tmp_path_factory.mktemp("saved") / "add.gopt"
    block = weights()
    bundle.save(path, *parts([adding(1, block), adding(4, block)]))
    return path


def test_every_specialisation_runs(saved: Path) -> None:
    model = graphopt.load(saved)
    for rows in (1, 4):
        x = np.random.default_rng(0).random((rows, WIDTH), np.float32)
        np.testing.assert_array_equal(model.run({"x": x})["y"], x + np.arange(WIDTH, dtype="f4"))
        np.testing.assert_array_equal(model(x)["y"], model.run({"x": x})["y"])


def test_signature_is_open_where_the_shapes_differ(saved: Path) -> None:
    model = graphopt.load(saved.read_bytes())
    assert model.inputs == (TensorSpec("x", "float32", (None, WIDTH)),)
    assert model.outputs == (TensorSpec("y", "float32", (None, WIDTH)),)
    assert model.shapes == ({"x": (1, WIDTH)}, {"x": (4, WIDTH)})


def test_weights_are_stored_once(saved: Path) -> None:
    artifact = bundle.load(saved)
    assert artifact.weights.nbytes == 4 * WIDTH
    assert {entry.weights_offset for entry in artifact.manifest.entries} == {0}


def test_different_weights_are_kept_apart() -> None:
    other = weights()
    other.view(np.float32)[:] *= 10
    data = bundle.to_bytes(*parts([adding(1, weights()), adding(2, other)]))
    model = graphopt.load(data)
    for rows, factor in ((1, 1), (2, 10)):
        y = model.run({"x": np.zeros((rows, WIDTH), np.float32)})["y"]
        np.testing.assert_array_equal(y[-1], factor * np.arange(WIDTH))


def test_the_longest_of_shared_weights_is_stored() -> None:
    block = aligned_empty(8 * WIDTH)
    block.view(np.float32)[:] = np.arange(2 * WIDTH)
    data = bundle.to_bytes(*parts([adding(1, block[:128]), adding(2, block)]))
    assert bundle.load(data).weights.nbytes == 8 * WIDTH


def test_other_shapes_are_refused_with_a_list(saved: Path) -> None:
    model = graphopt.load(saved)
    with pytest.raises(InputError, match=r"no specialisation for x=2,32.*x=1,32; x=4,32"):
        model.run({"x": np.zeros((2, WIDTH), np.float32)})
    with pytest.raises(InputError, match="no input named 'z'"):
        model.run({"z": np.zeros((1, WIDTH), np.float32)})


def test_the_report_survives_but_its_times_do_not(saved: Path) -> None:
    first, second = graphopt.load(saved).reports
    assert first.shapes == {"x": (1, WIDTH)}
    assert second.passes[0].refusals == ("bias at Add#0: no",)
    assert second.calls[0].nodes == ("Add#0",)
    assert second.warnings == ("careful",)
    assert (first.seconds, second.passes[0].seconds) == ({}, 0.0)
    assert graphopt.load(saved).report == first


def test_equal_programs_give_equal_files(saved: Path) -> None:
    block = weights()
    again = bundle.to_bytes(*parts([adding(1, block), adding(4, block)]))
    assert again == saved.read_bytes()


def test_a_loaded_model_saves_the_same_file(saved: Path, tmp_path: Path) -> None:
    graphopt.load(saved).save(tmp_path / "copy.gopt")
    assert (tmp_path / "copy.gopt").read_bytes() == saved.read_bytes()


def test_out_and_profile_reach_the_program(saved: Path) -> None:
    model = graphopt.load(saved)
    x = np.ones((4, WIDTH), np.float32)
    y = np.empty_like(x)
    assert model.run({"x": x}, out={"y": y})["y"] is y
    np.testing.assert_array_equal(y, 1 + np.broadcast_to(np.arange(WIDTH), y.shape))
    profile = model.profile({"x": x}, repeats=3)
    assert [row.nodes for row in profile.rows] == [("Add#0",)]
    spent = sum(row.seconds for row in profile.rows) + profile.outside_seconds
    assert spent == pytest.approx(profile.total_seconds)


def test_threads(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "graphopt"):
        assert graphopt.load(saved, threads=1).threads == 1
        assert "running with 1 threads; compiled and chosen for 2" in caplog.text
        caplog.clear()
        assert graphopt.load(saved, threads=99).threads == 2
        assert "the most this program is compiled for" in caplog.text
    for wrong in (0, -1, True, 1.5, "2"):
        with pytest.raises(OptionError, match="threads"):
            graphopt.load(saved, threads=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [None, 3, ["a.gopt"]])
def test_what_is_no_path_is_refused(source: Any) -> None:
    with pytest.raises(OptionError, match="path or bytes"):
        graphopt.load(source)


def test_a_foreign_report_is_refused() -> None:
    manifest, modules, block = parts([adding(1, weights())])
    for report in ({}, {"entries": []}, {"entries": [{"target": "x"}]}, {"entries": [3]}):
        altered = type(manifest)(**{**vars(manifest), "report": report})
        with pytest.raises(ArtifactError, match="report"):
            graphopt.load(bundle.to_bytes(altered, modules, block))


def test_loading_and_running_import_no_compiler(saved: Path) -> None:
    script = (
        "import sys, json, numpy as np, graphopt\n"
        f"model = graphopt.load({str(saved)!r})\n"
        f"model.run({{'x': np.zeros((1, {WIDTH}), np.float32)}})\n"
        f"model.profile({{'x': np.zeros((1, {WIDTH}), np.float32)}})\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    roots = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert not roots & {"tvm", "onnx", "scipy", "xgboost", "torch", "rich", "psutil"}
    assert "tvm_ffi" in roots


def test_the_class_is_public() -> None:
    assert graphopt.LoadedModel is LoadedModel
