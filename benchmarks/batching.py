"""Models at another batch size, where that is possible and means the same for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from graphopt.bench.inputs import Shapes, graph_inputs, sample_inputs

Feeds = dict[str, Any]


def rebatched(
    path: Path, shapes: Shapes, limits: Mapping[str, int], batch: int, folder: Path
) -> tuple[Path, dict[str, tuple[int, ...]]] | None:
    """The model and the shapes of its open inputs with `batch` in place of a first dimension of 1.

    None if an input has no such dimension, or if ONNX Runtime does not give for the samples of a
    batch what it gives for each alone: the batch size is built in too deep.
    """
    model = onnx.load(path)
    first = {
        value.name: shapes[value.name][:1]
        if value.name in shapes
        else tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[:1])
        for value in graph_inputs(model)
    }
    if any(size != (1,) for size in first.values()):
        return None
    batched = {name: (batch, *shape[1:]) for name, shape in shapes.items()}
    for value in (*graph_inputs(model), *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == 1:
            dims[0].dim_value = batch
    del model.graph.value_info[:]
    _widen_constant_shapes(model.graph, batch)
    out = folder / f"{path.stem}-{batch}.onnx"
    onnx.save(model, out)
    feeds = sample_inputs(model, batched, limits=limits)
    return (out, batched) if _same_for_each(path, out, feeds, batch) else None


def _widen_constant_shapes(graph: onnx.GraphProto, batch: int) -> None:
    """Shapes that a Reshape or Expand is told: the batch is a factor of the first size."""
    made = [(node.output[0], node.attribute) for node in graph.node if node.op_type == "Constant"]
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors |= {name: each.t for name, attrs in made for each in attrs if each.name == "value"}
    wanted = {
        node.input[1]
        for node in graph.node
        if node.op_type == "Expand" or (node.op_type == "Reshape" and node.input[0] not in tensors)
    }
    for name, tensor in tensors.items():
        if name in wanted:
            shape = numpy_helper.to_array(tensor).copy()
            if shape.size and shape[0] > 0:
                shape[0] *= batch
                tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))


def _same_for_each(alone: Path, together: Path, feeds: Feeds, batch: int) -> bool:
    def run(path: Path, given: Feeds) -> list[Any]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, given))

    try:
        results = run(together, feeds)
        for index in (0, batch - 1):
            single = run(alone, {name: x[index : index + 1] for name, x in feeds.items()})
            for many, one in zip(results, single, strict=True):
                if one.shape[:1] != (1,) or many.shape[:1] != (batch,):
                    return False
                if not np.allclose(many[index], one[0], rtol=1e-3, atol=1e-4):
                    return False
    except Exception:  # ONNX Runtime raises many types for a graph that does not fit
        return False
    return True
