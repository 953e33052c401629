"""resize2d against ONNX Runtime: methods, coordinate modes, rounding, up- and downscaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from harness import AVX512, SSE, run_candidate
from onnx import helper, numpy_helper

from schedules import resize
from schedules.interface import Epilogue, Op, Step, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]
SHAPE = (1, 20, 7, 9)
COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]


def run_onnx(x: Array, scales: tuple[float, float], **attributes: Any) -> Array:
    """Resize in ONNX Runtime, by scales."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    factors = np.array([1, 1, *scales], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", "", "s"], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, ["n", "c", "h", "w"])],
        [numpy_helper.from_array(factors, "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, {"x": x})[0]
    return result


def check(
    scales: tuple[float, float],
    method: str,
    coordinate: str,
    rounding: str = "round_prefer_floor",
    exclude: bool = False,
    traits: TargetTraits = AVX512,
    dtype: str = "float32",
) -> None:
    x = (np.random.default_rng(0).standard_normal(SHAPE) * 9).astype(dtype)
    expected = run_onnx(
        x,
        scales,
        mode=method,
        coordinate_transformation_mode=coordinate,
        nearest_mode=rounding,
        cubic_coeff_a=-0.75,
        exclude_outside=int(exclude),
    )
    attrs = (
        ("method", method),
        ("coordinate", coordinate),
        ("rounding", rounding),
        ("cubic_a", -0.75),
        ("exclude_outside", exclude),
        ("scales", scales),
    )
    op = Op("resize2d", (TensorSig(SHAPE, dtype),), TensorSig(expected.shape, dtype), attrs)
    w = Workload(op, Epilogue((), (Step("negative", (0,)),), dtype))
    for c in resize.candidates(w, traits):
        result = run_candidate(c, w, [x], traits)
        np.testing.assert_allclose(-result, expected, atol=1e-4 if method != "nearest" else 0)


SCALES = [(2.0, 2.0), (1.7, 2.3), (0.6, 0.45), (0.5, 0.5), (3.0, 1.0)]


@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("method", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("scales", SCALES)
def test_methods(scales: tuple[float, float], method: str, coordinate: str) -> None:
    check(scales, method, coordinate)


@pytest.mark.parametrize("rounding", ["round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("scales", SCALES)
def test_rounding(scales: tuple[float, float], coordinate: str, rounding: str) -> None:
    check(scales, "nearest", coordinate, rounding)


@pytest.mark.parametrize("scales", SCALES)
def test_exclude_outside(scales: tuple[float, float]) -> None:
    check(scales, "cubic", "half_pixel", exclude=True)


@pytest.mark.parametrize("method", ["nearest", "linear", "cubic"])
def test_narrow_vectors(method: str) -> None:
    check((1.7, 2.3), method, "half_pixel", traits=SSE)


def test_integers() -> None:
    check((2.0, 2.0), "nearest", "asymmetric", "floor", dtype="int8")
