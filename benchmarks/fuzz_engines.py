"""One fuzz case on graphopt and on ONNX Runtime, and how far apart their answers are.

Where two right answers differ, the verdict is not "wrong":

- ill-conditioned: ONNX Runtime's own answer moves by a comparable amount, or changes its shape as
  ours did, when its floating-point inputs and weights move by one part in a million (cancellation,
  rounding, comparisons, TopK ties, how many values are Unique);
- the standard leaves the value open: integer division by zero, and floating-point numbers that do
  not fit the integer type they are cast to;
- a weight of a convolution or recurrent layer is not finite: ONNX Runtime multiplies the zeros
  that pad a convolution by an infinite weight, which gives NaN, and its recurrent layers take a NaN
  for a number;
- MeanVarianceNormalization takes the variance of equal numbers for the difference of two that are
  rounded, which is anything around zero, and its root NaN or not;
- BatchNormalization in training mode updates its statistics in place in ONNX Runtime, also those
  that another node reads;
- ONNX Runtime does not reduce an empty tensor where noop_with_empty_axes is set, axes or not.
"""

from __future__ import annotations

import traceback
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

MAX_INPUT_ELEMENTS = 1 << 22
NUDGE = 1e-6
"""Relative size of the disturbance that tells an ill-conditioned answer from a wrong one."""

LEAST_SCALE = 1e-3
"""Below, differences count absolutely: ONNX Runtime gives Sigmoid(−20) as 0."""

TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-4, "float64": 1e-9}


@dataclass(frozen=True)
class Answer:
    """What an engine made of a case.

    status: "answer", "refused", "internal" (an error that is no refusal) or "idle" (it accepts the
    model, which has inputs that cannot be made up). outputs: by name, None for what is no tensor.
    """

    status: str
    outputs: Mapping[str, Array | None]
    detail: str = ""


def feeds_for(data: bytes, seed: int) -> dict[str, Array] | None:
    """Inputs for the model in `data`; None if it cannot be read or one cannot be made up."""
    try:
        graph = ModelProto.FromString(data).graph
    except Exception:
        return None
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in graph.initializer}
    feeds: dict[str, Array] = {}
    for value in graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        shape = [
            dim.dim_value
            if dim.HasField("dim_value")
            else 2 + zlib.crc32(dim.dim_param.encode()) % 3
            for dim in kind.shape.dim
        ]
        if min(shape, default=0) < 0 or np.prod(shape, dtype=float) > MAX_INPUT_ELEMENTS:
            return None
        try:
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        except KeyError:
            return None
        if dtype.kind in "OSU" or not value.type.HasField("tensor_type"):
            return None
        feeds[value.name] = _values(rng, shape, dtype)
    return feeds


