"""The float model that is quantized: affine operators behind a product are folded into it.

A batch normalisation that stays behind its convolution would be rounded after it, channel by
channel with other gains than the weights' scales know of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from graphopt.compression.quantization.graph import (
    Graph,
    attribute,
    is_op,
    renamed_inputs,
)
from graphopt.frontend.model import Array, OnnxModel, captured_names


@dataclass(frozen=True)
class _Affine:
    """y·gain + shift per channel, either of them None for 1 or 0."""

    gain: Array | None
    shift: Array | None


def canonical(model: OnnxModel) -> OnnxModel:
    """A prepared model with batch normalisations, factors and shifts folded into products.

    BatchNormalization, Mul, Div, Add and Sub by a constant per channel, right behind a Conv or a
    Gemm that nothing else reads, go into its weights and bias; alpha and beta of Gemm do too. The
    product keeps its node's name and writes what the folded node wrote. Identity and Dropout, which
    only copy, are left out.
    """
    graph = Graph(without_copies(Graph(model)))
    constants = dict(graph.constants)
    nodes: dict[str, NodeProto] = {node.name: node for node in graph.nodes}
    for node in graph.nodes:
        if node.name not in nodes or not is_op(node, "Conv", "Gemm"):
            continue
        product = _Product.read(graph, node)
        if product is None:
            continue
        current, folded = node, []
        while graph.is_private(current.output[0]):
            following = graph.readers(current.output[0])[0]
            affine = _affine(graph, following, current.output[0], product)
            if affine is None:
                break
            product = product.after(affine)
            folded.append(following.name)
            current = following
        if not folded and not product.changed:
            continue
        for name in folded:
            del nodes[name]
        nodes[node.name] = product.written(node, current.output[0], constants)
    return graph.rebuilt(nodes.values(), constants)


def without_copies(graph: Graph) -> OnnxModel:
    """The model without Identity and Dropout (a copy, but in training), as far as outputs allow."""
    sources: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        copies = is_op(node, "Identity") or (is_op(node, "Dropout") and len(node.input) < 3)
        captured = any(captured_names(reader) for reader in graph.readers(node.output[0]))
        alone = len([name for name in node.output if name]) == 1
        if copies and alone and not captured and node.output[0] not in graph.outputs:
            sources[node.output[0]] = sources.get(node.input[0], node.input[0])
        else:
            nodes.append(renamed_inputs(node, sources))
    return graph.rebuilt(nodes)


@dataclass(frozen=True)
class _Product:
    """A Conv or Gemm: weights with the output channels on `axis`, and the bias per channel."""

    weight: Array
    bias: Array | None
    axis: int
    rank: int
    channel_axis: int
    changed: bool = False

    @property
    def channels(self) -> int:
        return int(self.weight.shape[self.axis])

    @staticmethod
    def read(graph: Graph, node: NodeProto) -> _Product | None:
        """None where the weights or the bias are no float32 constants."""
        names = [name for name in node.input[1:3] if name]
        if any(name not in graph.constants or not graph.is_float(name) for name in names):
            return None
        weight = graph.array(names[0])
        bias = graph.array(names[1]) if len(names) > 1 else None
        if node.op_type == "Conv":
            return _Product(weight, bias, 0, weight.ndim, 1)
        alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
        axis = 0 if attribute(node, "transB", 0) else 1
        changed = alpha != 1 or (bias is not None and beta != 1)
        if bias is not None:
            if bias.size not in (1, weight.shape[axis]) or (bias.ndim == 2 and bias.shape[0] > 1):
                return None  # a bias per row stays where it is
            changed = changed or bias.shape != (weight.shape[axis],)
            bias = np.broadcast_to(bias.reshape(-1), weight.shape[axis : axis + 1])
            bias = (bias * np.float32(beta)).astype(np.float32)
        if alpha != 1:
            weight = (weight * np.float32(alpha)).astype(np.float32)
        return _Product(weight, bias, axis, 2, 1, changed)

    def after(self, affine: _Affine) -> _Product:
        """With one more operator folded; sums in float64."""
        weight, bias = self.weight.astype(np.float64), self.bias
        shift = np.zeros(self.channels) if bias is None else bias.astype(np.float64)
        if affine.gain is not None:
            shape = [1] * weight.ndim
            shape[self.axis] = self.channels
            weight = weight * affine.gain.reshape(shape)
            shift = shift * affine.gain
        if affine.shift is not None:
            shift = shift + affine.shift
        keeps_none = bias is None and affine.shift is None
        return _Product(
            weight.astype(np.float32),
            None if keeps_none else shift.astype(np.float32),
            self.axis,
            self.rank,
            self.channel_axis,
            True,
        )

    def written(self, node: NodeProto, output: str, constants: dict[str, TensorProto]) -> NodeProto:
        """The node with these weights; they are added to `constants`."""
        names = [f"{node.name}/weight", f"{node.name}/bias"]
        arrays = [self.weight] if self.bias is None else [self.weight, self.bias]
        inputs = [node.input[0]]
        for name, array in zip(names, arrays, strict=False):
            constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
            inputs.append(name)
        kept = [item for item in node.attribute if item.name not in ("alpha", "beta")]
        written = helper.make_node(node.op_type, inputs, [output], node.name)
        written.attribute.extend(kept)
        return written


def _affine(graph: Graph, node: NodeProto, value: str, product: _Product) -> _Affine | None:
    """What `node` does to `value`, a product's result, if that is affine per channel."""
    if is_op(node, "BatchNormalization"):
        if len([name for name in node.output if name]) > 1 or node.input[0] != value:
            return None
        if any(name not in graph.constants for name in node.input[1:]):
            return None
        gain, shift, mean, variance = (
            graph.array(name).astype(np.float64) for name in node.input[1:]
        )
        gain = gain / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        found = _Affine(gain, shift - mean * gain)
    elif is_op(node, "Mul", "Add") or (
        is_op(node, "Div", "Sub") and node.input[0] == value != node.input[1]
    ):
        other = node.input[1] if node.input[0] == value else node.input[0]
        vector = _per_channel(graph, other, product)
        if vector is None:
            return None
        if node.op_type in ("Add", "Sub"):
            found = _Affine(None, vector if node.op_type == "Add" else -vector)
        else:
            if node.op_type == "Div" and not vector.all():
                return None
            found = _Affine(vector if node.op_type == "Mul" else 1.0 / vector, None)
    else:
        return None
    parts = [part for part in (found.gain, found.shift) if part is not None]
    return found if all(np.isfinite(part).all() for part in parts) else None


def _per_channel(graph: Graph, name: str, product: _Product) -> Array | None:
    """A constant that has one value, or one for each channel of the product's result."""
    if name not in graph.constants or not graph.is_float(name):
        return None
    shape = tuple(graph.constants[name].dims)
    if len(shape) > product.rank:
        return None
    padded = (1,) * (product.rank - len(shape)) + shape
    rest = [dim for place, dim in enumerate(padded) if place != product.channel_axis]
    if any(dim != 1 for dim in rest) or padded[product.channel_axis] not in (1, product.channels):
        return None
    values = graph.array(name).astype(np.float64).reshape(-1)
    return np.broadcast_to(values, (product.channels,))
