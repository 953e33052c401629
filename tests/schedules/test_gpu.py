"""Kernels for devices on PoCL: all regimes of threads against ONNX Runtime, and their launches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

import graphopt
from graphopt.codegen.device_kernel import LaunchLimits, device_kernel
from graphopt.lowering.kernels import scheduled
from graphopt.target import TargetSpec
from schedules.gpu.tilings import Product, default_tiling, shared_bytes
from schedules.interface import GpuTraits, Op, TargetTraits, TensorSig, Workload
from schedules.registry import families

Array = np.ndarray[Any, Any]

# What threads are on the device: iterations of loops, threads, or few of them with little memory.
REGIMES = {
    "loops": GpuTraits(max_threads=256, units=2, loops=True, fp64=True),
    "threads": GpuTraits(max_threads=256, units=2, warp=32, fp64=True),
    "small": GpuTraits(max_threads=64, shared_bytes=16 << 10, units=2, fp64=True),
}
WORDS = replace(REGIMES["small"], dp4a=True)
"""A device that multiplies four pairs of bytes at a time."""

MODELS = {
    "products": """
        float[5,13,37] x, float[2,3,19,16] q, float[2,3,23,16] k, float[2,3,23,11] v
        => float[5,13,29] y, float[2,3,19,11] z, float[2,1,19,23] c, float[5,13,41] t
        | float[37,29] w, float[41,37] u
        | y0 = MatMul(x, w) y = Relu(y0)
          kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt) prob = Softmax<axis=-1>(s)
          z = MatMul(prob, v) c0 = ReduceSum(s, one) c = Tanh(c0)
          ut = Transpose<perm=[1,0]>(u) t = MatMul(x, ut)
        """,
    "convolutions": """
        float[2,8,15,13] x, float[1,6,31] l
        => float[2,12,15,13] a, float[2,10,7,6] b, float[2,8,15,13] d, float[2,6,29,25] e,
           float[1,9,31] f
        | float[12,8,3,3] w1, float[10,4,5,3] w2, float[8,1,3,3] w3, float[8,6,3,3] w4,
          float[9,6,5] w5
        | a = Conv<pads=[1,1,1,1]>(x, w1)
          b = Conv<pads=[1,0,1,1],strides=[2,2],group=2>(x, w2)
          d0 = Conv<pads=[2,2,2,2],dilations=[2,2],group=8>(x, w3) d = Add(d0, x)
          e = ConvTranspose<pads=[1,1,1,1],strides=[2,2]>(x, w4)
          f = Conv<pads=[2,2]>(l, w5)
        """,
    "rows": """
        float[3,5,137] x, float[137] g, float[137] h
        => float[3,5,137] a, float[3,5,137] b, float[3,1,137] c, float[1,5,1] d, float[137,3,5] e,
           float[3,5,137] f, float[3,5,137] i
        |
        | a = Softmax<axis=1>(x) b = LogSoftmax<axis=2>(x) c = ReduceMax<axes=[1]>(x)
          d = ReduceMean<axes=[0,2]>(x) e = Transpose<perm=[2,0,1]>(x)
          f = LayerNormalization<axis=-1>(x, g, h) i0 = Erf(x) i1 = Exp(i0) i = Mul(i1, x)
        """,
    "others": """
        float[2,4,15,13] x, float[3,57] r, float[7,2,9] s
        => float[2,4,8,7] a, float[2,4,30,26] b, float[3,5] c, int64[3,5] d, float[3,57] e,
           float[2,5,15,13] f, int64[3] i, float[7,1,2,10] j
        | float[1,40,9] w, float[1,40,10] u, float[2,1,15,13] o
        | a = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1],strides=[2,2]>(x)
          b = Resize<mode="linear">(x, none, twice) c, d = TopK(r, five) e = CumSum(r, axis)
          f = Concat<axis=1>(x, o) i = ArgMax<axis=1,keepdims=0>(r)
          j = LSTM<hidden_size=10>(s, w, u)
        """,
    "regions": """
        float[2,5,15,13] x
        => float[3,5,4,3] a, float[3,5,4,3] b, float[3,5,3,2] c
        |
        | a = RoiAlign<output_height=4,output_width=3,sampling_ratio=2>(x, boxes, images)
          b0 = Relu(x)
          b = RoiAlign<mode="max",output_height=4,output_width=3,sampling_ratio=1>(
              b0, boxes, images)
          c = MaxRoiPool<pooled_shape=[3,2]>(x, places)
        """,
    "resizes": """
        float[1,3,7,9] x => float[1,3,14,18] a, float[1,3,14,18] b, float[1,3,10,5] c,
        float[1,3,10,5] d
        |
        | a = Resize<mode="nearest">(x, none, twice) b = Resize<mode="cubic">(x, none, twice)
          c = Resize<mode="linear",coordinate_transformation_mode="align_corners">
            (x, none, none, sizes)
          d = Resize<mode="nearest",nearest_mode="ceil">(x, none, none, sizes)
        """,
    "ranks": """
        float[4,300] x, int32[7,3,5] i
        => float[4,50] a, int64[4,50] b, float[3,300] c, int64[3,300] d, int32[7,3,5] e,
           int64[7,3,5] f
        |
        | r = Round(x) a, b = TopK<largest=0>(r, fifty) c, d = TopK<axis=0>(r, three_rows)
          e, f = TopK<axis=0>(i, seven)
        """,
    "moves": """
        float[2,4,15,13] x, float[2,4,15,5] y, float[2,4,15,1] z, int64[3,2] i
        => float[2,4,15,19] a, float[2,4,20,14] b, float[2,4,19,15] c, float[2,4,5,13] d,
           float[2,3,2,15,13] e, float[2,4,8,6] f, float[2,4,7,6] g
        |
        | a0 = Concat<axis=3>(y, x, z) a = Relu(a0)
          b = Pad(x, around, one_half) c = Pad<mode="reflect">(x, around_less)
          d = Slice(x, first, end, row, three_steps) e = Gather<axis=1>(x, i)
          f = AveragePool<kernel_shape=[3,4],pads=[1,1,1,1],strides=[2,2]>(x)
          g = AveragePool<kernel_shape=[3,3],strides=[2,2],count_include_pad=1>(x)
        """,
}
BYTES = """
        uint8[3,17,21] x, uint8[3,21,13] z, float[1,8,9,7] f
        => int32[3,17,13] a, int32[3,17,19] b, float[1,12,9,7] c, uint8[3,17,13] d,
           uint8[1,12,9,7] e, uint8[3,19,22] p
        | int8[21,19] w, float[12,8,3,3] v
        | a = MatMulInteger(x, z, middle, three) b = MatMulInteger(x, w, middle)
          g0 = QuantizeLinear(f, fine, middle) g = DequantizeLinear(g0, fine, middle)
          h0 = QuantizeLinear(v, finer, nil) h = DequantizeLinear(h0, finer, nil)
          c = Conv<pads=[1,1,1,1]>(g, h)
          i = DequantizeLinear(x, fine, middle) j = DequantizeLinear(z, fine, three)
          k = MatMul(i, j)
          d = QuantizeLinear(k, fine, middle)
          m0 = QuantizeLinear(c, odd, middle) m = DequantizeLinear(m0, odd, middle)
          n0 = Sigmoid(m) n1 = QuantizeLinear(n0, unit, zero)
          n2 = DequantizeLinear(n1, unit, zero)
          e0 = Mul(m, n2) e = QuantizeLinear(e0, odd, middle)
          p0 = Pad(i, pads) p = QuantizeLinear(p0, odd, middle)
        """
CONSTANTS = {
    "middle": np.array(128, np.uint8),
    "three": np.array(3, np.uint8),
    "nil": np.array(0, np.int8),
    "zero": np.array(0, np.uint8),
    "pads": np.array([0, 1, 0, 0, 1, 1], np.int64),
    "unit": np.array(1 / 255, np.float32),
    "fine": np.array(0.05, np.float32),
    "finer": np.array(0.02, np.float32),
    "odd": np.array(0.0391, np.float32),  # of whose steps no product of two others is the middle
    "sizes": np.array([1, 3, 10, 5], np.int64),
    "fifty": np.array([50], np.int64),
    "three_rows": np.array([3], np.int64),
    "seven": np.array([7], np.int64),
    "one": np.array([1], np.int64),
    "none": np.zeros(0, np.float32),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "five": np.array([5], np.int64),
    "axis": np.array(1, np.int64),
    "boxes": np.array([[0, 1, 9, 11], [2.5, 3, 12, 14], [-3, -2, 6, 5]], np.float32),
    "images": np.array([1, 0, 1], np.int64),
    "places": np.array([[1, 0, 1, 9, 11], [0, 2, 3, 12, 14], [1, 3, 2, 6, 5]], np.float32),
    "around": np.array([0, 0, 2, 0, 0, 0, 3, 1], np.int64),
    "around_less": np.array([0, 0, 2, 1, 0, 0, 2, 1], np.int64),
    "one_half": np.array(0.5, np.float32),
    "first": np.array([14], np.int64),
    "end": np.array([-100], np.int64),
    "row": np.array([2], np.int64),
    "three_steps": np.array([-3], np.int64),
}


def model_of(text: str) -> onnx.ModelProto:
    """Inputs and outputs | weights | nodes, with random weights of the graph's own names."""
    signature, weights, nodes = text.split("|")
    inputs, outputs = signature.split("=>")
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    rng = np.random.default_rng(1)
    if weights.strip():
        extra = parser.parse_graph(f"g ({weights}) => () {{ }}")
        for value in extra.input:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            array = drawn(rng, shape, value.type.tensor_type.elem_type)
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    used = {name for node in model.graph.node for name in node.input}
    for name, array in CONSTANTS.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def target_of(gpu: GpuTraits) -> TargetSpec:
    """This machine's OpenCL device with other traits."""
    spec = TargetSpec.parse("opencl")
    assert spec.device is not None
    vector = spec.device.vector_bytes if gpu.loops else 16
    return replace(spec, device=replace(spec.device, gpu=gpu, vector_bytes=vector))


