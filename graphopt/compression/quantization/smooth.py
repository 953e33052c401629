"""SmoothQuant: large channels of activations hand a part of their range to the weights.

G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", ICML 2023. x·W = (x·S⁻¹)·(S·W) with S = max|x|^α / max|W|^(1−α) per channel. The division
is folded into the normalisation that makes x, or stands as a factor in front of the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from graphopt.compression.quantization.graph import Graph, fresh, is_op
from graphopt.compression.quantization.groups import Group
from graphopt.compression.quantization.statistics import Statistics
from graphopt.frontend.model import Array, OnnxModel


@dataclass(frozen=True)
class Smoothed:
    """The model; how many tensors were smoothed without and with a factor of their own."""

    model: OnnxModel
    folded: int
    factors: int


def smoothed(
    model: OnnxModel, groups: Sequence[Group], statistics: Statistics, strength: float
) -> Smoothed:
    """A canonical model that computes the same with smoother inputs of matrix products.

    Args:
        groups: the products that are to be integer.
        strength: α from 0 (the weights keep their ranges) to 1 (all goes to the weights).
    """
    work = _Work(Graph(model))
    by_input: dict[str, list[Group]] = {}
    for group in groups:
        if group.kind == "product" and group.op in ("MatMul", "Gemm"):
            by_input.setdefault(group.inputs[0], []).append(group)
    for tensor, readers in by_input.items():
        peak = statistics.of(tensor).peak
        if peak is not None and work.can_scale(readers):
            work.smooth(tensor, readers, peak, strength)
    return Smoothed(work.finished(), work.folded, work.factored)


class _Work:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.folded = self.factored = 0
        self.constants: dict[str, TensorProto] = dict(graph.constants)
        self._nodes = {node.name: node for node in graph.nodes}
        self._behind: dict[str, NodeProto] = {}
        self._taken = {*graph.index, *graph.types, *graph.producers, *graph.constants}

    def can_scale(self, readers: Sequence[Group]) -> bool:
        """Whether the weights of products are matrices that belong to these alone."""
        names = {group.weight for group in readers if group.weight is not None}
        if any(len(self.graph.constants[name].dims) != 2 for name in names):
            return False
        mine = {group.name for group in readers}
        return all({node.name for node in self.graph.readers(name)} <= mine for name in names)

    def smooth(self, tensor: str, readers: Sequence[Group], peak: Array, strength: float) -> None:
        """Scale one tensor and the weights of all products that read it."""
        rows = {group.weight: self._rows(group) for group in readers if group.weight is not None}
        largest = np.max([np.abs(matrix).max(axis=1) for matrix in rows.values()], axis=0)
        alive = (peak > 0) & (largest > 0)
        safe_peak, safe_largest = np.where(alive, peak, 1.0), np.where(alive, largest, 1.0)
        factors = np.where(alive, safe_peak**strength / safe_largest ** (1 - strength), 1.0)
        # A factor common to all channels changes nothing: keep the weights' size.
        factors = factors / np.exp(np.mean(np.log(factors)))
        for group in {group.weight: group for group in readers}.values():
            assert group.weight is not None
            scaled = rows[group.weight] * factors[:, None]
            self._set(group.weight, scaled if group.depth == 0 else scaled.T)
        if self._fold(tensor, readers, factors):
            self.folded += 1
        else:
            self._insert(tensor, readers, factors)
            self.factored += 1

    def finished(self) -> OnnxModel:
        """The smoothed model."""
        nodes = []
        for tensor in self.graph.inputs:
            if tensor in self._behind:
                nodes.append(self._behind[tensor])
        for node in self.graph.nodes:
            nodes.append(self._nodes[node.name])
            nodes += [self._behind[name] for name in node.output if name in self._behind]
        return self.graph.rebuilt(nodes, self.constants)

    def _rows(self, group: Group) -> Array:
        """Weights with the channels of the input as rows."""
        assert group.weight is not None
        weight = self.graph.array(group.weight).astype(np.float64)
        return weight if group.depth == 0 else weight.T

    def _set(self, name: str, array: Array) -> None:
        data = np.ascontiguousarray(array.astype(np.float32))
        self.constants[name] = numpy_helper.from_array(data, name)

    def _fold(self, tensor: str, readers: Sequence[Group], factors: Array) -> bool:
        """Divide what makes the tensor, if nothing else reads it and its parameters allow."""
        mine = {group.name for group in readers}
        others = {node.name for node in self.graph.readers(tensor)} - mine
        if others or tensor in self.graph.outputs or tensor not in self.graph.producers:
            return False
        names = self._parameters(self.graph.producers[tensor], len(factors))
        if names is None or any(len(self.graph.readers(name)) > 1 for name in names):
            return False
        for name in names:
            array = numpy_helper.to_array(self.constants[name]).astype(np.float64)
            self._set(name, array / factors)
        return True

    def _parameters(self, node: NodeProto, channels: int) -> list[str] | None:
        """Constants that a division of a node's result goes into: gain and shift."""
        graph = self.graph
        if is_op(node, "LayerNormalization", "RMSNormalization"):
            names = [name for name in node.input[1:3] if name]
        elif is_op(node, "Add"):
            shift = [name for name in node.input if name in graph.constants]
            inner = [name for name in node.input if name not in graph.constants]
            if len(shift) != 1 or not graph.is_private(inner[0]) or inner[0] not in graph.producers:
                return None
            before = graph.producers[inner[0]]
            gain = [name for name in before.input if name in graph.constants]
            if not is_op(before, "Mul") or len(gain) != 1:
                return None
            names = gain + shift
        else:
            return None
        sizes = {tuple(graph.constants[n].dims) if n in graph.constants else None for n in names}
        return names if sizes == {(channels,)} else None

    def _insert(self, tensor: str, readers: Sequence[Group], factors: Array) -> None:
        """A factor between the tensor and the products."""
        name = fresh(f"{tensor}_smoothing", self._taken)
        result = fresh(f"{tensor}_smoothed", self._taken)
        self._set(name, 1.0 / factors)
        node_name = fresh(f"{tensor}_smooth", self._taken)
        self._behind[tensor] = helper.make_node("Mul", [tensor, name], [result], node_name)
        for group in readers:
            copy = NodeProto()
            copy.CopyFrom(self._nodes[group.name])
            copy.input[0] = result
            self._nodes[group.name] = copy
