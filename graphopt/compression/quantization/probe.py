"""Two models that tell what each layer costs alone, for the price of compiling two.

The float model behind a layer is exact when only that layer is quantized. So one model gives what
each layer computes in integers from float inputs, and another is the float model with an input per
layer, which is added to what the layer writes: zero, or the error of the layer in integers. Both
also serve where all tensors of the float and of the quantized model are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TypeProto, ValueInfoProto, helper

from graphopt.compression.quantization.apply import apply
from graphopt.compression.quantization.graph import Graph, fresh, renamed_inputs
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.plan import Plan
from graphopt.frontend.fold import live_nodes
from graphopt.frontend.model import Array, OnnxModel
from graphopt.frontend.shapes import dimensions


@dataclass(frozen=True, eq=False)
class FloatProbe:
    """The float model with an input of noise for each tensor that a layer writes.

    Attributes:
        noise: the input that is added to a tensor, by the tensor's name.
        shapes: of these tensors; None where a dimension is open.
        wanted: every tensor that a comparison needs: always the same, so that one program serves.
    """

    model: OnnxModel
    noise: Mapping[str, str]
    shapes: Mapping[str, tuple[int | None, ...]]
    wanted: tuple[str, ...]

    def feeds(
        self, inputs: Mapping[str, Array], added: Mapping[str, Array], like: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Inputs with noise on some tensors.

        Args:
            added: noise by tensor. like: values of the tensors, if they are known: where a shape
                is open, zeros of the same shape then keep the program that `added` needs.
        """
        given = dict(inputs)
        for tensor, name in self.noise.items():
            shape = like[tensor].shape if tensor in like else self._shape(tensor)
            given[name] = added[tensor] if tensor in added else _zeros(shape)
        return given

    def _shape(self, tensor: str) -> tuple[int, ...]:
        shape = self.shapes[tensor]
        known = tuple(dim for dim in shape if dim is not None)
        return known if len(known) == len(shape) else (1,) * len(shape)


@dataclass(frozen=True, eq=False)
class IntegerProbe:
    """The quantized model, and beside it each of its layers on inputs of its own.

    Attributes:
        given: the input for each tensor that a layer reads.
        alone: the output for each tensor that a layer writes.
    """

    model: OnnxModel
    given: Mapping[str, str]
    alone: Mapping[str, str]
    wanted: tuple[str, ...]

    def feeds(self, inputs: Mapping[str, Array], tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The model's inputs, and the float tensors that layers read."""
        read = {name: tensors[tensor] for tensor, name in self.given.items()}
        return {**inputs, **read}


def layers_of(groups: Iterable[Group]) -> tuple[Group, ...]:
    """The groups that round: data movement moves what is rounded already."""
    return tuple(group for group in groups if group.kind != "move")


def float_probe(model: OnnxModel, groups: Sequence[Group], tensors: Sequence[str]) -> FloatProbe:
    """A canonical model with noise inputs for its layers.

    Args:
        tensors: what is wanted beside what layers read and write, and the float outputs.
    """
    graph = Graph(model)
    written = [name for group in layers_of(groups) for name in group.outputs]
    shapes = {name: shape for name in written if (shape := _float_shape(graph, name)) is not None}
    taken = {*graph.index, *graph.types, *graph.producers, *graph.constants, *graph.inputs}
    noise = {name: fresh(f"{name}_added", taken) for name in shapes}
    exact = {name: fresh(f"{name}_exact", taken) for name in shapes}
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.output[:] = [exact.get(name, name) for name in node.output]
        nodes.append(copy)
        for name in node.output:
            if name in noise:
                place = fresh(f"{name}_Add", taken)
                nodes.append(helper.make_node("Add", [exact[name], noise[name]], [name], place))
    probed = graph.rebuilt(nodes)
    for name, given in noise.items():
        probed.proto.graph.input.append(_value(given, _addable(graph.types[name])))
    moved = [name for group in groups for name in group.outputs]
    wanted = dict.fromkeys([*tensors, *moved, *_read(graph, groups), *graph.float_outputs])
    return FloatProbe(probed, noise, shapes, tuple(n for n in wanted if n not in graph.inputs))


def integer_probe(model: OnnxModel, plan: Plan, wanted: Sequence[str]) -> IntegerProbe:
    """The quantized form of a canonical model, with each layer on its own too.

    Args:
        wanted: tensors of the quantized model that are compared.
    """
    base, quantized = Graph(model), Graph(apply(model, plan, integer_io=False))
    inside = {
        name: group
        for group in plan.groups
        for node in group.nodes
        for name in base.nodes[base.index[node]].output
        if name not in group.outputs
    }
    outside = {*base.inputs, *base.producers} - inside.keys()
    taken = {*quantized.index, *quantized.types, *quantized.producers, *quantized.constants}
    taken |= set(quantized.inputs)
    made = [name for node in quantized.nodes for name in node.output if name]
    own = {name: fresh(f"{name}_alone", taken) for name in made}
    given = {name: fresh(f"{name}_given", taken) for name in outside if name in base.types}
    copies = [_copied(node, {**own, **given}, own, taken) for node in quantized.nodes]
    written = [name for group in layers_of(plan.groups) for name in group.outputs]
    alone = {name: own[name] for name in written if _float_shape(base, name) is not None}
    kept = live_nodes(copies, list(alone.values()))
    joined = quantized.rebuilt([*quantized.nodes, *kept])
    read = {name for node in kept for name in node.input}
    used = {tensor: name for tensor, name in given.items() if name in read}
    for tensor, name in used.items():
        joined.proto.graph.input.append(_value(name, base.types[tensor]))
    for tensor, name in alone.items():
        joined.proto.graph.value_info.append(_value(name, base.types[tensor]))
    names = dict.fromkeys(name for name in wanted if name not in base.inputs)
    return IntegerProbe(joined, used, alone, (*names, *alone.values()))


def _copied(
    node: NodeProto, reads: Mapping[str, str], writes: Mapping[str, str], taken: set[str]
) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(renamed_inputs(node, reads))
    copy.output[:] = [writes.get(name, name) for name in node.output]
    copy.name = fresh(f"{node.name}_alone", taken)
    return copy


def _read(graph: Graph, groups: Sequence[Group]) -> list[str]:
    """What the nodes of layers read, constants apart."""
    nodes = [graph.nodes[graph.index[node]] for group in groups for node in group.nodes]
    names = dict.fromkeys(name for node in nodes for name in node.input)
    return [name for name in names if name in graph.producers]


def _float_shape(graph: Graph, name: str) -> tuple[int | None, ...] | None:
    return graph.shape(name) if graph.is_float(name) else None


def _addable(kind: TypeProto) -> TypeProto:
    """The type of what is added: where a dimension is open, any is, for zeros of one element."""
    if None not in (dimensions(kind) or ()):
        return kind
    opened = TypeProto()
    opened.CopyFrom(kind)
    for dim in opened.tensor_type.shape.dim:
        dim.Clear()
    return opened


def _value(name: str, kind: TypeProto) -> ValueInfoProto:
    return ValueInfoProto(name=name, type=kind)


def _zeros(shape: Sequence[int]) -> Array:
    return np.zeros(shape, np.float32)