def _values(rng: np.random.Generator, shape: list[int], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return rng.integers(0, 4, shape).astype(dtype)
    return np.asarray(rng.standard_normal(shape), dtype)


def run_graphopt(request: tuple[bytes, int]) -> Answer:
    """Compile and run the model in request[0] on inputs from the seed request[1]."""
    import graphopt

    data, seed = request
    try:
        # Winograd spreads Inf and NaN over a tile, and subnormal numbers count as zero by default.
        model = graphopt.compile(data, threads=1, cache=False, numerics="strict")
        feeds = feeds_for(data, seed)
        if feeds is None:
            return Answer("idle", {})
        return Answer("answer", dict(model.run(feeds)))
    except graphopt.GraphoptError as error:
        internal = error.stage == "internal" or "defect of graphopt" in (error.hint or "")
        return Answer("internal" if internal else "refused", {}, str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rsplit('/', 1)[-1]}:{place.name}"
        return Answer("internal", {}, f"{type(error).__name__} in {where}: {error}"[:1000])


def run_onnxruntime(request: tuple[bytes, int, int]) -> Answer:
    """The same on ONNX Runtime without optimisations; request[2]: number of a nudge, 0 for none."""
    import onnxruntime

    data, seed, nudge = request
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        feeds = feeds_for(data, seed)
        if nudge and feeds is not None:
            data, feeds = _nudged(data, feeds, nudge)
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        if feeds is None:
            return Answer("idle", {})
        names = [output.name for output in session.get_outputs()]
        wanted = {value.name for value in session.get_inputs()}
        results = session.run(names, {k: v for k, v in feeds.items() if k in wanted})
    except Exception as error:  # it raises many types
        return Answer("refused", {}, f"{type(error).__name__}: {error}"[:500])
    return Answer(
        "answer",
        {
            name: value if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else None
            for name, value in zip(names, results, strict=True)
        },
    )


def _nudged(data: bytes, feeds: dict[str, Array], number: int) -> tuple[bytes, dict[str, Array]]:
    rng = np.random.default_rng(number)

    def moved(array: Array) -> Array:
        if array.dtype.kind != "f":
            return array
        size = max(NUDGE, 2.0 * float(np.finfo(array.dtype).eps))
        with np.errstate(all="ignore"):
            factor = 1 + size * rng.choice((-1.0, 1.0), array.shape)
            return np.asarray(array * factor, array.dtype)

    model = ModelProto.FromString(data)
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
            changed = moved(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return model.SerializeToString(), {name: moved(array) for name, array in feeds.items()}


def difference(found: Array, expected: Array) -> float:
    """How far apart two tensors are, in units of what is allowed; inf if not comparable."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    if found.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else np.inf
    tolerance = TOLERANCES[str(found.dtype)]
    a, b = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    # Infinite because it is too large for the type is as good as the largest number.
    largest = float(np.finfo(found.dtype).max)
    near = (np.isnan(a) & np.isnan(b)) | (a == b)
    near |= np.isinf(b) & (np.abs(a) > 0.99 * largest) & (np.sign(a) == np.sign(b))
    near |= np.isinf(a) & (np.abs(b) > 0.99 * largest) & (np.sign(a) == np.sign(b))
    if near.all():
        return 0.0
    if not (finite | near).all() or not np.isfinite(a[~near]).all():
        return np.inf
    scale = max(float(np.abs(b[finite]).max(initial=0.0)), LEAST_SCALE)
    return float(np.abs(a[~near] - b[~near]).max()) / (tolerance * scale)


def differences(found: Answer, expected: Answer) -> dict[str, float]:
    """Per output the difference; outputs that are no tensors are left out."""
    result = {}
    for name, array in expected.outputs.items():
        other = found.outputs.get(name)
        if array is not None:
            result[name] = np.inf if other is None else difference(other, array)
    return result


def leaves_open(data: bytes) -> bool:
    """Whether the model has nodes whose results the standard leaves open, or ORT gets wrong."""
    graph = onnx.shape_inference.infer_shapes(ModelProto.FromString(data)).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, 0)
    reads = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        source = kinds.get(node.input[0], 0) if node.input else 0
        to = next((a.i for a in node.attribute if a.name == "to"), 0)
        if node.op_type in ("Cast", "CastLike") and source in floats and to not in floats[:3]:
            return True
        if node.op_type in ("Div", "Mod") and source not in floats[:3]:
            return True
        if node.op_type == "MeanVarianceNormalization":
            return True
        # The running statistics that this node updates are read by another one.
        statistics = node.input[3:5] if node.op_type == "BatchNormalization" else ()
        if len(node.output) > 1 and any(reads[name] > 1 for name in statistics):
            return True
    return False


def weights_not_finite(data: bytes) -> bool:
    """Whether a convolution or recurrent layer is among the nodes, and a constant is not finite."""
    graph = ModelProto.FromString(data).graph
    layers = {"Conv", "ConvTranspose", "LSTM", "GRU", "RNN"}
    return bool(layers & {node.op_type for node in graph.node}) and any(
        not np.isfinite(numpy_helper.to_array(tensor)).all()
        for tensor in graph.initializer
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    )


def may_keep_empty(data: bytes) -> bool:
    """Whether a reduction has noop_with_empty_axes set."""
    nodes = ModelProto.FromString(data).graph.node
    return any(a.name == "noop_with_empty_axes" and a.i for n in nodes for a in n.attribute)
