"""Whole models as CUDA programs match ONNX Runtime, in every order of threads, without races."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import on_gpu
import onnx
import onnxruntime as ort
import pytest
from gpu_process import Gpu
from graphs import (
    FLOAT,
    HALF,
    bits,
    build,
    bytes_product,
    convolutions,
    draw,
    halves_for_tensor_core_convolutions,
    halves_for_tensor_cores,
    moves,
    ranks,
    recurrence,
    running_sums,
    transformer,
)
from onnx import helper

from schedules.interface import Epilogue, Op, Step, TensorSig, Workload

Array = np.ndarray[Any, Any]
MODELS = Path(__file__).parents[3] / "benchmarks" / "models"


def expected(model: bytes, feeds: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def check(gpu: Gpu, model: bytes, feeds: dict[str, Array], limit: float, orders: int = 3) -> None:
    """Assert the relative error of each output: max|y − ref| / max|ref|."""
    wanted = expected(model, feeds)
    for order in gpu.orders[:orders]:
        found = gpu.ordered(order, on_gpu.run_model, model, feeds)
        for name, reference in wanted.items():
            assert found[name].dtype == reference.dtype
            error = np.abs(found[name].astype(np.float64) - reference).max()
            assert error <= limit * np.abs(reference.astype(np.float64)).max(), (order, name)


def test_a_small_network(gpu: Gpu, tiny_cnn: onnx.ModelProto) -> None:
    feeds = {"x": draw(1, 3, 12, 12)}
    check(gpu, tiny_cnn.SerializeToString(), feeds, 1e-5)


def test_convolutions(gpu: Gpu) -> None:
    check(gpu, *convolutions(FLOAT), 1e-5)


def test_moves(gpu: Gpu) -> None:
    check(gpu, *moves(), 1e-5)


def test_bits(gpu: Gpu) -> None:
    check(gpu, *bits(), 1e-5)


def test_running_sums(gpu: Gpu) -> None:
    check(gpu, *running_sums(), 1e-5)


def test_recurrence(gpu: Gpu) -> None:
    check(gpu, *recurrence(), 1e-5)


def test_ranks(gpu: Gpu) -> None:
    check(gpu, *ranks(), 1e-6)


def test_attention(gpu: Gpu) -> None:
    check(gpu, *transformer(FLOAT), 1e-5)


def test_halves(gpu: Gpu) -> None:
    check(gpu, *convolutions(HALF), 4e-3, orders=1)
    check(gpu, *transformer(HALF), 4e-3, orders=1)


def test_bytes_are_exact(gpu: Gpu) -> None:
    """But for values on the border between two steps, which float32 may round to either."""
    model, feeds = bytes_product()
    (wanted,) = expected(model, feeds).values()
    (found,) = gpu.call(on_gpu.run_model, model, feeds).values()
    steps = np.abs(found - wanted) / 0.1
    assert steps.max() < 1.01
    assert (steps > 0.5).mean() < 0.02


GOLDEN = {
    bytes_product: ["grid 3x1x1, block 128x1x1", "grid 1x1x1, block 256x1x1"],
    partial(convolutions, FLOAT): [
        "grid 1x1x1, block 256x1x1",
        "grid 8x1x1, block 42x1x1",
        "grid 1x1x1, block 256x1x1",
        "grid 1x1x1, block 120x1x1",
        "grid 20x1x1, block 8x1x1",
    ],
    running_sums: [
        *["grid 3x1x1, block 256x1x1"] * 2,
        *["grid 2x1x1, block 256x1x1"] * 2,
        *["grid 8x1x1, block 128x1x1"] * 2,
    ],
    recurrence: [
        "grid 3x1x1, block 256x1x1",
        "grid 2x1x1, block 64x1x1",
        "grid 3x1x1, block 256x1x1",
    ],
    halves_for_tensor_cores: [
        "grid 6x1x1, block 128x1x1",
        "grid 18x1x1, block 256x1x1",
        "grid 8x1x1, block 128x1x1",
    ],
}


@pytest.mark.parametrize("graph", GOLDEN)
def test_launches(emulated: Gpu, graph: Callable[[], tuple[bytes, dict[str, Array]]]) -> None:
    assert emulated.call(on_gpu.traced_launches, *graph()) == GOLDEN[graph]


def test_programs_travel_in_files(gpu: Gpu) -> None:
    model, feeds = convolutions(FLOAT)
    (wanted,) = expected(model, feeds).values()
    (found,) = gpu.call(on_gpu.run_saved, model, feeds, "cuda:sm_75,sm_90").values()
    assert np.allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn_bn", "bilstm"])
def test_models_of_the_benchmark(gpu: Gpu, name: str, tmp_path: Path) -> None:
    script = MODELS / "materialize.py"
    path = tmp_path / f"{name}.onnx"
    subprocess.run([sys.executable, str(script), name, str(path)], check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {
        spec.name: draw(*[size if isinstance(size, int) else 1 for size in spec.shape])
        for spec in session.get_inputs()
    }
    check(gpu, path.read_bytes(), feeds, 1e-4, orders=1)


def test_products_on_tensor_cores(gpu: Gpu) -> None:
    check(gpu, *halves_for_tensor_cores(), 4e-3)


def test_networks_of_halves_use_tensor_cores(gpu: Gpu) -> None:
    model, feeds = halves_for_tensor_core_convolutions()
    check(gpu, model, feeds, 4e-3)
    used = gpu.call(on_gpu.kernels_of, model, "cuda:sm_75")
    assert used.count("gpu.conv2d.implicit_gemm.tensor_cores") == 2
    assert not any("tensor_cores" in name for name in gpu.call(on_gpu.kernels_of, model, "cpu"))


def test_convolutions_of_halves_against_float64(gpu: Gpu) -> None:
    """Sums are rounded once, to the halves that the graph asks for: 2⁻¹¹ of each value, and what
    float32 loses of the largest."""
    x, w = draw(1, 20, 13, 11, dtype=np.float16), draw(33, 20, 3, 3, dtype=np.float16)
    bias = draw(33, dtype=np.float16)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])]
    model = build(nodes, {"x": x}, {"w": w, "b": bias})
    image = np.pad(x[0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (1, 2))
    wanted = np.einsum("cijab,ocab->oij", windows, w.astype(np.float64)) + bias[:, None, None]
    (y,) = gpu.call(on_gpu.run_model, model, {"x": x}).values()
    error = np.abs(y[0].astype(np.float64) - wanted)
    assert (error <= 2.0**-11 * np.abs(wanted) + 1e-5 * np.abs(wanted).max()).all()


@pytest.mark.parametrize("constant", [True, False])
def test_convolutions_on_tensor_cores(gpu: Gpu, constant: bool) -> None:
    """Sums are right to the last bit of a half, nearly: only their order is not ours."""
    x, w = draw(2, 6, 11, 9, dtype=np.float16), draw(34, 3, 3, 2, dtype=np.float16)
    bias = draw(1, 34, 1, 1, dtype=np.float16)
    attrs = (("strides", (2, 1)), ("padding", (1, 0, 1, 1)), ("dilation", (1, 1)), ("groups", 2))
    sigs = tuple(TensorSig(array.shape, "float16") for array in (x, w))
    out = TensorSig((2, 34, 6, 9), "float16")
    op = Op("conv2d", sigs, out, attrs, (False, constant))
    operand = TensorSig(bias.shape, "float16")
    epilogue = Epilogue((operand,), (Step("add", (0, 1)),), "float16", (True,))
    name = "gpu.conv2d.implicit_gemm.tensor_cores"
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 1], pads=[1, 0, 1, 1], group=2)
    feeds = {"x": x.astype(np.float32), "w": w.astype(np.float32)}
    (sums,) = expected(build([node], feeds, {}), feeds).values()
    wanted = sums + bias.astype(np.float32)
    for order in gpu.orders:
        y = gpu.ordered(order, on_gpu.run_candidate, Workload(op, epilogue), name, [x, w, bias])
        assert np.abs(y - wanted).max() <= 2**-9 * np.abs(wanted).max()
