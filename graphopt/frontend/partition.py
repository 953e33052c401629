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

__all__ = ["Segment", "Staged", "needs_host", "partition"]


@dataclass(frozen=True, eq=False)
class Staged:
    """A model as a host program with its segments, in the order of `program.segments`."""

    program: HostProgram
    segments: tuple[Segment, ...]


def needs_host(model: OnnxModel) -> bool:
    """Whether a prepared model holds anything that one straight-line program cannot do."""
    graph = model.proto.graph
    if any(
        value.type.WhichOneof("value") in ("sequence_type", "optional_type")
        for value in (*graph.input, *graph.output)
    ):
        return True
    constants = {tensor.name for tensor in graph.initializer}
    return any(
        is_stepwise(node)
        or is_data_dependent(node)
        or any(name not in constants for name in value_operands(node))
        for node in graph.node
    )


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
