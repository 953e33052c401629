"""Small ONNX models for tests of whole paths, and a compile cache that is not the user's."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def _weight(name: str, *shape: int) -> onnx.TensorProto:
    rng = np.random.default_rng(len(name) + sum(shape))
    scale = 1.0 / np.sqrt(max(1, np.prod(shape[1:])))
    return numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any]) -> Any:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def pytest_configure() -> None:
    """Let tests interrupt: a process started in the background ignores the signal from its birth,
    and so do those that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing that the tests compile ends in the user's cache, or comes from it."""
    folder = tmp_path_factory.mktemp("cache")
    # The OpenCL plug-in is built once for all processes that run tests.
    plugins = tmp_path_factory.getbasetemp().parent / "graphopt-plugins"
    plugins.mkdir(exist_ok=True)
    (folder / "plugins").symlink_to(plugins)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAPHOPT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def opencl(private_cache: Path) -> Any:
    """This machine's OpenCL devices; without any, the test is skipped."""
    from graphopt.errors import DeviceError
    from graphopt.runtime.opencl.devices import require_devices

    try:
        return require_devices()
    except DeviceError as error:
        pytest.skip(f"{error} (make test installs PoCL where it may)")


@pytest.fixture(scope="session")
def tiny_cnn() -> onnx.ModelProto:
    """x[1, 3, 12, 12] → two convolutions with a residual → y[1, 5] and its arg max."""
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], "stem", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make("Relu", ["c1"], ["r1"], "stem_relu"),
        make("Conv", ["r1", "w2"], ["c2"], "mix", kernel_shape=[1, 1]),
        make("Add", ["c2", "r1"], ["s"], "residual"),
        make("GlobalAveragePool", ["s"], ["p"], "pool"),
        make("Flatten", ["p"], ["f"], "flat"),
        make("Gemm", ["f", "w3", "b3"], ["y"], "head", transB=1),
    ]
    return _model(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [
            _weight("w1", 8, 3, 3, 3),
            _weight("b1", 8),
            _weight("w2", 8, 8, 1, 1),
            _weight("w3", 5, 8),
            _weight("b3", 5),
        ],
    )


@pytest.fixture(scope="session")
def dynamic_mlp() -> onnx.ModelProto:
    """x[batch, 6], gain[batch, 1] → y[batch, 4] = relu(x·w + b)·gain."""
    make = helper.make_node
    nodes = [
        make("MatMul", ["x", "w"], ["m"], "matmul"),
        make("Add", ["m", "b"], ["a"], "bias"),
        make("Relu", ["a"], ["r"], "relu"),
        make("Mul", ["r", "gain"], ["y"], "scale"),
    ]
    info = helper.make_tensor_value_info
    return _model(
        nodes,
        [
            info("x", TensorProto.FLOAT, ["batch", 6]),
            info("gain", TensorProto.FLOAT, ["batch", 1]),
        ],
        [info("y", TensorProto.FLOAT, ["batch", 4])],
        [_weight("w", 6, 4), _weight("b", 4)],
    )
