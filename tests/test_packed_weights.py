"""Weight-only quantized models: what stays packed, and that results are ONNX Runtime's."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.tolerance import FLOAT

RNG = np.random.default_rng(11)
DEPTH, COLUMNS = 96, 80


def weights(kind: str, shape: tuple[int, int], axis: int | None, block: int, zero: bool):
    """Initializers of a dequantized matrix: integers, scales and zero points."""
    bits, signed = int(kind[-1]), kind.startswith("int")
    dtype = getattr(ml_dtypes, kind) if bits < 8 else np.dtype(kind)
    low = -(1 << (bits - 1)) if signed else 0
    dims: tuple[int, ...] = () if axis is None else (shape[axis],)
    if block:
        assert axis is not None
        dims = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
    found = [
        RNG.integers(low, low + (1 << bits), shape).astype(dtype),
        (RNG.random(dims) * 0.02 + 0.01).astype(np.float32),
    ]
    if zero:
        found.append(RNG.integers(low, low + (1 << bits), dims).astype(dtype))
    return [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(found)]


def model(nodes, initializers, x, y, opset=21) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def dequantized(constants, axis, block, name="w") -> onnx.NodeProto:
    attrs = ({} if axis is None else {"axis": axis}) | ({"block_size": block} if block else {})
    return helper.make_node("DequantizeLinear", [c.name for c in constants], [name], **attrs)


def check(content: bytes, x: np.ndarray, limit: float = FLOAT):
    program = graphopt.compile(content, threads=2, tuning_log=())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (want,) = ort.InferenceSession(content, options).run(None, {"x": x})
    found = program.run({"x": x})["y"]
    assert np.abs(found - want).max() <= limit * np.abs(want).max()
    return program


def kernels(program) -> list[str]:
    """Kernels by family; which of its kernels a family takes is for the price table to say."""
    return [call.candidate.partition("[")[0].partition(".")[0] for call in program.report.calls]


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize(
    ("kind", "axis", "block", "zero"),
    [
        ("int4", 0, 32, False),
        ("uint4", 0, 16, True),
        ("int8", 1, 0, True),
        ("uint8", None, 0, True),
        ("int8", 0, 32, False),
        ("int4", 1, 0, False),
    ],
)
def test_products(kind, axis, block, zero, rows):
    constants = weights(kind, (DEPTH, COLUMNS), axis, block, zero)
    bias = numpy_helper.from_array(RNG.random(COLUMNS).astype(np.float32), "bias")
    nodes = [
        dequantized(constants, axis, block),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    shape = (1, rows, DEPTH)
    content = model(nodes, [*constants, bias], (TensorProto.FLOAT, shape), (1, rows, COLUMNS))
    program = check(content, RNG.standard_normal(shape).astype(np.float32))
    assert kernels(program) == ["matmul_nbits"]


def test_a_transposed_gemm():
    constants = weights("int4", (COLUMNS, DEPTH), 1, 32, True)
    nodes = [
        dequantized(constants, 1, 32),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    content = model(nodes, constants, (TensorProto.FLOAT, (3, DEPTH)), (3, COLUMNS))
    program = check(content, RNG.standard_normal((3, DEPTH)).astype(np.float32))
    assert kernels(program) == ["matmul_nbits"]


@pytest.mark.parametrize(
    ("kind", "axis", "block"), [("int4", 1, 32), ("int8", 1, 32), ("uint4", 0, 0), ("uint8", 1, 0)]
)
def test_lookups_read_packed_rows(kind, axis, block):
    constants = weights(kind, (100, 64), axis, block, True)
    nodes = [
        dequantized(constants, axis, block),
        helper.make_node("Gather", ["w", "x"], ["y"], axis=0),
    ]
    content = model(nodes, constants, (TensorProto.INT64, (2, 3)), (2, 3, 64))
    x = np.array([[0, 99, -1], [5, -100, 41]], np.int64)
    program = check(content, x, 0.0)
    assert kernels(program).count("elementwise") <= 1
    assert "take" in kernels(program)
    parameters = sum(constant.ByteSize() for constant in constants[1:]) * 4
    assert program.report.weight_bytes < 100 * 64 * int(kind[-1]) / 8 + parameters


@pytest.mark.parametrize(("preset", "bits"), [("int8-weights", 8), ("int4-weights", 4)])
def test_our_own_files_stay_packed(preset, bits, tmp_path):
    weight = numpy_helper.from_array(RNG.standard_normal((256, 512)).astype(np.float32), "w")
    content = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [weight],
        (TensorProto.FLOAT, (1, 256)),
        (1, 512),
    )
    x = RNG.standard_normal((1, 256)).astype(np.float32)
    small = tmp_path / "small.onnx"
    graphopt.quantize(content, None, preset).save(small)
    program = check(small.read_bytes(), x)
    assert kernels(program) == ["matmul_nbits"]
    program.save(tmp_path / "m.gopt")
    parameters = 256 * 512 / 32 * 8 if bits == 4 else 512 * 8
    assert (tmp_path / "m.gopt").stat().st_size < 256 * 512 * bits / 8 + parameters + 40_000


def test_what_stays_in_floats_says_why():
    constants = weights("int4", (DEPTH, COLUMNS), 0, 4, False)
    nodes = [
        dequantized(constants, 0, 4),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    content = model(nodes, constants, (TensorProto.FLOAT, (2, DEPTH)), (2, COLUMNS))
    program = check(content, RNG.standard_normal((2, DEPTH)).astype(np.float32))
    assert "matmul_nbits" not in kernels(program)
    refusals = [refusal for row in program.report.passes for refusal in row.refusals]
    assert any("its scales are of 4 terms each" in refusal for refusal in refusals)
