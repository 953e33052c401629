"""Prepares a model for import: checked, with static shapes, folded, without functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from graphopt.errors import OptionError
from graphopt.frontend.fold import Folder, live_nodes, sparse_array, used_names
from graphopt.frontend.functions import inline_functions
from graphopt.frontend.identity import assign_ids
from graphopt.frontend.legacy import is_legacy, modernise
from graphopt.frontend.model import Array, OnnxModel
from graphopt.frontend.operand_types import check_types
from graphopt.frontend.shapes import (
    bind_shapes,
    graph_inputs,
    unbound_inputs,
)
from graphopt.frontend.structure import check_structure
from graphopt.frontend.validity import check_declared, check_standard

__all__ = ["prepare", "unbound_inputs"]


def prepare(
    model: OnnxModel,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, Array] | None = None,
) -> OnnxModel:
    """Bring a model into the form that the importer, and the compression, work on.

    Every node's name is its id from here on (see identity.py). Local functions are inlined,
    Constant nodes are initializers, constant expressions and branches are folded, dead nodes
    removed, and the type of every value that could be inferred is in `value_info`. Random and
    quantization nodes are kept. `model` is not changed.

    Args:
        shapes: input name → shape; inputs left out keep the model's shape.
        constants: input name → value, for inputs that act as shapes, counts, scales or modes;
            they are no inputs of the result.

    Raises:
        ModelError: the model is invalid, or the shapes do not fit it.
        OptionError: `shapes` or `constants` do not fit the model's inputs.
    """
    check_structure(model)
    check_standard(model.proto)
    source = OnnxModel(_upgraded(model.proto), model.base_dir)
    proto = _without_weights(source.proto)
    assign_ids(proto)
    inline_functions(proto)
    weights = {tensor.name: tensor for tensor in source.proto.graph.initializer}
    weights.update(_dense(source))
    prepared = OnnxModel(proto, model.base_dir)
    folder = _folded(prepared, weights, shapes or {}, constants or {})
    check_declared(model.proto, folder.nodes, folder.types, bound=bool(shapes))
    check_types(folder.nodes, folder.types, folder.opsets)
    return OnnxModel(_rebuilt(proto, folder), model.base_dir)


def prepare_segment(
    segment: OnnxModel,
    shapes: Mapping[str, Sequence[int]],
    constants: Mapping[str, Array],
) -> OnnxModel:
    """As prepare(), for a part of a prepared model: bind what is open, and fold what follows.

    Raises:
        ModelError: the shapes do not fit the nodes.
        OptionError: `shapes` or `constants` do not fit the inputs.
    """
    proto = _without_weights(segment.proto)
    weights = {tensor.name: tensor for tensor in segment.proto.graph.initializer}
    weights.update(segment.shared)
    folder = _folded(OnnxModel(proto, segment.base_dir), weights, shapes, constants)
    return OnnxModel(_rebuilt(proto, folder), segment.base_dir)


def _folded(
    model: OnnxModel,
    weights: dict[str, TensorProto],
    shapes: Mapping[str, Sequence[int]],
    constants: Mapping[str, Array],
) -> Folder:
    """Bind a graph without initializers, in place, and walk over it."""
    bound = _bind_constants(model.proto, constants)
    bind_shapes(model.proto, shapes)
    folder = Folder(model, {**weights, **bound})
    folder.run()
    return folder


def _upgraded(proto: ModelProto) -> ModelProto:
    if not is_legacy(proto):
        return proto
    named = ModelProto()
    named.CopyFrom(proto)
    assign_ids(named)
    modernise(named)
    return named


def _without_weights(proto: ModelProto) -> ModelProto:
    """A copy whose graph has no initializers, which may be large and are passed on uncopied.

    Inputs that have an initializer (old models list all weights as inputs) are left out: they are
    compiled in.
    """
    copy = ModelProto(
        ir_version=proto.ir_version,
        opset_import=proto.opset_import,
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        metadata_props=proto.metadata_props,
        functions=proto.functions,
    )
    graph = copy.graph
    graph.name, graph.doc_string = proto.graph.name, proto.graph.doc_string
    graph.node.extend(proto.graph.node)
    graph.input.extend(graph_inputs(proto.graph))
    graph.output.extend(proto.graph.output)
    return copy


def _dense(model: OnnxModel) -> dict[str, TensorProto]:
    return {
        sparse.values.name: numpy_helper.from_array(sparse_array(sparse, model), sparse.values.name)
        for sparse in model.proto.graph.sparse_initializer
    }


def _bind_constants(proto: ModelProto, constants: Mapping[str, Array]) -> dict[str, TensorProto]:
    """Remove the bound inputs from the graph; return their checked values."""
    inputs = {value.name: value for value in graph_inputs(proto.graph)}
    values = {}
    for name, given in constants.items():
        if name not in inputs:
            raise OptionError(
                "prepare",
                f"constants names '{name}', which is no input of the model.",
                hint=f"The inputs are: {', '.join(inputs) or '(none)'}.",
            )
        kind = inputs[name].type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        array = np.asarray(given)
        if array.dtype != dtype:
            if array.dtype.kind not in "iub" or dtype.kind not in "iub":
                raise OptionError(
                    "prepare", f"Input '{name}' is {dtype}, its constant is {array.dtype}."
                )
            if (array.astype(dtype) != array).any():
                raise OptionError(
                    "prepare", f"The constant for input '{name}' does not fit its type {dtype}."
                )
            array = array.astype(dtype)
        if kind.HasField("shape") and len(kind.shape.dim) != array.ndim:
            if array.size != 1 or len(kind.shape.dim) > 1:
                raise OptionError(
                    "prepare",
                    f"Input '{name}' has {len(kind.shape.dim)} dimensions, "
                    f"its constant has {array.ndim}.",
                )
            array = array.reshape((1,) * len(kind.shape.dim))
        values[name] = numpy_helper.from_array(array, name)
    kept = [v for name, v in inputs.items() if name not in values]
    copies = [ValueInfoProto.FromString(v.SerializeToString()) for v in kept]
    del proto.graph.input[:]
    proto.graph.input.extend(copies)
    return values


def _rebuilt(proto: ModelProto, folder: Folder) -> ModelProto:
    graph = proto.graph
    outputs = [value.name for value in graph.output]
    nodes = live_nodes(folder.nodes, outputs)
    used = used_names(nodes, outputs)
    rebuilt = ModelProto(
        ir_version=proto.ir_version,
        opset_import=proto.opset_import,
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        metadata_props=proto.metadata_props,
    )
    result = rebuilt.graph
    result.name, result.doc_string = graph.name, graph.doc_string
    result.node.extend(nodes)
    result.input.extend(graph.input)
    for name, tensor in folder.constants.items():
        if name in used:
            own = result.initializer.add()
            own.CopyFrom(tensor)
            own.name = name
    for value in graph.output:
        kind = folder.types.get(value.name, value.type)
        result.output.append(ValueInfoProto(name=value.name, type=kind))
    known = set(outputs) | set(folder.constants) | {value.name for value in graph.input}
    for node in nodes:
        for name in node.output:
            if name and name not in known and name in folder.types:
                result.value_info.append(ValueInfoProto(name=name, type=folder.types[name]))
    return rebuilt
