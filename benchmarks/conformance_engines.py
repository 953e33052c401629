"""The engines of the conformance suite: graphopt, and ONNX Runtime at its best."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Feeds = dict[str, Any]
Engine = Callable[[onnx.ModelProto, Feeds], list[Any]]


class RefusalError(Exception):
    """The engine declined the model in an orderly way."""


def run_graphopt(model: onnx.ModelProto, feeds: Feeds, target: str = "cpu") -> list[Any]:
    """Compile and run with graphopt; a RefusalError where it gives a reason."""
    import graphopt

    try:
        compiled = graphopt.compile(model, target, threads=1)
        results = compiled.run(feeds)
    except graphopt.GraphoptError as error:
        if error.stage == "internal":
            raise
        raise RefusalError(str(error)) from error
    return [results[value.name] for value in model.graph.output]


def run_onnxruntime(model: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    """ONNX Runtime, as it comes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_inputs() if value.name in feeds]
        if any(_is_foreign(feeds[name]) for name in names) or _foreign_outputs(model):
            return _run_ort_values(session, {n: (feeds[n], kinds[n]) for n in names})
        return list(session.run(None, {name: feeds[name] for name in names}))
    except Exception as error:  # it raises many types, and asserts, for what it does not support
        raise RefusalError(f"{type(error).__name__}: {error}") from error


def _is_foreign(value: Any) -> bool:
    """Whether an array's type is one that ONNX Runtime's bindings do not know from NumPy."""
    return isinstance(value, np.ndarray) and value.dtype.kind not in "fiubOUS"


def _foreign_outputs(model: onnx.ModelProto) -> bool:
    return any(
        helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).kind not in "fiubOUS"
        for value in model.graph.output
        if value.type.tensor_type.elem_type
    )


def _run_ort_values(session: Any, feeds: dict[str, tuple[Any, int]]) -> list[Any]:
    """A run in which tensors of bfloat16, float8 and the like go in and out as their bytes."""
    from onnxruntime import OrtValue

    values = {
        name: OrtValue.ortvalue_from_numpy_with_onnx_type(_packed(array), kind)
        if _is_foreign(array)
        else OrtValue.ortvalue_from_numpy(array)
        for name, (array, kind) in feeds.items()
    }
    results = []
    for result in session.run_with_ort_values(None, values):
        kind = result.element_type()
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if dtype.kind in "fiubOUS":
            results.append(result.numpy())
            continue
        count = int(np.prod(result.shape()))
        bits = _BITS.get(kind, 8 * dtype.itemsize)
        raw = ctypes.string_at(result.data_ptr(), -(-count * bits // 8))
        tensor = onnx.TensorProto(data_type=kind, dims=result.shape(), raw_data=raw)
        results.append(numpy_helper.to_array(tensor))
    return results


_BITS = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
}


def _packed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of a tensor as ONNX stores them; 2-byte elements stay as they are."""
    if array.dtype.itemsize == 2:
        return array.view(np.uint16)
    if helper.np_dtype_to_tensor_dtype(array.dtype) in _BITS:
        raise RefusalError("its bindings take no tensors of fewer than 8 bits")
    return array.view(np.uint8)


def run_restamped(model: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    """ONNX Runtime; where it refuses, again with operator set versions that it knows."""
    try:
        return run_onnxruntime(model, feeds)
    except RefusalError as refusal:
        first = refusal
    for newest in _KNOWN_OPSETS:
        restamped = onnx.ModelProto()
        restamped.CopyFrom(model)
        restamped.ir_version = min(restamped.ir_version, 11)
        for opset in restamped.opset_import:
            if opset.domain in ("", "ai.onnx"):
                opset.version = max(7, min(opset.version, newest))
            elif opset.domain == "ai.onnx.ml":
                opset.version = min(opset.version, 5)
        try:
            return run_onnxruntime(restamped, feeds)
        except RefusalError:
            continue
    raise first


# ONNX Runtime implements some operators in the newest of these only, others only in older ones.
_KNOWN_OPSETS = (26, 25, 24, 23, 22, 21, 20, 18, 16, 13)


ENGINES: dict[str, Engine] = {
    "graphopt": run_graphopt,
    "graphopt-opencl": partial(run_graphopt, target="opencl"),
    "onnxruntime": run_onnxruntime,
    "onnxruntime-restamped": run_restamped,
}
