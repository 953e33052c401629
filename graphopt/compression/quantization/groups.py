"""Groups of nodes that may become one integer kernel each, and why the others may not."""

from __future__ import annotations

from dataclasses import replace

from onnx import NodeProto

from graphopt import integer_kernels as table
from graphopt.compression.quantization.graph import Graph, is_op
from graphopt.compression.quantization.kinds import (
    Group,
    Refusal,
    is_epilogue,
    other_group,
    product_group,
)
from graphopt.frontend.model import subgraphs

__all__ = ["Group", "Refusal", "find_groups"]

MAX_EPILOGUE = 24
"""Nodes behind a product that one kernel takes."""


def find_groups(graph: Graph) -> tuple[tuple[Group, ...], tuple[Refusal, ...]]:
    """Every group of the graph in topological order of the anchors, and every refusal."""
    finder = _Finder(graph)
    finder.products()
    finder.residuals()
    finder.others()
    order = graph.index
    groups = sorted(finder.groups.values(), key=lambda group: order[group.name])
    refusals = sorted(finder.refusals, key=lambda refusal: order[refusal.node])
    return tuple(groups), tuple(refusals)


class _Finder:
    """State of one search: groups by anchor, and the nodes that belong to one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.groups: dict[str, Group] = {}
        self.refusals: list[Refusal] = []
        self.taken: set[str] = set()

    def products(self) -> None:
        """Products with their epilogues; refusals for those that cannot be integer."""
        for node in self.graph.nodes:
            if not is_op(node, *table.PRODUCTS):
                continue
            found = product_group(self.graph, node)
            if isinstance(found, Refusal):
                self.refusals.append(found)
            else:
                self._add(self._with_epilogue(found))

    def residuals(self) -> None:
        """Additions of a tensor behind a product become part of its group.

        Where both summands are products', the later one takes the addition: the other summand is
        complete by then.
        """
        ends = {group.output: name for name, group in self.groups.items()}
        order = self.graph.index
        for node in self.graph.nodes:
            if node.name in self.taken or not is_op(node, "Add"):
                continue
            first, second = node.input
            if first == second or first in self.graph.constants or second in self.graph.constants:
                continue
            fitting = [
                (order[ends[name]], name, other)
                for name, other in ((first, second), (second, first))
                if name in ends
                and self.graph.is_private(name)
                and self.groups[ends[name]].residual is None
                and self._as_large(name, other)
            ]
            if not fitting:
                continue
            _, name, other = max(fitting)
            group = self.groups[ends.pop(name)]
            group = replace(
                group, nodes=(*group.nodes, node.name), residual=other, outputs=(node.output[0],)
            )
            group = self._with_epilogue(group)
            self._add(group)
            ends[group.output] = group.name

    def others(self) -> None:
        """Arithmetic, pointwise work and data movement; refusals for the rest."""
        for node in self.graph.nodes:
            if node.name in self.taken or is_op(node, *table.PRODUCTS):
                continue
            found = other_group(self.graph, node)
            if found is not None:
                moves = found.kind == "move"
                self._add(found if moves else self._with_epilogue(found))
            elif node.op_type in table.FLOAT:
                self.refusals.append(Refusal(node.name, node.op_type, table.FLOAT[node.op_type]))
            elif inner := _products_inside(node):
                reason = f"{inner} products in its bodies (branches or loops) stay in float"
                self.refusals.append(Refusal(node.name, node.op_type, reason))

    def _add(self, group: Group) -> None:
        self.groups[group.name] = group
        self.taken.update(group.nodes)

    def _as_large(self, mine: str, other: str) -> bool:
        """Whether adding `other` leaves the shape of `mine`, as far as is known."""
        shape, second = self.graph.shape(mine), self.graph.shape(other)
        if shape is None or second is None:
            return False
        return len(shape) >= len(second) and all(
            b in (1, a) for a, b in zip(shape[::-1], second[::-1], strict=False)
        )

    def _with_epilogue(self, group: Group) -> Group:
        """The group with the pointwise work behind it that nothing else reads into."""
        nodes, output = list(group.nodes), group.output
        while len(nodes) <= MAX_EPILOGUE:
            region = self._region(output)
            if not region:
                break
            nodes += [node.name for node in region]
            output = region[-1].output[0]
        return replace(group, nodes=tuple(nodes), outputs=(output,))

    def _region(self, value: str) -> list[NodeProto]:
        """The smallest set of pointwise nodes that all uses of `value` pass through.

        Their other operands are constants; x·sigmoid(x) is such a set, and so is GELU written
        out. Empty where there is none.
        """
        graph, region, inside = self.graph, dict[str, NodeProto](), {value}
        while len(region) <= MAX_EPILOGUE:
            if any(name in graph.outputs for name in inside):
                return []
            waiting = {
                node.name: node
                for name in inside
                for node in graph.readers(name)
                if node.name not in region
            }
            if not waiting:
                return []
            node = min(waiting.values(), key=lambda node: graph.index[node.name])
            if node.name in self.taken or not is_epilogue(graph, node, inside):
                return []
            region[node.name] = node
            inside.add(node.output[0])
            if all(
                reader.name in region
                for name in inside - {node.output[0]}
                for reader in graph.readers(name)
            ):
                return list(region.values())
        return []


def _products_inside(node: NodeProto) -> int:
    """How many products the bodies of a node have."""
    return sum(
        is_op(inner, *table.PRODUCTS) + _products_inside(inner)
        for body in subgraphs(node)
        for inner in body.node
    )
