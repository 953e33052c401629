"""Renames values when the body of a function or branch is moved into the graph around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnx import GraphProto

from graphopt.frontend.model import subgraphs


def produced(nodes: Iterable[Any]) -> set[str]:
    """Names of the values that `nodes` compute, subgraphs not included."""
    return {name for node in nodes for name in node.output if name}


def rename_nodes(nodes: Iterable[Any], names: Mapping[str, str]) -> None:
    """Apply `names` to all inputs and outputs, in place, and to what subgraphs capture."""
    for node in nodes:
        for values in (node.input, node.output):
            for i, value in enumerate(values):
                if value in names:
                    values[i] = names[value]
        for graph in subgraphs(node):
            _rename_captured(graph, names)


def _rename_captured(graph: GraphProto, names: Mapping[str, str]) -> None:
    own = produced(graph.node)
    own.update(tensor.name for tensor in graph.initializer)
    own.update(value.name for value in graph.input)
    outer = {old: new for old, new in names.items() if old not in own}
    rename_nodes(graph.node, outer)
    for output in graph.output:
        output.name = outer.get(output.name, output.name)
