"""Models in float64, for the result that others are measured against."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float64 in place of narrower floats."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for tensor in graph.initializer:
        _double(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "softmax_precision") and attribute.i in FLOATS:
                attribute.i = onnx.TensorProto.DOUBLE
            if attribute.HasField("t"):
                _double(attribute.t)
    return copy


def _double(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def doubled(value: Any) -> Any:
    """An input for such a model."""
    narrow = isinstance(value, np.ndarray) and is_float(value.dtype)
    return value.astype(np.float64) if narrow else value


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are rounded: floats of any width."""
    return dtype.kind == "f" or dtype.name == "bfloat16"
