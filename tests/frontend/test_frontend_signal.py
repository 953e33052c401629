"""Fourier transforms, windows and the mel filter bank against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from frontend_reference import assert_close, run_onnxruntime
from onnx import helper, numpy_helper

import graphopt
from graphopt.errors import GraphoptError

RNG = np.random.default_rng(5)


def run(
    op: str,
    feeds: dict[str, np.ndarray],
    inputs: list[Any],
    attrs: dict[str, Any],
    opset: int = 20,
) -> tuple[np.ndarray, onnx.ModelProto]:
    """The output of one node; `inputs` are names of feeds, constants, or None."""
    names, constants = [], []
    for i, given in enumerate(inputs):
        if given is None or isinstance(given, str):
            names.append(given or "")
            continue
        names.append(f"c{i}")
        constants.append(numpy_helper.from_array(np.asarray(given), f"c{i}"))
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feeds.items()
    ]
    node = helper.make_node(op, names, ["y"], name="n", **attrs)
    output = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph([node], "g", values, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return graphopt.compile(model).run(feeds)["y"], model


def joined(y: np.ndarray) -> np.ndarray:
    return y[..., 0] + 1j * y[..., 1]


def parted(z: np.ndarray, dtype: str = "float32") -> np.ndarray:
    return np.stack([z.real, z.imag], -1).astype(dtype)


def close(got: np.ndarray, want: np.ndarray, tolerance: float = 2e-6) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1e-30)


# One product; a split; a prime that has a table; twice a prime that has none (Bluestein).
@pytest.mark.parametrize("n", [7, 600, 1021, 2062])
def test_dft_of_any_length(n: int) -> None:
    z = RNG.standard_normal((2, n)) + 1j * RNG.standard_normal((2, n))
    y, _ = run("DFT", {"x": parted(z)}, ["x", None, np.int64(1)], {})
    close(joined(y), np.fft.fft(parted(z).astype("f8") @ [1, 1j], axis=1))


@pytest.mark.parametrize("n", [9, 600])
def test_real_transforms_there_and_back(n: int) -> None:
    x = RNG.standard_normal((3, n, 1)).astype(np.float32)
    half, _ = run("DFT", {"x": x}, ["x", None, np.int64(1)], {"onesided": 1})
    close(joined(half), np.fft.rfft(x[..., 0].astype("f8"), axis=1))
    attrs = {"onesided": 1, "inverse": 1}
    back, _ = run("DFT", {"x": half}, ["x", np.int64(n), np.int64(1)], attrs)
    close(back, x)


@pytest.mark.parametrize(
    ("axis", "length", "dtype"),
    [(0, None, "float32"), (1, 4, "float64"), (-2, 9, "float32")],
)
def test_dft_axes_and_lengths(axis: int, length: int | None, dtype: str) -> None:
    x = RNG.standard_normal((5, 6, 7, 2)).astype(dtype)
    n = None if length is None else np.int64(length)
    y, _ = run("DFT", {"x": x}, ["x", n, np.int64(axis)], {"inverse": 1})
    want = np.fft.ifft(joined(x.astype("f8")), length, axis=axis if axis >= 0 else axis + 1)
    close(joined(y), want, 2e-6 if dtype == "float32" else 1e-14)


def test_dft_of_operator_set_17_has_its_axis_as_attribute() -> None:
    x = RNG.standard_normal((2, 5, 6, 1)).astype(np.float32)
    y, model = run("DFT", {"x": x}, ["x"], {"axis": 2}, opset=17)
    assert_close({"y": y}, run_onnxruntime(model.SerializeToString(), {"x": x}), 1e-5)


def test_dft_length_given_at_run_time_is_compiled_in() -> None:
    feeds = {"x": RNG.standard_normal((2, 8, 1)).astype(np.float32), "n": np.array(6)}
    y, _ = run("DFT", feeds, ["x", "n", np.int64(1)], {})
    close(joined(y), np.fft.fft(feeds["x"][:, :6, 0].astype("f8"), axis=1))


@pytest.mark.parametrize(
    ("length", "size", "step", "window"),
    [
        (100, 16, 16, "constant"),
        (331, 40, 16, "input"),
        (90, 17, 5, "none"),
        (64, 64, 1, "constant"),
        (50, 7, 9, "input"),
        (1900, 600, 200, "constant"),
    ],
)
def test_stft_of_a_real_signal(length: int, size: int, step: int, window: str) -> None:
    feeds = {"x": RNG.standard_normal((2, length, 1)).astype(np.float32)}
    weights = (0.1 + RNG.uniform(size=size)).astype(np.float32)
    given: Any = {"constant": weights, "input": "w", "none": None}[window]
    if window == "input":
        feeds["w"] = weights
    inputs = ["x", np.int64(step), given, np.int64(size)]
    y, _ = run("STFT", feeds, inputs, {"onesided": 1}, opset=17)
    starts = range(0, length - size + 1, step)
    frames = np.stack([feeds["x"][:, s : s + size, 0] for s in starts], 1).astype("f8")
    factor = 1.0 if window == "none" else weights.astype("f8")
    close(joined(y), np.fft.rfft(frames * factor, axis=2))


def test_stft_of_a_complex_signal() -> None:
    z = RNG.standard_normal((1, 40)) + 1j * RNG.standard_normal((1, 40))
    x, weights = parted(z), RNG.uniform(size=12).astype(np.float32)
    y, _ = run("STFT", {"x": x}, ["x", np.int64(4), weights], {"onesided": 0}, opset=17)
    frames = np.stack([joined(x.astype("f8"))[:, s : s + 12] for s in range(0, 29, 4)], 1)
    close(joined(y), np.fft.fft(frames * weights, axis=2))


def test_onesided_transforms_of_complex_signals_are_refused() -> None:
    x = RNG.standard_normal((1, 8, 2)).astype(np.float32)
    with pytest.raises(GraphoptError, match=r"one-sided|real signal"):
        run("DFT", {"x": x}, ["x"], {"onesided": 1, "axis": 1}, opset=17)


@pytest.mark.parametrize(
    ("op", "periodic"), [("HannWindow", 0), ("HammingWindow", 1), ("BlackmanWindow", 1)]
)
def test_windows_of_a_size_given_at_run_time(op: str, periodic: int) -> None:
    feeds = {"n": np.array(11)}
    attrs = {"periodic": periodic, "output_datatype": 11}
    y, model = run(op, feeds, ["n"], attrs, opset=17)
    assert_close({"y": y}, run_onnxruntime(model.SerializeToString(), feeds), 1e-6)


def test_mel_weight_matrix() -> None:
    feeds = {
        "bands": np.array(8),
        "length": np.array(64),
        "rate": np.array(8192),
        "low": np.array(0.0, np.float32),
        "high": np.array(4096.0, np.float32),
    }
    y, model = run("MelWeightMatrix", feeds, list(feeds), {}, opset=17)
    assert_close({"y": y}, run_onnxruntime(model.SerializeToString(), feeds), 1e-6)
