"""Whole models, real and from benchmarks/models, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frontend_reference import (
    assert_close,
    benchmark_model,
    imported,
    package_file,
    run_graph,
    run_onnxruntime,
    run_onnxruntime_apart,
)

RNG = np.random.default_rng(3)
SR = {"sr": np.array(16000, np.int64)}
SR8 = {"sr": np.array(8000, np.int64)}
VAD = {"input": (1, 576), "state": (2, 1, 128)}


def feeds_of(graph: Any) -> dict[str, np.ndarray]:
    """Plausible values for every input: tokens, masks, bytes, images."""
    feeds = {}
    for parameter in graph.module["main"].params:
        shape = tuple(int(dim) for dim in parameter.ty.shape)
        dtype = str(parameter.ty.dtype)
        if dtype == "float32":
            feeds[parameter.name] = RNG.uniform(-1, 1, shape).astype(dtype)
        elif "mask" in parameter.name:
            feeds[parameter.name] = (np.arange(shape[-1]) < 50).astype(dtype).reshape(shape)
        else:
            feeds[parameter.name] = RNG.integers(0, 256, shape).astype(dtype)
    return feeds


@pytest.mark.parametrize(
    "name",
    [
        "bilstm",
        "minilm_l6",
        "mobilenet_v2",
        "squeezenet1_1",
        "vit_tiny",
        "cnn_bn",
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
    ],
)
def test_benchmark_models(name: str) -> None:
    proto = benchmark_model(name)
    graph = imported(proto)
    feeds = feeds_of(graph)
    want = run_onnxruntime(proto.SerializeToString(), feeds)
    assert_close(run_graph(graph, feeds), want, 2e-5)


def test_the_dynamic_benchmark_model_with_a_batch_of_two() -> None:
    proto = benchmark_model("cnn_dynamic")
    assert imported(proto, {"input": (1, 3, 96, 96)}).sites
    graph = imported(proto, {"input": (2, 3, 96, 96)})
    feeds = feeds_of(graph)
    want = run_onnxruntime(proto.SerializeToString(), feeds)
    assert_close(run_graph(graph, feeds), want, 2e-5)


@pytest.mark.parametrize(
    ("package", "path", "shapes", "constants", "tolerance"),
    [
        ("silero_vad", "data/silero_vad_openvino_16k.onnx", {}, {}, 1e-4),
        ("silero_vad", "data/silero_vad_op18_ifless.onnx", VAD, SR, 1e-4),
        ("silero_vad", "data/silero_vad_16k_op15.onnx", VAD, SR, 1e-4),
        ("silero_vad", "data/silero_vad_half.onnx", VAD, {}, 1e-4),
        ("silero_vad", "data/silero_vad.onnx", VAD, SR, 1e-4),
        ("silero_vad", "data/silero_vad.onnx", {**VAD, "input": (1, 288)}, SR8, 1e-4),
        ("silero_vad", "data/silero_vad_16k_sequence.onnx", {"input": (5, 576)}, {}, 1e-4),
        ("magika", "models/standard_v3_3/model.onnx", {"bytes": (2, 2048)}, {}, 1e-4),
        pytest.param(
            "rapidocr",
            "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
            {"x": (1, 3, 48, 64)},
            {},
            1e-4,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "rapidocr",
            "models/PP-OCRv6_rec_small.onnx",
            {"x": (1, 3, 48, 80)},
            {},
            5e-4,  # stock TVM adds up the 18,710 terms of the last softmax one by one
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "rapidocr",
            "models/PP-OCRv6_det_small.onnx",
            {"x": (1, 3, 64, 96)},
            {},
            1e-3,  # noise holds no text: the output is tiny, near ONNX Runtime's sigmoid error
            marks=pytest.mark.slow,
        ),
    ],
)
def test_pretrained_models(
    package: str,
    path: str,
    shapes: dict[str, Any],
    constants: dict[str, np.ndarray],
    tolerance: float,
) -> None:
    file: Path = package_file(package, path)
    graph = imported(file, shapes, constants)
    feeds = feeds_of(graph)
    want = run_onnxruntime_apart(file, {**feeds, **constants})
    assert_close(run_graph(graph, feeds), want, tolerance)


@pytest.mark.parametrize(
    ("path", "shapes"),
    [
        ("models/PP-OCRv6_rec_small.onnx", {"x": (1, 3, 48, 320)}),
        ("models/PP-OCRv6_det_small.onnx", {"x": (1, 3, 320, 320)}),
        ("models/PP-OCRv6_det_small.onnx", {"x": (1, 3, 640, 416)}),
        ("models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", {"x": (1, 3, 48, 192)}),
    ],
)
def test_ocr_models_import_at_their_usual_sizes(path: str, shapes: dict[str, Any]) -> None:
    graph = imported(package_file("rapidocr", path), shapes)
    assert len(graph.sites) > 200
