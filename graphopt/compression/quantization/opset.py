"""Raises a model's operator set where the quantized form needs a newer one."""

from __future__ import annotations

from math import prod

from onnx import ModelProto, ValueInfoProto, helper, version_converter

from graphopt.compression.quantization.graph import STAGE
from graphopt.errors import ModelError
from graphopt.frontend.model import OnnxModel, is_standard, subgraphs

PER_CHANNEL = 13
"""The first operator set whose DequantizeLinear takes a scale per channel."""
BLOCKED = 21
"""The first with 4-bit integers and a scale per block."""

# IR versions belong to operator sets; the first that have 4-bit types.
_IR_VERSIONS = {PER_CHANNEL: 7, BLOCKED: 10}

# Adapters of the converter read the values of axes and shapes, never larger ones.
_MAX_READ = 1024


def upgraded(model: OnnxModel, version: int) -> OnnxModel:
    """A prepared model in operator set `version` or the one it has, if that is newer.

    Uses ONNX's version converter, without the weights, which it would copy several times.

    Raises:
        ModelError: the converter cannot convert a node, or the model has control flow, which it
            would leave as it is.
    """
    proto = model.proto
    current = model.opsets.get("", 1)
    if current >= version:
        return _with_ir(model, version)
    for node in proto.graph.node:
        if any(True for _ in subgraphs(node)):
            raise ModelError(
                STAGE,
                f"the model is of operator set {current}, quantized models need {version}, and "
                f"{node.op_type} has a body, which cannot be converted.",
                node=node.name,
                hint=f"export the model with opset_version={version}.",
            )
    skeleton = ModelProto()
    skeleton.CopyFrom(_skeleton(proto))
    large = [t for t in proto.graph.initializer if prod(t.dims) > _MAX_READ]
    try:
        converted = version_converter.convert_version(skeleton, version)
    except Exception as error:  # the converter raises bare RuntimeErrors and more
        raise ModelError(
            STAGE,
            f"the model is of operator set {current}, quantized models need {version}, and ONNX's "
            f"converter failed: {str(error).strip().splitlines()[-1]}.",
            hint=f"export the model with opset_version={version}.",
        ) from error
    graph, names = converted.graph, {tensor.name for tensor in large}
    inputs = [value for value in graph.input if value.name not in names]
    inputs = [value for value in inputs if value.name in {v.name for v in proto.graph.input}]
    kept = [ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(large)
    del graph.value_info[:]
    # The converter forgets operator sets of other domains.
    for opset in proto.opset_import:
        if not is_standard(opset) and opset.domain not in {
            o.domain for o in converted.opset_import
        }:
            converted.opset_import.add().CopyFrom(opset)
    return _with_ir(OnnxModel(converted, model.base_dir), version)


def _skeleton(proto: ModelProto) -> ModelProto:
    """The model with its large weights as inputs."""
    skeleton = ModelProto(
        ir_version=max(proto.ir_version, 4),
        opset_import=proto.opset_import,
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        metadata_props=proto.metadata_props,
    )
    graph = skeleton.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    for tensor in proto.graph.initializer:
        if prod(tensor.dims) > _MAX_READ:
            kind = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            graph.input.append(ValueInfoProto(name=tensor.name, type=kind))
        else:
            graph.initializer.append(tensor)
    return skeleton


def _with_ir(model: OnnxModel, version: int) -> OnnxModel:
    needed = _IR_VERSIONS.get(version, 7)
    if model.proto.ir_version >= needed:
        return model
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    proto.ir_version = needed
    return OnnxModel(proto, model.base_dir)
