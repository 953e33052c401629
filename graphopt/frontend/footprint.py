"""What a model needs, told from its file: open dimensions, and room for packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from graphopt.frontend.shapes import graph_inputs
from graphopt.weight_budget import allowed_bytes

_WINOGRAD_GROWTH = 4
"""Weights of a 3×3 convolution in F(4×4, 3×3): 6·6 numbers for 3·3."""


def open_dimensions(graph: GraphProto) -> dict[str, tuple[str, ...]]:
    """Open dimension → the places of inputs that have it, such as "x[2]".

    A dimension that the model does not name is called by its first place.
    """
    found: dict[str, tuple[str, ...]] = {}
    for value in graph_inputs(graph):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value <= 0 and not dim.HasField("dim_value"):
                place = f"{value.name}[{axis}]"
                name = dim.dim_param or place
                found[name] = (*found.get(name, ()), place)
    return found


def packed_weight_bytes(graph: GraphProto, limit: float) -> int:
    """Upper bound of the bytes of all weights as kernels read them.

    Packing keeps the size of most weights; those of 3×3 convolutions grow where Winograd wins.

    Args:
        limit: packed weights may take at most this many times the bytes of the constants, which
            count for a megabyte at least.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    total = sum(map(_nbytes, weights.values()))
    for node in graph.node:  # a weight may be read through Identity nodes
        if node.op_type == "Identity" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    found = (_winograd_weight(node, weights) for node in graph.node)
    winograd = {tensor.name: _nbytes(tensor) for tensor in found if tensor is not None}
    grown = sum(winograd.values()) * (_WINOGRAD_GROWTH - 1)
    return min(total + grown, allowed_bytes(total, limit))


_ITEM_BYTES = {
    TensorProto.FLOAT: 4,
    TensorProto.DOUBLE: 8,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT16: 2,
    TensorProto.UINT16: 2,
    TensorProto.INT32: 4,
    TensorProto.UINT32: 4,
    TensorProto.INT64: 8,
    TensorProto.UINT64: 8,
}


def _nbytes(tensor: TensorProto) -> int:
    return int(prod(tensor.dims)) * _ITEM_BYTES.get(tensor.data_type, 1)


def _winograd_weight(node: NodeProto, weights: Mapping[str, TensorProto]) -> TensorProto | None:
    """The weight of a convolution that Winograd can compute."""
    if node.op_type != "Conv" or len(node.input) < 2:
        return None
    attributes = {item.name: item for item in node.attribute}
    steps = [s for name in ("strides", "dilations") for s in _ints(attributes.get(name))]
    grouped = "group" in attributes and attributes["group"].i != 1
    weight = weights.get(node.input[1])
    if weight is None or grouped or any(step != 1 for step in steps):
        return None
    return weight if list(weight.dims[2:]) == [3, 3] else None


def _ints(attribute: AttributeProto | None) -> list[int]:
    return list(attribute.ints) if attribute is not None else []
