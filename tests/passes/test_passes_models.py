"""The pipeline on the benchmark models: what is recovered, what is left, and the results."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import passes_numpy
import pytest
from passes_graph import kinds, nodes

from graphopt.frontend.importer import import_model
from graphopt.frontend.load import load_model
from graphopt.frontend.prepare import prepare
from graphopt.passes.base import run_pipeline
from graphopt.passes.pipeline import PIPELINE

MODELS = Path(__file__).parents[2] / "benchmarks" / "models"


def benchmark(name):
    sys.path.insert(0, str(MODELS))
    try:
        from materialize import materialize
    finally:
        sys.path.pop(0)
    return materialize(MODELS / f"{name}.onnx")


def rapidocr(part):
    from importlib.util import find_spec

    spec = find_spec("rapidocr")
    if spec is None:
        pytest.skip("rapidocr is not installed")
    [folder] = spec.submodule_search_locations
    [path] = [p for p in (Path(folder) / "models").glob("*.onnx") if part in p.name]
    return onnx.load(path)


SHAPES = {
    "rec": {"x": (1, 3, 48, 96)},
    "det": {"x": (1, 3, 320, 320)},
    "cls": {"x": (1, 3, 48, 192)},
}


@cache
def compiled(name):
    """(the ONNX model, the imported graph, the graph after the pipeline)."""
    proto = rapidocr(name) if name in SHAPES else benchmark(name)
    graph = import_model(prepare(load_model(proto), SHAPES.get(name, {})))
    return proto, graph, run_pipeline(graph, PIPELINE)[0]


EXPECTED = {
    "resnet18": {"nn.conv2d": 20, "nn.relu": 17, "matmul": 1, "mean": 1},
    "mobilenet_v2": {"nn.conv2d": 52, "clip": 35, "multiply": 0},
    "vit_tiny": {
        "graphopt.attention": 12,
        "nn.gelu": 12,
        "nn.layer_norm": 25,
        "nn.softmax": 0,
        "multiply": 0,
        "strided_slice": 1,  # the class token
        "permute_dims": 1,  # of the patches
    },
    "minilm_l6": {
        "graphopt.attention": 6,
        "nn.gelu": 6,
        "nn.layer_norm": 13,
        "nn.softmax": 0,
        "permute_dims": 0,
    },
    "rec": {
        "graphopt.attention": 2,
        "nn.gelu": 13,
        "nn.silu": 5,
        "nn.layer_norm": 5,
        "graphopt.hard_sigmoid": 5,
        "erf": 0,
        "sqrt": 0,
        "strided_slice": 0,
        "multiply": 5,  # squeeze and excite
    },
    "det": {"nn.gelu": 13, "graphopt.hard_sigmoid": 13, "erf": 0, "mean": 13, "multiply": 13},
    "cls": {"graphopt.hard_swish": 18, "graphopt.hard_sigmoid": 9, "multiply": 9, "divide": 0},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_recovery(name):
    counts = Counter(kinds(compiled(name)[2]))
    assert {kind: counts[kind] for kind in EXPECTED[name]} == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_node_keeps_a_site(name):
    _, before, after = compiled(name)
    assert nodes(before) <= nodes(after)
    names = [n.name for n in compiled(name)[0].graph.node]
    if all(names):
        assert nodes(after) <= set(names)


@pytest.mark.parametrize("name", EXPECTED)
def test_results_match_onnxruntime(name):
    proto, before, after = compiled(name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    feeds = {}
    for param in before.module["main"].params:
        shape, dtype = passes_numpy.shape(param), str(param.ty.dtype)
        if dtype == "float32":
            feeds[param.name] = rng.standard_normal(shape).astype(dtype)
        elif "mask" in param.name:
            feeds[param.name] = (np.arange(shape[-1]) < 100).astype(dtype) * np.ones(shape, dtype)
        else:
            feeds[param.name] = rng.integers(0, 1000, shape).astype(dtype)
    wanted = session.run(None, feeds)
    found = passes_numpy.run(after, feeds, wide=False)
    for want, have in zip(wanted, found, strict=True):
        assert np.abs(want - have).max() <= 1e-4 * np.abs(want).max()
