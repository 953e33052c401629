"""A read-only view of a prepared model: who produces and who reads each tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper

from graphopt.frontend.model import Array, OnnxModel, captured_names, is_standard
from graphopt.frontend.shapes import dimensions, graph_inputs, tensor_type

STAGE = "quantize"


@dataclass(frozen=True, eq=False)
class Graph:
    """The main graph of a model that went through prepare(): node names are unique ids."""

    model: OnnxModel

    @cached_property
    def nodes(self) -> tuple[NodeProto, ...]:
        """In topological order."""
        return tuple(self.model.proto.graph.node)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Place of each node in `nodes`, by name."""
        return {node.name: place for place, node in enumerate(self.nodes)}

    @cached_property
    def constants(self) -> Mapping[str, TensorProto]:
        """Initializers by name."""
        return {tensor.name: tensor for tensor in self.model.proto.graph.initializer}

    @cached_property
    def producers(self) -> Mapping[str, NodeProto]:
        """The node that computes each tensor."""
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[NodeProto, ...]]:
        """The nodes that read each tensor, each once, bodies of control flow included."""
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys([*node.input, *sorted(captured_names(node))]):
                if name:
                    found.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the caller gives."""
        return tuple(value.name for value in graph_inputs(self.model.proto.graph))

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return tuple(value.name for value in self.model.proto.graph.output)

    @cached_property
    def types(self) -> Mapping[str, TypeProto]:
        """What is known of each tensor's type."""
        graph = self.model.proto.graph
        values = (*graph.input, *graph.value_info, *graph.output)
        known = {name: tensor_type(tensor) for name, tensor in self.constants.items()}
        return {**{value.name: value.type for value in values}, **known}

    def readers(self, tensor: str) -> tuple[NodeProto, ...]:
        """The nodes that read a tensor."""
        return self.consumers.get(tensor, ())

    def is_private(self, tensor: str) -> bool:
        """Whether exactly one node reads a tensor, and the caller does not."""
        return len(self.readers(tensor)) == 1 and tensor not in self.outputs

    def array(self, name: str) -> Array:
        """The values of a constant."""
        return self.model.array(self.constants[name])

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """A tensor's shape, None where a dimension is open; None if the rank is unknown."""
        kind = self.types.get(name)
        return None if kind is None else dimensions(kind)

    def is_float(self, name: str) -> bool:
        """Whether a tensor is known to be float32."""
        kind = self.types.get(name)
        return kind is not None and kind.tensor_type.elem_type == TensorProto.FLOAT

    @property
    def float_outputs(self) -> list[str]:
        """The outputs that are compared."""
        return [name for name in self.outputs if self.is_float(name)]

    def rebuilt(
        self,
        nodes: Iterable[NodeProto],
        constants: Mapping[str, TensorProto] | None = None,
        values: Iterable[ValueInfoProto] | None = None,
    ) -> OnnxModel:
        """The model with other nodes and, if given, other constants and known types.

        Constants that nothing reads any more are left out.
        """
        old = self.model.proto
        proto = ModelProto(
            ir_version=old.ir_version,
            opset_import=old.opset_import,
            producer_name=old.producer_name,
            producer_version=old.producer_version,
            metadata_props=old.metadata_props,
        )
        graph, kept = proto.graph, list(nodes)
        graph.name, graph.doc_string = old.graph.name, old.graph.doc_string
        graph.node.extend(kept)
        graph.input.extend(old.graph.input)
        graph.output.extend(old.graph.output)
        read = {name for node in kept for name in (*node.input, *captured_names(node))}
        read |= set(self.outputs)
        for name, tensor in (self.constants if constants is None else constants).items():
            if name in read:
                own = graph.initializer.add()
                own.CopyFrom(tensor)
                own.name = name
        made = {name for node in kept for name in node.output}
        known = old.graph.value_info if values is None else values
        graph.value_info.extend(value for value in known if value.name in made)
        return OnnxModel(proto, self.model.base_dir)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def is_op(node: NodeProto, *kinds: str) -> bool:
    """Whether a node is one of these standard operators."""
    return node.op_type in kinds and is_standard(node)


def renamed_inputs(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """`node`, reading other tensors; itself where nothing changes. Bodies are not looked into."""
    if not any(name in names for name in node.input):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    return copy


def fresh(name: str, taken: set[str]) -> str:
    """`name`, or a variant of it that is not taken; takes it."""
    found, count = name, 1
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found
