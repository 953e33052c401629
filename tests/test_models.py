"""Whole models through every stage, against ONNX Runtime with optimisations off."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import graphopt

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4


def load_catalogue():
    spec = importlib.util.spec_from_file_location("catalogue", ROOT / "benchmarks/catalogue.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["catalogue"] = module
    spec.loader.exec_module(module)
    return module


CATALOGUE = load_catalogue()
# ResNet-50 differs from ResNet-18 in size only; it is compiled by the slow tests.
QUICK = [model for model in CATALOGUE.MODELS if model.name != "resnet50"]


def provide(model, folder):
    path = model.provide(folder)
    if path is None:
        pytest.skip(f"the package {model.package} is not installed (make setup)")
    return path


def reference(path, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def make_feeds(model, specs, shapes):
    rng = np.random.default_rng(7)
    feeds = {}
    for spec in specs:
        shape = shapes.get(spec.name, spec.shape)
        if spec.name in model.constants:
            feeds[spec.name] = np.asarray(model.constants[spec.name]).astype(spec.dtype)
        elif spec.dtype.startswith(("int", "uint")):
            limit = model.limits.get(spec.name, 2)
            feeds[spec.name] = rng.integers(0, limit, shape).astype(spec.dtype)
        else:
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return feeds


def check(model, folder, **options):
    path = provide(model, folder)
    shapes = {name: tuple(shape) for name, shape in model.shapes.items()}
    program = graphopt.compile(path, shapes=shapes or None, threads=2, **options)
    feeds = make_feeds(model, program.inputs, shapes)
    found, expected = program.run(feeds), reference(str(path), feeds)
    assert list(found) == list(expected)
    for name, want in expected.items():
        assert found[name].dtype == want.dtype
        assert found[name].shape == want.shape
        scale = max(float(np.abs(want).max()), 1e-30)
        assert float(np.abs(found[name] - want).max()) / scale <= TOLERANCE, name
    return program, path


@pytest.mark.parametrize("model", QUICK, ids=lambda model: model.name)
def test_a_model_agrees_with_onnx_runtime(model, tmp_path):
    check(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["default", "strict"])
def test_resnet50_agrees_with_onnx_runtime(numerics, tmp_path):
    model = next(model for model in CATALOGUE.MODELS if model.name == "resnet50")
    check(model, tmp_path, numerics=numerics)


def test_resnets_identical_layers_report_their_own_nodes_and_profiles_sum_up(tmp_path):
    model = next(model for model in CATALOGUE.MODELS if model.name == "resnet18")
    program, path = check(model, tmp_path)
    calls = program.report.calls
    shared = [call for call in calls if sum(c.kernel == call.kernel for c in calls) > 1]
    assert len(shared) >= 6, "repeated layers should share kernels"
    nodes = [node for call in calls for node in call.nodes]
    assert len(nodes) == len(set(nodes)), "a node belongs to one call site"
    # Reshapes cost nothing, so they have no call; all else is accounted for.
    wanted = {n.name for n in onnx.load(path).graph.node if n.op_type != "Reshape"}
    assert wanted <= set(nodes)
    feeds = make_feeds(model, program.inputs, {})
    profile = program.profile(feeds)
    assert [row.site for row in profile.rows] == [call.site for call in calls]
    assert all(row.seconds > 0 for row in profile.rows)
    total = sum(row.seconds for row in profile.rows) + profile.outside_seconds
    assert total == pytest.approx(profile.total_seconds, rel=1e-6)
    assert profile.outside_seconds < 0.5 * profile.total_seconds


def test_layouts_chain_through_resnet(tmp_path):
    model = next(model for model in CATALOGUE.MODELS if model.name == "resnet18")
    program = graphopt.compile(provide(model, tmp_path), threads=2)
    assert program.report.layout_changes <= 2
    assert program.report.groups < program.report.operations < program.report.nodes + 30
    assert program.report.weight_bytes <= 2.01 * program.report.constant_bytes