def drawn(rng: np.random.Generator, shape: list[int], element: int) -> Array:
    """Standard-normal floats, or integers over the whole range of a byte."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if np.dtype(dtype).itemsize == 8:  # positions
        return rng.integers(0, 4, shape, dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def feeds_of(model: onnx.ModelProto) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    found = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        found[value.name] = drawn(rng, [dim.dim_value for dim in kind.shape.dim], kind.elem_type)
    return found


def reference(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", MODELS)
def test_models_are_right_in_every_regime(opencl: Any, name: str, regime: str) -> None:
    model = model_of(MODELS[name])
    feeds = feeds_of(model)
    compiled = graphopt.compile(model, target=target_of(REGIMES[regime]), tuning_log=())
    found, expected = compiled.run(feeds), reference(model, feeds)
    for output, value in expected.items():
        scale = float(np.max(np.abs(value))) or 1.0
        error = np.max(np.abs(found[output].astype(np.float64) - value)) / scale
        assert error <= 1e-5, (output, error)


@pytest.mark.parametrize("regime", REGIMES)
def test_bytes_are_computed_as_integers(opencl: Any, regime: str) -> None:
    model = model_of(BYTES)
    feeds = feeds_of(model)
    compiled = graphopt.compile(model, target=target_of(REGIMES[regime]), tuning_log=())
    names = {call.candidate for call in compiled.report.calls}
    assert {"gpu.matmul", "gpu.matmul_offset"} <= names
    assert names & {"gpu.conv_integer.lines", "gpu.conv_integer.implicit_gemm"}
    found, expected = compiled.run(feeds), reference(model, feeds)
    for output in "abdp":
        np.testing.assert_array_equal(found[output], expected[output])
    gap = np.abs(found["e"].astype(np.int32) - expected["e"])
    assert gap.max() <= 1
    assert np.mean(gap > 0) <= 1e-3
    scale = np.max(np.abs(expected["c"]))
    assert np.max(np.abs(found["c"] - expected["c"])) <= 1e-5 * scale


RECURRENCES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "lstm": ("LSTM", 4, {"direction": "bidirectional"}),
    "lstm, cut": ("LSTM", 4, {"clip": 0.5, "input_forget": 1}),
    "gru": ("GRU", 3, {"linear_before_reset": 1, "direction": "reverse"}),
    "gru, reset first": ("GRU", 3, {}),
    "rnn": ("RNN", 1, {}),
}


@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrences(opencl: Any, name: str) -> None:
    """70 hidden units for 64 threads; rows of the batch end after different numbers of steps."""
    kind, gates, attrs = RECURRENCES[name]
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    rng = np.random.default_rng(2)
    feeds = {"x": rng.standard_normal((5, 3, 9)).astype(np.float32)}
    shapes = {"w": (gates * 70, 9), "r": (gates * 70, 70), "b": (2 * gates * 70,), "h": (3, 70)}
    weights = {
        key: rng.uniform(-0.1, 0.1, (directions, *shape)).astype(np.float32)
        for key, shape in shapes.items()
    }
    weights["lengths"] = np.array([5, 2, 4], np.int32)
    inputs = ["x", "w", "r", "b", "lengths", "h"]
    outputs = ["y", "last", "cell"][: 3 if kind == "LSTM" else 2]
    if kind == "LSTM":
        inputs += ["h", "p"]
        peepholes = rng.uniform(-1, 1, (directions, 3 * 70))
        weights["p"] = peepholes.astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, hidden_size=70, **attrs)],
        "g",
        [helper.make_tensor_value_info("x", 1, (5, 3, 9))],
        [helper.make_tensor_value_info(output, 1, None) for output in outputs],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=opset, ir_version=8)
    )
    compiled = graphopt.compile(model, target=target_of(REGIMES["small"]), tuning_log=())
    assert f"gpu.{kind.lower()}.sequence" in {call.candidate for call in compiled.report.calls}
    found = compiled.run(feeds)
    for output, value in reference(model, feeds).items():
        assert np.max(np.abs(found[output].astype(np.float64) - value)) <= 1e-5, output


def test_words_of_bytes(opencl: Any) -> None:
    model = model_of(BYTES)
    feeds = feeds_of(model)
    compiled = graphopt.compile(model, target=target_of(WORDS), tuning_log=())
    names = {call.candidate for call in compiled.report.calls}
    assert {"gpu.matmul.dp4a", "gpu.matmul_offset.dp4a", "gpu.conv_integer.dp4a"} <= names
    found, expected = compiled.run(feeds), reference(model, feeds)
    for output in "abd":
        np.testing.assert_array_equal(found[output], expected[output])
    scale = np.max(np.abs(expected["c"]))
    assert np.max(np.abs(found["c"] - expected["c"])) <= 1e-5 * scale


def matmul(rows: int, depth: int, columns: int) -> Workload:
    a, b = TensorSig((rows, depth)), TensorSig((depth, columns))
    op = Op("matmul", (a, b), TensorSig((rows, columns)), (("transpose_b", False),), (False, True))
    return Workload(op)


def traits_of(gpu: GpuTraits) -> TargetTraits:
    return TargetTraits("opencl", 64 if gpu.loops else 16, 32, gpu=gpu)


def launches(workload: Workload, gpu: GpuTraits) -> list[dict[str, int]]:
    """Blocks and threads of the first candidate's launches."""
    import tvm

    traits = traits_of(gpu)
    candidate = next(c for family in families(traits) for c in family(workload, traits))
    target = tvm.target.Target({"kind": "opencl"})
    kernel = device_kernel(scheduled(candidate), target, LaunchLimits(gpu.max_threads))
    return [dict(launch.extents) for launch in kernel.launches]


