"""Cuts a prepared model into segments, which compile like models, and the steps around them.

A segment is as many nodes as can be compiled together. It ends where control flow, a sequence or an
optional comes, where a shape depends on data, and before a node that needs a computed value at
compile time: that value becomes an input for which the next segment is specialised.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.codegen.host_program import HostProgram
from graphopt.frontend.cutting import Stager
from graphopt.frontend.host_nodes import (
    is_data_dependent,
    is_stepwise,
)
from graphopt.frontend.model import OnnxModel
from graphopt.frontend.scope import Names, Scope, spec_of
from graphopt.frontend.segments import Segment, Segments, value_operands
from graphopt.frontend.shapes import graph_inputs

__all__ = ["Segment", "Staged", "host_reasons", "needs_host", "partition"]


@dataclass(frozen=True, eq=False)
class Staged:
    """A model as a host program with its segments, in the order of `program.segments`."""

    program: HostProgram
    segments: tuple[Segment, ...]


def needs_host(model: OnnxModel) -> bool:
    """Whether a prepared model holds anything that one straight-line program cannot do."""
    return bool(host_reasons(model))


def host_reasons(model: OnnxModel) -> list[tuple[str, str]]:
    """What one straight-line program cannot do: ids of nodes, or names of inputs and outputs, each
    with the reason."""
    graph = model.proto.graph
    found = [
        (value.name, "it is a sequence or an optional")
        for value in (*graph.input, *graph.output)
        if value.type.WhichOneof("value") in ("sequence_type", "optional_type")
    ]
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        computed = [name for name in value_operands(node) if name not in constants]
        if is_stepwise(node):
            found.append((node.name, f"{node.op_type} is run step by step"))
        elif is_data_dependent(node):
            found.append((node.name, f"the shape of {node.op_type}'s result depends on data"))
        elif computed:
            found.append((node.name, f"{node.op_type} needs the value of '{computed[0]}'"))
    return found


def partition(model: OnnxModel) -> Staged:
    """Cut a prepared model whose inputs are bound.

    Raises:
        ModelError: a value's type is not known, or a node's inputs are never computed.
    """
    graph = model.proto.graph
    names = Names(model.array)
    parts = Segments(model)
    scope = Scope(graph, names)
    inputs = [value.name for value in graph_inputs(graph)]
    parameters = tuple(scope.define(name) for name in inputs)
    body = Stager(parts, graph, scope).run(parameters)
    program = HostProgram(
        inputs=tuple(spec_of(name, scope.type(name)) for name in inputs),
        outputs=tuple(spec_of(value.name, value.type) for value in graph.output),
        constants=tuple(names.constants),
        body=body,
        segments=tuple(segment.spec for segment in parts.segments),
    )
    return Staged(program, tuple(parts.segments))
