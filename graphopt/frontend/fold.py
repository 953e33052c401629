"""One walk over the graph that infers shapes, folds constants and takes constant If branches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from math import prod

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    numpy_helper,
)

from graphopt.errors import ModelError
from graphopt.frontend.control_flow import fold_bodies, is_control_flow
from graphopt.frontend.evaluate import evaluate, foldable, worth_folding
from graphopt.frontend.functions import standard_body
from graphopt.frontend.model import Array, OnnxModel, captured_names, is_standard
from graphopt.frontend.rename import produced, rename_nodes
from graphopt.frontend.shapes import infer_node, static_shape, tensor_type
from graphopt.frontend.unroll import unrolled
from graphopt.frontend.validity import check_values

# Shape inference reads the values of small constants (axes, target shapes, scales) only.
_MAX_SHAPE_ELEMENTS = 1024


class Folder:
    """State of one walk. A node sees only what precedes it, so a single pass suffices:
    a branch that is taken or a shape that becomes known is in place before its users come.

    Attributes after run(): `nodes` that remain, `constants` and `types` by value name.
    """

    def __init__(
        self,
        model: OnnxModel,
        weights: Mapping[str, TensorProto],
        outer: Folder | None = None,
    ) -> None:
        """Args:
        weights: constants of the graph itself.
        outer: the walk over the graph around a body, which sees all that is known there.
        """
        self.model = model
        graph = model.proto.graph
        self.opsets = model.opsets
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.types: dict[str, TypeProto] = {}
        self._small: dict[str, TensorProto] = {}
        self._defined: set[str] = set()
        self._outer: Mapping[str, TensorProto] = {}
        if outer is not None:
            hidden = produced(graph.node) | {value.name for value in graph.input} | set(weights)
            self._outer = outer.constants
            for mine, theirs in (
                (self.constants, outer.constants),
                (self._small, outer._small),
                (self.types, outer.types),
            ):
                mine.update((n, value) for n, value in theirs.items() if n not in hidden)
            self._defined |= outer._defined
        self.types.update({value.name: value.type for value in graph.input})
        for name, tensor in weights.items():
            self.set_constant(name, tensor)
        self._declared = {value.name: value.type for value in graph.output}
        self._defined.update(self.types)

    def run(self) -> None:
        """Process every node of the graph in order."""
        queue = deque(self.model.proto.graph.node)
        while queue:
            node = queue.popleft()
            taken = self._taken_branch(node)
            if taken is not None:
                queue.extendleft(reversed(self._splice(node, taken)))
                continue
            check_values(node, self.constants)
            body = standard_body(node, self.types, self.opsets)
            if body is not None:
                queue.extendleft(reversed(body))
                continue
            if is_control_flow(node):
                node = fold_bodies(self, node)
                straight = unrolled(self, node)
                if straight is not None:
                    queue.extendleft(reversed(straight))
                    continue
                self._defined.update(name for name in node.output if name)
                self.nodes.append(node)
                continue
            node = self._with_known_target(node)
            self._defined.update(name for name in node.output if name)
            if not self._fold(node):
                self.nodes.append(node)

    def body(self, node: NodeProto, graph: GraphProto, inputs: Mapping[str, TypeProto]) -> Folder:
        """A walk, done, over the body `graph` of `node`, whose inputs have these types.

        Large constants of the body become this graph's: bodies are copied, they need not be.
        """
        names = {}
        for tensor in graph.initializer:
            if prod(tensor.dims) > _MAX_SHAPE_ELEMENTS:
                names[tensor.name] = name = f"{node.name}/{tensor.name}"
                if name not in self.constants:
                    self.set_constant(name, tensor)
        copy = ModelProto(opset_import=self.model.proto.opset_import)
        copy.graph.node.extend(graph.node)
        rename_nodes(copy.graph.node, names)
        for value in graph.output:
            name = names.get(value.name, value.name)
            copy.graph.output.append(ValueInfoProto(name=name, type=value.type))
        for name, kind in inputs.items():
            copy.graph.input.append(ValueInfoProto(name=name, type=kind))
        weights = {t.name: t for t in graph.initializer if t.name not in names}
        inner = Folder(OnnxModel(copy, self.model.base_dir), weights, self)
        inner.run()
        return inner

    def graph(self) -> GraphProto:
        """The folded graph of a body: with the types of its values, without outer constants."""
        given = self.model.proto.graph
        outputs = [value.name for value in given.output]
        nodes = live_nodes(self.nodes, outputs)
        result = GraphProto(name=given.name or "body", node=nodes, input=given.input)
        for value in given.output:
            kind = self.types.get(value.name, value.type)
            result.output.append(ValueInfoProto(name=value.name, type=kind))
        for name in sorted(used_names(nodes, outputs)):
            tensor = self.constants.get(name)
            if tensor is not None and self._outer.get(name) is not tensor:
                own = result.initializer.add()
                own.CopyFrom(tensor)
                own.name = name
        for node in nodes:
            for name in node.output:
                if name and name in self.types and name not in outputs:
                    result.value_info.append(ValueInfoProto(name=name, type=self.types[name]))
        return result

    def set_type(self, name: str, kind: TypeProto) -> None:
        """Note the type of a value that control flow computes."""
        self.types[name] = _refined(kind, self._declared.get(name))

    def _with_known_target(self, node: NodeProto) -> NodeProto:
        """CastLike as Cast, so that it folds when only the type of its second input is known."""
        if node.op_type != "CastLike" or not is_standard(node):
            return node
        target = self.types.get(node.input[1])
        if target is None or not target.tensor_type.elem_type:
            return node
        cast = NodeProto(op_type="Cast", name=node.name, input=[node.input[0]], output=node.output)
        cast.attribute.add(name="to", type=AttributeProto.INT, i=target.tensor_type.elem_type)
        cast.attribute.extend(node.attribute)
        return cast

    def _note_small(self, name: str) -> None:
        tensor = self.constants[name]
        if prod(tensor.dims) <= _MAX_SHAPE_ELEMENTS and tensor.data_type != TensorProto.STRING:
            if tensor.data_location == TensorProto.EXTERNAL:
                tensor = numpy_helper.from_array(self.model.array(tensor), name)
            self._small[name] = tensor

    def set_constant(self, name: str, tensor: TensorProto) -> None:
        """Make `name` a constant; the tensor's own name does not matter."""
        self.constants[name] = tensor
        self.types[name] = tensor_type(tensor)
        self._note_small(name)

    def _fold(self, node: NodeProto) -> bool:
        """Replace `node` by constants if possible; else infer the types of its outputs."""
        values = self._known_values(node)
        if values is None:
            constant = self._all_constant(node) and foldable(node)
            try:
                inferred = infer_node(node, self.types, self._small, self.opsets)
            except ModelError:
                # Inference is stricter than runtimes are: a node that can be computed is right.
                if not constant:
                    raise
                inferred = {}
            for name, kind in inferred.items():
                self.types[name] = _refined(kind, self._declared.get(name))
            if not constant:
                return False
            shapes = [static_shape(self.types.get(name)) for name in node.output if name]
            size = sum(prod(self.constants[name].dims) for name in node.input if name)
            if not worth_folding(shapes, size):
                return False
            inputs = {n: self.model.array(self.constants[n]) for n in node.input if n}
            values = evaluate(node, inputs, self.opsets)
            if values is None:
                return False
        for name, array in values.items():
            self.set_constant(name, numpy_helper.from_array(np.asarray(array, order="C"), name))
        return True

    def _all_constant(self, node: NodeProto) -> bool:
        return all(name in self.constants for name in node.input if name)

    def _known_values(self, node: NodeProto) -> dict[str, Array] | None:
        """Outputs that follow without evaluating the inputs: constants, shapes, sizes."""
        if not is_standard(node) or not node.output:
            return None
        output = node.output[0]
        if node.op_type == "Constant":
            return {output: _constant_value(node, self.model)}
        if node.op_type in ("Shape", "Size") and node.input:
            shape = static_shape(self.types.get(node.input[0]))
            if shape is None:
                return None
            if node.op_type == "Size":
                return {output: np.array(prod(shape), np.int64)}
            bounds = {a.name: a.i for a in node.attribute}
            part = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
            return {output: np.array(part, np.int64)}
        return None

    def _taken_branch(self, node: NodeProto) -> GraphProto | None:
        if node.op_type != "If" or not is_standard(node):
            return None
        condition = self.constants.get(node.input[0])
        if condition is None:
            return None
        value = self.model.array(condition)
        if value.size != 1:
            reason = f"The condition of If has {value.size} elements; it must have one."
            raise ModelError("prepare", reason, node=node.name)
        taken = "then_branch" if bool(value.reshape(())) else "else_branch"
        for attribute in node.attribute:
            if attribute.name == taken:
                return attribute.g
        raise ModelError("prepare", f"If has no {taken}.", node=node.name)

    def _splice(self, node: NodeProto, branch: GraphProto) -> list[NodeProto]:
        """Nodes of a taken branch, its local names made unique, then Identities to If's outputs."""
        body = GraphProto()
        body.CopyFrom(branch)
        local = produced(body.node) | {tensor.name for tensor in body.initializer}
        names = {name: f"{node.name}/{name}" for name in sorted(local & self._defined)}
        rename_nodes(body.node, names)
        for tensor in body.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
            self._defined.add(tensor.name)
            self.set_constant(tensor.name, tensor)
        nodes = list(body.node)
        for source, target in zip(body.output, node.output, strict=False):
            if target:
                value = names.get(source.name, source.name)
                name = f"{node.name}/{target}"
                nodes.append(
                    NodeProto(op_type="Identity", input=[value], output=[target], name=name)
                )
        return nodes


