"""Cross-layer equalisation: channels of neighbouring layers get ranges of one size.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
2019. Between two products with a positively homogeneous function f between them,
W₂·f(W₁x + b) = (W₂S)·f((S⁻¹W₁)x + S⁻¹b) for any positive diagonal S; S = √(r₁/r₂), with the
largest magnitudes r of the weights that write and that read a channel, makes both equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from graphopt.compression.quantization.graph import Graph, attribute, is_op
from graphopt.compression.quantization.groups import Group, find_groups
from graphopt.frontend.model import Array, OnnxModel

_HOMOGENEOUS = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Relu")
_SWEEPS = 20
_DONE = 1e-3
"""Largest change of a factor, less one, in the last sweep."""


@dataclass(frozen=True)
class Equalised:
    """The model, and how many pairs of layers were brought in line."""

    model: OnnxModel
    pairs: int


def equalised(model: OnnxModel) -> Equalised:
    """A canonical model that computes the same with equalised channels."""
    graph = Graph(model)
    products = {g.name: g for g in find_groups(graph)[0] if g.kind == "product"}
    nodes = {node.name: node for node in graph.nodes}
    pairs = []
    for group in products.values():
        second = _reader(graph, nodes[group.name], products)
        if second is not None and _own_constants(graph, group, second):
            pairs.append((group, second))
    arrays = {
        name: graph.array(name).astype(np.float64)
        for pair in pairs
        for group in pair
        for name in (group.weight, group.bias)
        if name is not None
    }
    for _ in range(_SWEEPS):
        change = 0.0
        for first, second in pairs:
            factors = _factors(arrays, first, second, nodes)
            _divide(arrays, first, factors)
            _multiply(arrays, second, factors, nodes)
            change = max(change, float(np.max(np.abs(factors - 1))))
        if change < _DONE:
            break
    constants: dict[str, TensorProto] = dict(graph.constants)
    for name, array in arrays.items():
        constants[name] = numpy_helper.from_array(array.astype(np.float32), name)
    return Equalised(graph.rebuilt(graph.nodes, constants), len(pairs))


def _reader(graph: Graph, node: NodeProto, products: Mapping[str, Group]) -> Group | None:
    """The product that alone reads a product's result, through homogeneous functions only."""
    if not is_op(node, "Conv"):
        return None
    value = node.output[0]
    while graph.is_private(value):
        (reader,) = graph.readers(value)
        found = products.get(reader.name)
        if found is not None:
            return found if is_op(reader, "Conv") and reader.input[0] == value else None
        if not is_op(reader, *_HOMOGENEOUS) or reader.input[0] != value:
            return None
        if len([name for name in reader.output if name]) > 1:
            return None
        if is_op(reader, "LeakyRelu") and attribute(reader, "alpha", 0.01) < 0:
            return None
        value = reader.output[0]
    return None


def _own_constants(graph: Graph, *groups: Group) -> bool:
    names = [name for group in groups for name in (group.weight, group.bias) if name is not None]
    return all(len(graph.readers(name)) == 1 for name in names)


def _per_input(weight: Array, node: NodeProto) -> Array:
    """Weights as (groups, output channels, input channels, kernel) of one group each; a view."""
    count = attribute(node, "group", 1)
    return weight.reshape(count, weight.shape[0] // count, weight.shape[1], -1)


def _factors(
    arrays: Mapping[str, Array], first: Group, second: Group, nodes: Mapping[str, NodeProto]
) -> Array:
    assert first.weight is not None
    assert second.weight is not None
    wrote = np.abs(arrays[first.weight]).reshape(len(arrays[first.weight]), -1).max(axis=1)
    reads = np.abs(_per_input(arrays[second.weight], nodes[second.name])).max(axis=(1, 3))
    read = reads.reshape(-1)
    alive = (wrote > 0) & (read > 0)
    ratio = np.sqrt(np.where(alive, wrote, 1.0) / np.where(alive, read, 1.0))
    return np.where(alive, ratio, 1.0)


def _divide(arrays: dict[str, Array], group: Group, factors: Array) -> None:
    assert group.weight is not None
    weight = arrays[group.weight]
    arrays[group.weight] = weight / factors.reshape(-1, *[1] * (weight.ndim - 1))
    if group.bias is not None:
        arrays[group.bias] = arrays[group.bias] / factors


def _multiply(
    arrays: dict[str, Array], group: Group, factors: Array, nodes: Mapping[str, NodeProto]
) -> None:
    assert group.weight is not None
    weight = arrays[group.weight]
    parts = _per_input(weight, nodes[group.name])
    scaled = parts * factors.reshape(parts.shape[0], 1, parts.shape[2], 1)
    arrays[group.weight] = scaled.reshape(weight.shape)
