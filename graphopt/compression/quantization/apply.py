"""Plan → model: a canonical float model becomes a QDQ model that any runtime can open."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from graphopt.compression.quantization.config import QuantizationConfig
from graphopt.compression.quantization.graph import STAGE, Graph, fresh, renamed_inputs
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.integer_io import with_integer_io
from graphopt.compression.quantization.narrow import activation_constants, stored
from graphopt.compression.quantization.opset import BLOCKED, PER_CHANNEL
from graphopt.compression.quantization.plan import ActivationPlan, Plan, WeightPlan
from graphopt.compression.quantization.scheme import Array, quantize_bias
from graphopt.errors import ModelError
from graphopt.frontend.fold import live_nodes
from graphopt.frontend.model import OnnxModel


def needed_opset(config: QuantizationConfig) -> int:
    """The operator set that a quantized model needs."""
    four_bits = config.packed or (config.is_table and config.weight_bits <= 4)
    return BLOCKED if four_bits or config.granularity == "group" else PER_CHANNEL


def apply(model: OnnxModel, plan: Plan, *, integer_io: bool = True) -> OnnxModel:
    """Put a QuantizeLinear and a DequantizeLinear around each tensor in 8 bits.

    Weights become integers behind a DequantizeLinear, biases of integer kernels int32. Nodes and
    tensors keep their names; a tensor `t` in 8 bits is `t_quantized`, and `t_dequantized` is what
    its readers see. Float operators that read a tensor made by a float operator keep reading the
    float one.

    Args:
        model: the canonical model that the plan was made for, in its operator set or later.
        integer_io: follow config.io_type; otherwise inputs and outputs are float.

    Raises:
        ModelError: the plan is for another model.
    """
    work = _Work(Graph(model), plan)
    work.check()
    nodes: list[NodeProto] = []
    for name in work.graph.inputs:
        nodes += work.pair(name)
    for node in work.graph.nodes:
        before, changed, after = work.product(node)
        nodes += [*before, renamed_inputs(changed, work.renames(node)), *after]
        for name in node.output:
            nodes += work.pair(name)
    live = live_nodes(nodes, list(work.graph.outputs))
    if plan.config.io_type is None or not integer_io:
        return work.graph.rebuilt(live, work.constants)
    wanted = [name for name in work.graph.outputs if name in work.names]
    live = live_nodes(nodes, [*work.graph.outputs, *(work.names[name][0] for name in wanted)])
    applied = work.graph.rebuilt(live, work.constants)
    return with_integer_io(applied, work.names, plan.config.activation_form.dtype)


@dataclass
class _Work:
    graph: Graph
    plan: Plan
    constants: dict[str, TensorProto] = field(init=False)
    names: dict[str, tuple[str, str]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.graph
        self.constants = dict(graph.constants)
        self._taken = {*graph.index, *graph.types, *graph.producers, *graph.constants}
        self._taken |= {*graph.inputs, *graph.outputs}
        self._weights: dict[tuple[str, bytes], str] = {}
        self._activations = {each.tensor: each for each in self.plan.activations}
        self._products = {group.name: group for group in self.plan.groups if group.weight}
        made = {name for group in self.plan.groups for name in group.outputs}
        # What an integer kernel writes exists in 8 bits only: everybody reads that.
        self._common = {name for name in made if name in self._activations}
        self._own: dict[str, set[str]] = {}
        for group in self.plan.groups:
            for node in group.nodes:
                self._own.setdefault(node, set()).update(group.reads)
        for tensor in self._activations:
            pair = (fresh(f"{tensor}_quantized", self._taken), f"{tensor}_dequantized")
            self.names[tensor] = (pair[0], fresh(pair[1], self._taken))

    def check(self) -> None:
        """Raise ModelError where the plan names what the graph does not have."""
        known = {*self.graph.inputs, *self.graph.producers}
        nodes = [node for group in self.plan.groups for node in group.nodes]
        missing = [name for name in nodes if name not in self.graph.index]
        missing += [name for name in self._activations if name not in known]
        missing += [w.tensor for w in self.plan.weights if w.tensor not in self.graph.constants]
        if missing:
            raise ModelError(
                STAGE,
                f"the plan is for another model: this one has no '{missing[0]}'.",
                hint="make the plan from the same canonical model.",
            )

    def renames(self, node: NodeProto) -> dict[str, str]:
        """Which tensors a node reads in 8 bits."""
        own = self._own.get(node.name, set()) & self._activations.keys()
        return {name: self.names[name][1] for name in own | (self._common & {*node.input})}

    def pair(self, tensor: str) -> list[NodeProto]:
        """QuantizeLinear and DequantizeLinear behind a tensor, if it is in 8 bits."""
        plan = self._activations.get(tensor)
        if plan is None:
            return []
        quantized, dequantized = self.names[tensor]
        scale, zero = self._activation_constants(plan)
        return [
            helper.make_node(
                "QuantizeLinear",
                [tensor, scale, zero],
                [quantized],
                self._name(f"{tensor}_QuantizeLinear"),
            ),
            helper.make_node(
                "DequantizeLinear",
                [quantized, scale, zero],
                [dequantized],
                self._name(f"{tensor}_DequantizeLinear"),
            ),
        ]

    def product(self, node: NodeProto) -> tuple[list[NodeProto], NodeProto, list[NodeProto]]:
        """What comes before a product, the product with narrow weights, and what comes behind."""
        group, plan = self._products.get(node.name), self.plan.weight(node.name)
        if group is None or plan is None:
            return [], node, []
        copy = NodeProto()
        copy.CopyFrom(node)
        before: list[NodeProto] = []
        weight = self.graph.array(plan.tensor)
        own = b"" if plan.codes is None else plan.codes.tobytes()
        key = (plan.tensor, plan.scale.tobytes() + plan.table.tobytes() + own)
        if key not in self._weights:
            found = stored(weight, plan, self._name)
            self.constants.update({tensor.name: tensor for tensor in found.constants})
            before += found.nodes
            self._weights[key] = found.result
        copy.input[1] = self._weights[key]
        correction = self.plan.corrections.get(node.name)
        if correction is not None and group.op == "MatMul":
            return before, copy, [self._corrected(copy, correction)]
        bias = None if group.bias is None else self.graph.array(group.bias)
        if correction is not None:
            bias = correction if bias is None else bias + correction
        if bias is not None and self.plan.config.activations is not None:
            before.append(self._bias(copy, group, plan, bias))
        elif correction is not None and bias is not None:
            name = self._name(f"{node.name}_corrected_bias")
            self.constants[name] = numpy_helper.from_array(bias, name)
            copy.input[2:] = [name]
        return before, copy, []

    def _corrected(self, node: NodeProto, correction: Array) -> NodeProto:
        """The addition behind a MatMul, which has no bias of its own."""
        result, name = node.output[0], self._name(f"{node.name}_correction")
        self.constants[name] = numpy_helper.from_array(correction, name)
        node.output[0] = self._name(f"{result}_uncorrected")
        inputs = [node.output[0], name]
        return helper.make_node("Add", inputs, [result], self._name(f"{node.name}_correct"))

    def _bias(self, node: NodeProto, group: Group, plan: WeightPlan, bias: Array) -> NodeProto:
        base = group.bias or f"{group.name}_bias"
        sx = np.float32(self._activations[group.inputs[0]].scale)
        with np.errstate(over="ignore"):
            scale = np.minimum(plan.scale * sx, np.finfo(np.float32).max).astype(np.float32)
        names = [self._name(f"{base}_quantized"), self._name(f"{base}_scale")]
        for name, array in zip(names, (quantize_bias(bias, scale), scale), strict=True):
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        result = self._name(f"{base}_dequantized")
        attributes = {"axis": 0} if scale.ndim else {}
        node.input[2:] = [result]
        return helper.make_node(
            "DequantizeLinear",
            names,
            [result],
            self._name(f"{base}_DequantizeLinear"),
            **attributes,
        )

    def _activation_constants(self, plan: ActivationPlan) -> tuple[str, str]:
        names = (
            self._name(f"{plan.tensor}_scale"),
            self._name(f"{plan.tensor}_zero_point"),
        )
        for tensor in activation_constants(plan.scale, plan.zero, plan.form, names):
            self.constants[tensor.name] = tensor
        return names

    def _name(self, wanted: str) -> str:
        return fresh(wanted, self._taken)
