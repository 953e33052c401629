"""The benchmark graphs as C libraries, float and int8: here to the last bit, aarch64 emulated."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from test_models import CATALOGUE, make_feeds, provide

import graphopt

sys.path.insert(0, str(Path(__file__).parent / "codegen"))

from c_driver import build, drive
from emulate import missing_tools

GRAPHS = [model for model in CATALOGUE.MODELS if model.package is None]
QUICK = ("cnn_bn", "float32")
CASES = [
    pytest.param(model, kind, marks=() if (model.name, kind) == QUICK else pytest.mark.slow)
    for model in GRAPHS
    for kind in ("float32", "int8")
]


def source(model, kind, folder):
    """The model's file, quantized for int8, and its shapes."""
    path = provide(model, folder)
    shapes = {name: tuple(shape) for name, shape in model.shapes.items()} or None
    if kind == "float32":
        return path, shapes
    specs = graphopt.inspect(path, shapes=shapes).inputs
    samples = [make_feeds(model, specs, shapes or {})]
    return graphopt.quantize(path, samples, shapes=shapes).model, shapes


@pytest.mark.parametrize(("model", "kind"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_benchmark_graph_as_a_c_library(model, kind, tmp_path):
    graph, shapes = source(model, kind, tmp_path)
    program = graphopt.compile(graph, shapes=shapes, threads=2)
    program.save_c_library(tmp_path, weights="file")
    feeds = make_feeds(model, program.inputs, shapes or {})
    weights = ("model.weights",)
    found = drive(build(tmp_path, "model"), tmp_path, program, feeds, 2, "once", weights)
    expected = program.run(feeds)
    for name, want in expected.items():
        assert found[name].tobytes() == want.tobytes(), name
    if missing_tools():
        return
    folder = tmp_path / "aarch64"
    other = graphopt.compile(graph, "aarch64:cortex-a76", shapes=shapes, threads=1)
    other.save_c_library(folder)
    found = drive(build(folder, "model", "aarch64"), folder, other, feeds, 1, "once")
    # The sums of int8 are exact, but a float between two integers may be rounded to either.
    tolerance = 1e-4 if kind == "float32" else 2e-2
    for name, want in expected.items():
        assert np.abs(found[name] - want).max() <= tolerance * np.abs(want).max(), name
