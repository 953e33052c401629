"""Integer inputs and outputs: the first QuantizeLinear and the last DequantizeLinear go away."""

from __future__ import annotations

import json
from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from graphopt.compression.quantization.graph import Graph, fresh, is_op
from graphopt.frontend.model import OnnxModel

METADATA = "graphopt.io"
"""Key under which the model keeps scale and zero point of its integer inputs and outputs."""

_INTEGERS = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8}


def with_integer_io(
    model: OnnxModel, names: Mapping[str, tuple[str, str]], dtype: str
) -> OnnxModel:
    """A QDQ model whose float32 inputs and outputs are in 8 bits.

    They keep their names: input `x` is what was `x_quantized`, and so is output `y`; the float
    tensor `y` becomes `y_float`.

    Args:
        names: tensor in 8 bits → its quantized and its dequantized form.
        dtype: of the integers, "uint8" or "int8".
    """
    graph = Graph(model)
    inputs = [name for name in graph.inputs if name in names]
    outputs = [name for name in graph.outputs if name in names]
    taken = {*graph.types, *graph.producers, *graph.constants, *graph.inputs}
    renames = {names[name][0]: name for name in (*inputs, *outputs)}
    renames |= {name: fresh(f"{name}_float", taken) for name in outputs}
    # A float reader of an input, if there is one, reads what its integers stand for.
    renames |= {name: names[name][1] for name in inputs}
    facts: dict[str, object] = {}
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        if is_op(node, "QuantizeLinear") and node.input[0] in (*inputs, *outputs):
            scale, zero = (graph.array(name) for name in node.input[1:3])
            facts[node.input[0]] = {"scale": float(scale), "zero_point": int(zero)}
            if node.input[0] in inputs:
                continue
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renames.get(name, name) for name in node.input]
        copy.output[:] = [renames.get(name, name) for name in node.output]
        nodes.append(copy)
    proto = graph.rebuilt(nodes).proto
    integers = {*inputs, *outputs}
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in integers:
            value.type.tensor_type.elem_type = _INTEGERS[dtype]
    _forget_types(proto, integers)
    proto.metadata_props.add(key=METADATA, value=json.dumps(facts))
    return OnnxModel(proto, model.base_dir)


def _forget_types(proto: ModelProto, names: set[str]) -> None:
    values = [value for value in proto.graph.value_info if value.name not in names]
    kept = [ValueInfoProto.FromString(value.SerializeToString()) for value in values]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
