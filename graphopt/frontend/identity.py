"""Gives every node a unique id, before anything is transformed, and keeps it in the node's name."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto

from graphopt.frontend.model import subgraphs


def assign_ids(proto: ModelProto) -> None:
    """Set every node's name to its id, in place: the ONNX name, else `OpType#index`.

    The index counts all nodes of the model in order, those of subgraphs after their owner, so that
    an id does not depend on how far the model was optimised. A name used twice gets its index too.
    Nodes of local functions are numbered per function; a call prefixes them with its own id.
    """
    _assign(proto.graph.node, set(), 0)
    for function in proto.functions:
        _assign(function.node, set(), 0)


def _assign(nodes: Any, used: set[str], index: int) -> int:
    for node in nodes:
        name = node.name
        if not name or name in used:
            name = f"{node.name or node.op_type}#{index}"
        while name in used:
            name += "'"
        used.add(name)
        node.name = name
        index += 1
        for graph in subgraphs(node):
            index = _assign(graph.node, used, index)
    return index
