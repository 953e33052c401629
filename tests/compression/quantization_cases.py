"""Models, data and reference runs for the tests of quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.feeds import Given
from graphopt.compression.quantization.pipeline import Quantized, quantize_model
from graphopt.frontend.load import load_model
from graphopt.frontend.model import OnnxModel
from graphopt.model_runs import with_outputs

Array = np.ndarray[Any, Any]


class OnnxRuntimeRuns:
    """The reference: ONNX Runtime without optimisations."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[int, tuple[str, ...]], tuple[OnnxModel, Any]] = {}

    def __call__(
        self, model: OnnxModel, feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> Mapping[str, Array]:
        key = (id(model), tuple(wanted))
        if key not in self._sessions:
            self._sessions[key] = (model, session(with_outputs(model, wanted).proto))
        found = self._sessions[key][1].run(list(wanted), dict(feeds))
        return dict(zip(wanted, found, strict=True))


def session(model: onnx.ModelProto, optimised: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    data = model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(
    model: onnx.ModelProto, feeds: Mapping[str, Array], optimised: bool = False
) -> dict[str, Array]:
    """All outputs, by ONNX Runtime."""
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session(model, optimised).run(names, dict(feeds)), strict=True))


def quantized(
    model: onnx.ModelProto, data: Any, config: QuantizationConfig | None = None, **options: Any
) -> Quantized:
    """quantize() with ONNX Runtime as what runs models."""
    chosen = QuantizationConfig.of(config, **options)
    given = None if data is None else Given(data)
    return quantize_model(load_model(model), given, chosen, OnnxRuntimeRuns())


def feeds(model: onnx.ModelProto, count: int = 4, seed: int = 0) -> list[dict[str, Array]]:
    """Standard normal inputs."""
    rng = np.random.default_rng(seed)
    return [
        {
            value.name: rng.standard_normal(
                [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim], np.float32
            )
            for value in model.graph.input
        }
        for _ in range(count)
    ]


class Builder:
    """A small float32 model, node by node; every method returns the name of its result."""

    def __init__(self, opset: int = 17, seed: int = 0) -> None:
        self.opset, self.rng = opset, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, *shape: int | str) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        output = f"{name}_out"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name, **attributes))
        return output

    def value(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"value_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def random(self, *shape: int, scale: float | None = None) -> str:
        size = 1 / np.sqrt(max(1, np.prod(shape[1:]))) if scale is None else scale
        return self.value(self.rng.standard_normal(shape) * size)

    def conv(
        self, x: str, cin: int, cout: int, kernel: int = 3, bias: bool = True, name: str = "",
        **attributes: Any,
    ) -> str:  # fmt: skip
        group = attributes.get("group", 1)
        weights = [self.random(cout, cin // group, kernel, kernel)]
        weights += [self.random(cout, scale=0.3)] if bias else []
        pads = [kernel // 2] * 4
        return self.op("Conv", x, *weights, name=name, pads=pads, **attributes)

    def model(self, *outputs: str) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
        graph = helper.make_graph(self.nodes, "case", self.inputs, values, self.weights)
        built = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )
        return onnx.shape_inference.infer_shapes(built)
