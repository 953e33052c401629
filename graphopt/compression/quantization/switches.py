"""A model whose layers can be quantized one by one while it runs, and what each costs alone.

Layer k computes with x + s·(x̂ − x) and W + s·(Ŵ − W), where s is element k of an input: 0 for
float, 1 for quantized. Convolutions are linear in their weights, so the weights' part is a second
convolution with Ŵ − W, scaled by s; both have constant weights. One program so answers for any
choice of layers, where one QDQ model per choice would have to be compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from graphopt.compression.quantization.graph import Graph, fresh, renamed_inputs
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.narrow import activation_constants, approximated
from graphopt.compression.quantization.plan import Plan
from graphopt.compression.quantization.running import Batches, Run
from graphopt.compression.quantization.scheme import decibels
from graphopt.frontend.model import Array, OnnxModel


@dataclass(frozen=True, eq=False)
class Switched:
    """A model with the input `switch`, float32 (layers,), and the names of the layers."""

    model: OnnxModel
    switch: str
    layers: tuple[str, ...]

    def feeds(self, inputs: Mapping[str, Array], quantized: Sequence[str]) -> dict[str, Array]:
        """Inputs with these layers quantized, the others in float."""
        chosen = set(quantized)
        values = np.array([name in chosen for name in self.layers], np.float32)
        return {**inputs, self.switch: values}


def switched(model: OnnxModel, plan: Plan) -> Switched:
    """The canonical model that a plan was made for, with a switch for each kernel that rounds.

    Data movement has no switch: it rounds what is rounded already.
    """
    work = _Work(Graph(model), plan)
    nodes: list[NodeProto] = []
    for name in work.graph.inputs:
        nodes += work.rounded(name)
    for node in work.graph.nodes:
        nodes += work.layer(node)
        for name in node.output:
            nodes += work.rounded(name)
    layers = tuple(group.name for group in work.groups)
    rebuilt = work.graph.rebuilt(nodes, work.constants)
    kind = helper.make_tensor_value_info(work.switch, TensorProto.FLOAT, [len(layers)])
    rebuilt.proto.graph.input.append(kind)
    return Switched(rebuilt, work.switch, layers)


class _Work:
    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.groups = [group for group in plan.groups if group.kind != "move"]
        self.constants: dict[str, TensorProto] = dict(graph.constants)
        self._taken = {*graph.index, *graph.types, *graph.producers, *graph.inputs}
        self.switch = fresh("quantized_layers", self._taken)
        self._place = {group.name: place for place, group in enumerate(self.groups)}
        self._heads = {group.name: group for group in self.groups}
        nodes = {node.name: node for node in graph.nodes}
        self._residuals = {
            node: group
            for group in self.groups
            for node in group.nodes
            if group.residual is not None and group.residual in nodes[node].input
        }
        self._differences: dict[str, str] = {}

    def rounded(self, tensor: str) -> list[NodeProto]:
        """Nodes for x̂ − x, if the tensor is in 8 bits."""
        plan = self.plan.activation(tensor)
        if plan is None:
            return []
        names = (self._name(f"{tensor}_scale"), self._name(f"{tensor}_zero_point"))
        for constant in activation_constants(plan.scale, plan.zero, plan.form, names):
            self.constants[constant.name] = constant
        quantized, dequantized = self._name(f"{tensor}_q"), self._name(f"{tensor}_dq")
        self._differences[tensor] = difference = self._name(f"{tensor}_noise")
        return [
            self._node("QuantizeLinear", [tensor, *names], quantized),
            self._node("DequantizeLinear", [quantized, *names], dequantized),
            self._node("Sub", [dequantized, tensor], difference),
        ]

    def layer(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that take a node's place."""
        group = self._heads.get(node.name) or self._residuals.get(node.name)
        if group is None:
            return [node]
        before, factor = self._factor(group)
        names = {}
        for tensor in group.reads:
            if tensor in node.input and tensor in self._differences:
                added, scaled = self._name(f"{tensor}_{node.name}"), self._name(f"{tensor}_part")
                before.append(self._node("Mul", [self._differences[tensor], factor], scaled))
                before.append(self._node("Add", [tensor, scaled], added))
                names[tensor] = added
        changed = renamed_inputs(node, names)
        if group.weight is None or node.name != group.name:
            return [*before, changed]
        return [*before, *self._product(changed, group, factor)]

    def _factor(self, group: Group) -> tuple[list[NodeProto], str]:
        """Nodes that give the layer's element of the switch, a scalar."""
        place = self._name(f"{group.name}_place")
        self.constants[place] = numpy_helper.from_array(
            np.array(self._place[group.name], np.int64), place
        )
        factor = self._name(f"{group.name}_switch")
        return [self._node("Gather", [self.switch, place], factor)], factor

    def _product(self, node: NodeProto, group: Group, factor: str) -> list[NodeProto]:
        plan = self.plan.weight(group.name)
        assert plan is not None
        weight = self.graph.array(plan.tensor)
        name = self._name(f"{plan.tensor}_noise")
        noise = approximated(weight, plan) - weight
        self._constant(name, noise)
        exact, second, scaled = (self._name(f"{node.output[0]}_{k}") for k in "abc")
        first, other = NodeProto(), NodeProto()
        first.CopyFrom(node)
        first.output[:] = [exact]
        other.CopyFrom(node)
        other.name = self._name(f"{node.name}_noise")
        other.input[:] = [node.input[0], name]
        other.output[:] = [second]
        correction, extra = self.plan.corrections.get(group.name), []
        if correction is not None:
            vector = self._name(f"{node.name}_correction")
            self._constant(vector, correction)
            if group.op == "MatMul":
                second, before = self._name(f"{second}_corrected"), second
                extra = [self._node("Add", [before, vector], second)]
            else:
                other.input.append(vector)
        return [
            first,
            other,
            *extra,
            self._node("Mul", [second, factor], scaled),
            self._node("Add", [exact, scaled], node.output[0]),
        ]

    def _constant(self, name: str, array: Array) -> None:
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)

    def _node(self, kind: str, inputs: Sequence[str], output: str) -> NodeProto:
        name = self._name(f"{output}_{kind}")
        return helper.make_node(kind, list(inputs), [output], name)

    def _name(self, wanted: str) -> str:
        return fresh(wanted, self._taken)


def effects(
    run: Run, switches: Switched, outputs: Sequence[str], batches: Batches
) -> dict[str, float]:
    """SQNR of the outputs, all together, with one layer quantized at a time.

    Each output counts in proportion to its own power, so that none outweighs the others by its
    unit.
    """
    noise = dict.fromkeys(switches.layers, 0.0)
    total = 0
    for inputs in batches:
        reference = run(switches.model, switches.feeds(inputs, ()), outputs)
        total += 1
        for name in switches.layers:
            found = run(switches.model, switches.feeds(inputs, (name,)), outputs)
            noise[name] += relative_noise(reference, found)
    return {name: decibels(float(total), value) for name, value in noise.items()}


def relative_noise(reference: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Mean over the outputs of noise power over signal power."""
    ratios = [_ratio(reference[name], found[name]) for name in reference]
    return float(np.mean(ratios))


def _ratio(reference: Array, found: Array) -> float:
    wide = reference.astype(np.float64)
    signal = float(np.sum(wide**2))
    noise = float(np.sum((wide - found.astype(np.float64)) ** 2))
    return noise / signal if signal else float(noise > 0)
