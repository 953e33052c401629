"""Pooling against ONNX Runtime: padding, dilation, ceil_mode, border windows, layouts, dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from harness import ALL_TRAITS, AVX512, run_candidate, scheduled, serial_extents
from onnx import helper

from schedules import pooling
from schedules.interface import Epilogue, Op, Step, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]


def run_onnx(op: str, x: Array, **attributes: Any) -> Array:
    """The single-operator model `op` in ONNX Runtime."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, ["n", "c", "h", "w"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, {"x": x})[0]
    return result


# shape, kernel, strides, padding, dilation, ceil_mode
CASES = [
    ((1, 20, 13, 17), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 0),
    ((2, 16, 9, 40), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), 0),
    ((1, 8, 15, 15), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), 0),
    ((1, 3, 11, 12), (3, 2), (2, 3), (1, 0, 0, 1), (1, 1), 1),
    ((1, 5, 14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (2, 2), 0),
    ((1, 33, 13, 13), (13, 13), (1, 1), (6, 6, 6, 6), (1, 1), 0),
    ((1, 17, 7, 7), (7, 7), (1, 1), (0, 0, 0, 0), (1, 1), 0),
    ((1, 4, 4, 1), (3, 1), (2, 1), (0, 0, 0, 0), (1, 1), 1),
]


def workload(kind: str, case: tuple[Any, ...], out: Array, include_pad: bool) -> Workload:
    shape, kernel, strides, padding, dilation, _ = case
    dtype = str(out.dtype)
    attrs: tuple[Any, ...] = (
        ("kernel", kernel),
        ("strides", strides),
        ("padding", padding),
        ("dilation", dilation),
    )
    if kind == "avg_pool2d":
        attrs += (("count_include_pad", include_pad),)
    op = Op(kind, (TensorSig(shape, dtype),), TensorSig(out.shape, dtype), attrs, (False,))
    return Workload(op, Epilogue(dtype=dtype))


@pytest.mark.parametrize("traits", ALL_TRAITS, ids=lambda t: str(t.lanes))
@pytest.mark.parametrize("kind", ["max", "avg", "avg-with-padding"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pooling(case: tuple[Any, ...], kind: str, traits: TargetTraits) -> None:
    shape, kernel, strides, padding, dilation, ceil_mode = case
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": padding,
        "dilations": dilation,
        "ceil_mode": ceil_mode,
    }
    include_pad = kind == "avg-with-padding"
    if kind == "max":
        expected = run_onnx("MaxPool", x, **attributes)
    else:
        expected = run_onnx("AveragePool", x, count_include_pad=int(include_pad), **attributes)
    w = workload("max_pool2d" if kind == "max" else "avg_pool2d", case, expected, include_pad)
    offered = pooling.candidates(w, traits)
    assert {c.output.block for c in offered} == {0, traits.lanes}
    for c in offered:
        assert not serial_extents(scheduled(c))
        result = run_candidate(c, w, [x], traits)
        np.testing.assert_allclose(result, expected, atol=1e-6, err_msg=c.name)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8"])
def test_dtypes(dtype: str) -> None:
    case = CASES[0]
    x = (np.random.default_rng(1).standard_normal(case[0]) * 30).astype(dtype)
    pads = [(0, 0), (0, 0), (1, 1), (1, 1)]
    low = -np.inf if dtype.startswith("float") else np.iinfo(dtype).min
    padded = np.pad(x, pads, constant_values=low)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = windows[:, :, ::2, ::2].max((-1, -2))
    w = workload("max_pool2d", case, expected, False)
    for c in pooling.candidates(w, AVX512):
        np.testing.assert_array_equal(run_candidate(c, w, [x], AVX512), expected)


def test_nan_and_infinities_in_windows() -> None:
    case = CASES[2]
    x = np.full(case[0], -np.inf, np.float32)
    x[0, 3, 5, 5] = np.nan
    x[0, 4, 2, 2] = np.inf
    padded = np.pad(x, [(0, 0), (0, 0), (2, 2), (2, 2)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(2, 3))
    expected = windows.max((-1, -2))
    w = workload("max_pool2d", case, expected, False)
    for c in pooling.candidates(w, AVX512):
        np.testing.assert_array_equal(run_candidate(c, w, [x], AVX512), expected)


def test_epilogue_masks_padding_lanes() -> None:
    case = CASES[0]
    x = np.random.default_rng(2).standard_normal(case[0]).astype(np.float32)
    out = run_onnx("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    base = workload("max_pool2d", case, out, False)
    w = Workload(base.op, Epilogue((), (Step("exp", (0,)),)))
    for c in pooling.candidates(w, AVX512):
        result = run_candidate(c, w, [x], AVX512)
        np.testing.assert_allclose(result, np.exp(out.astype(np.float64)), rtol=1e-6)