@pytest.mark.parametrize(
    ("regime", "expected"),
    [
        ("loops", [{"blockIdx.x": 48, "threadIdx.x": 1}]),
        ("threads", [{"blockIdx.x": 8, "threadIdx.x": 256}]),
        ("small", [{"blockIdx.x": 32, "threadIdx.x": 64}]),
    ],
)
def test_launches_of_a_product(regime: str, expected: list[dict[str, int]]) -> None:
    assert launches(matmul(256, 128, 512), REGIMES[regime]) == expected


def test_launches_of_a_thread_for_each_element() -> None:
    window = (("kernel", (2, 2)), ("strides", (2, 2)), ("padding", (0,) * 4), ("dilation", (1, 1)))
    x = TensorSig((1, 64, 56, 56))
    pool = Op("max_pool2d", (x,), TensorSig((1, 64, 28, 28)), window, (False,))
    both = Op("concat", (x, x), TensorSig((1, 128, 56, 56)), (("axis", 1),), (False, False))
    for op, blocks in ((pool, 196), (both, 1568)):
        found = launches(Workload(op), REGIMES["threads"])
        assert found == [{"blockIdx.x": blocks, "threadIdx.x": 256}]


@pytest.mark.parametrize("threads", [1, 2, 32, 64, 96, 256, 1024])
@pytest.mark.parametrize("shared", [1 << 10, 16 << 10, 48 << 10])
@pytest.mark.parametrize("sides", [(1, 1000, 64), (7, 5, 3), (512, 512, 512)])
def test_tiles_stay_within_the_limits(
    threads: int, shared: int, sides: tuple[int, int, int]
) -> None:
    rows, columns, steps = sides
    gpu = GpuTraits(max_threads=threads, shared_bytes=shared, units=16)
    tiling = default_tiling(Product(1, rows, columns, steps, "float32"), traits_of(gpu))
    assert tiling.threads <= threads
    assert shared_bytes(tiling) <= shared