def _refined(kind: TypeProto, declared: TypeProto | None) -> TypeProto:
    """`kind`, with the element type of a graph output that inference could not find."""
    if declared is not None and kind.WhichOneof("value") is None:
        return declared
    if (
        declared is not None
        and kind.WhichOneof("value") == "tensor_type"
        and not kind.tensor_type.elem_type
    ):
        refined = TypeProto()
        refined.CopyFrom(kind)
        refined.tensor_type.elem_type = declared.tensor_type.elem_type
        return refined
    return kind


def _constant_value(node: NodeProto, model: OnnxModel) -> Array:
    for attribute in node.attribute:
        if attribute.name == "value":
            return model.array(attribute.t)
        if attribute.name == "value_float":
            return np.array(attribute.f, np.float32)
        if attribute.name == "value_floats":
            return np.array(list(attribute.floats), np.float32)
        if attribute.name == "value_int":
            return np.array(attribute.i, np.int64)
        if attribute.name == "value_ints":
            return np.array(list(attribute.ints), np.int64)
        if attribute.name == "value_string":
            return np.array(attribute.s, object)
        if attribute.name == "value_strings":
            return np.array(list(attribute.strings), object)
        if attribute.name == "sparse_value":
            return sparse_array(attribute.sparse_tensor, model)
    names = ", ".join(a.name for a in node.attribute) or "no value"
    raise ModelError("prepare", f"Constant with {names} is not supported.", node=node.name)


def sparse_array(sparse: object, model: OnnxModel) -> Array:
    """A sparse tensor (COO, linear or coordinate indices) as a dense array."""
    values = model.array(sparse.values)  # type: ignore[attr-defined]
    indices = model.array(sparse.indices)  # type: ignore[attr-defined]
    dense = np.zeros(tuple(sparse.dims), values.dtype)  # type: ignore[attr-defined]
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def live_nodes(nodes: list[NodeProto], outputs: list[str]) -> list[NodeProto]:
    """The nodes that an output depends on, in order."""
    needed = set(outputs)
    live = []
    for node in reversed(nodes):
        if not any(name in needed for name in node.output if name):
            continue
        live.append(node)
        needed.update(name for name in node.input if name)
        needed |= captured_names(node)
    return live[::-1]


def used_names(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> set[str]:
    """What nodes and their bodies read, and the outputs."""
    used = set(outputs)
    for node in nodes:
        used.update(node.input)
        used |= captured_names(node)
    return used
