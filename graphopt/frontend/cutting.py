"""Cuts one graph: what can be compiled together, then what steps can do, and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod

from onnx import GraphProto, NodeProto, TensorProto, TypeProto, helper

from graphopt.codegen.host_program import Block, CallSegment, Step, Trim
from graphopt.errors import ModelError
from graphopt.frontend.bounded import bounded_node
from graphopt.frontend.evaluate import foldable
from graphopt.frontend.host_nodes import (
    grows,
    is_data_dependent,
    is_stepwise,
    is_view,
    step_of,
)
from graphopt.frontend.model import captured_names, is_standard
from graphopt.frontend.rowwise import Operand, row_axis
from graphopt.frontend.scope import Scope
from graphopt.frontend.segments import Rows, Segments, value_operands
from graphopt.frontend.shapes import dimensions, infer_node, static_shape

# A constant with more elements is data, not a parameter that tells how a node works.
_MAX_PARAMETERS = 64


class Stager:
    """Cuts one graph: takes what can be compiled together, then what steps can do, and again."""

    def __init__(self, parts: Segments, graph: GraphProto, scope: Scope) -> None:
        self._parts, self._scope = parts, scope
        self._steps: list[Step] = []
        self._stepwise: set[str] = set()  # ids of nodes that become steps
        self._rows: list[Rows] = []
        self._results = [value.name for value in graph.output]
        self._pending = self._materialised(self._resolved(graph.node))
        self._coming = {name for node in self._pending for name in node.output if name}

    def run(self, parameters: tuple[str, ...]) -> Block:
        """The block.

        What has known shapes comes before what has not, so that it is compiled once for all.
        """
        while self._pending:
            if not (
                self._segment(self._static)
                or self._step()
                or any(self._segment(partial(self._by_row, rows), rows) for rows in self._rows)
                or self._segment(lambda _: True)
            ):
                raise ModelError(
                    "prepare",
                    "its inputs are never computed.",
                    node=self._pending[0].name,
                    hint="The graph has a cycle, or lacks an initializer.",
                )
        results = tuple(self._scope.id(name) for name in self._results)
        return Block(parameters, tuple(self._steps), results)

    def _block(self, graph: GraphProto, scope: Scope, parameters: tuple[str, ...]) -> Block:
        return Stager(self._parts, graph, scope).run(parameters)

    # Before cutting

    def _resolved(self, nodes: Iterable[NodeProto]) -> list[NodeProto]:
        """Copies of the nodes without Identity, which only gives another name."""
        kept = []
        for node in nodes:
            if node.op_type == "Identity" and is_standard(node):
                self._scope.alias(node.output[0], node.input[0])
                continue
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [self._scope.resolve(name) for name in node.input]
            kept.append(copy)
        self._results = [self._scope.resolve(name) for name in self._results]
        return kept

    def _materialised(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """The nodes, and Identities that give out the large constants which steps read."""
        given: dict[str, NodeProto] = {}

        def readable(name: str) -> str:
            tensor = self._scope.constant(name) if name else None
            if tensor is None or self._scope.small_constant(name):
                return name
            if name not in given:
                copy = f"{name}/value"
                node = NodeProto(op_type="Identity", input=[name], output=[copy], name=copy)
                self._scope.set_type(copy, self._scope.type(name))
                given[name] = node
            return str(given[name].output[0])

        known: set[str] = set()
        for node in nodes:
            if self._settled(node, known):
                known.update(node.output)
            loose = any(
                name not in known and self._scope.constant(name) is None
                for name in value_operands(node)
            )
            if is_stepwise(node) or (is_view(node) and loose) or grows(node, self._scope):
                self._stepwise.add(node.name)
                node.input[:] = [readable(name) for name in node.input]
        self._results = [readable(name) for name in self._results]
        return [*given.values(), *nodes]

    def _settled(self, node: NodeProto, known: set[str]) -> bool:
        """Whether the node's results follow from shapes, constants and values that are `known`."""
        if node.op_type in ("Shape", "Size"):
            return True
        needs = [name for name in node.input if name]
        constant = self._scope.constant
        return foldable(node) and all(n in known or constant(n) is not None for n in needs)

    # Cutting

    def _step(self) -> bool:
        """Make steps of all nodes that are ready for it."""
        waiting = []
        for node in self._pending:
            if node.name in self._stepwise and not self._needs(node) & self._coming:
                self._steps.append(step_of(node, self._scope, self._block))
                self._coming -= set(node.output)
            else:
                waiting.append(node)
        done = len(waiting) < len(self._pending)
        self._pending = waiting
        return done

    def _needs(self, node: NodeProto) -> set[str]:
        captured = {self._scope.resolve(name) for name in captured_names(node)}
        return {name for name in node.input if name} | captured

    def _segment(self, accepts: Callable[[NodeProto], bool], rows: Rows | None = None) -> bool:
        """Make a segment of all nodes that are ready and accepted; row-wise if `rows` is given."""
        taken: list[NodeProto] = []
        waiting: list[NodeProto] = []
        made: set[str] = set()
        known: set[str] = set()
        trimmed: set[str] = set()  # available only after the segment
        for node in self._pending:
            needs = {name for name in node.input if name}
            ready = (
                node.name not in self._stepwise
                and not needs & (self._coming - made)
                and not needs & trimmed
                and all(name in known or name not in made for name in value_operands(node))
                and accepts(node)
            )
            if not ready:
                waiting.append(node)
                continue
            taken.append(node)
            made.update(name for name in node.output if name)
            if is_data_dependent(node):
                trimmed.update(name for name in node.output if name)
            elif self._settled(node, known):
                known.update(node.output)
        if not taken:
            return False
        self._pending = waiting
        self._coming -= made
        self._call(taken, rows)
        return True

    def _static(self, node: NodeProto) -> bool:
        """Whether the node can be compiled in advance, as far as its operands' types say."""
        names = [name for name in node.input if name and self._scope.constant(name) is None]
        if any(static_shape(self._scope.type(name)) is None for name in names):
            return False
        return all(self._scope.constant(name) is not None for name in value_operands(node))

    def _by_row(self, rows: Rows, node: NodeProto) -> bool:
        """Whether the node treats each of `rows` alone; its outputs then have rows too."""
        operands = []
        for name in node.input:
            tensor = self._scope.constant(name) if name else None
            kind = self._scope.type(name) if name else TypeProto()
            shape = dimensions(kind) if name else ()
            row = rows.axes.get(name)
            if row is not None and (shape is None or row >= len(shape) or shape[row] is not None):
                return False
            if row is not None and shape is not None and shape.count(None) != 1:
                return False
            small = tensor is not None and prod(tensor.dims) <= _MAX_PARAMETERS
            values = self._parts.model.array(tensor) if tensor is not None and small else None
            operands.append(Operand(kind.tensor_type.elem_type, shape, row, values))
        if all(operand.row is None for operand in operands):
            return False
        axis = row_axis(node, operands)
        if axis is None:
            return False
        rows.axes.update((name, axis) for name in node.output if name)
        return True

    def _call(self, nodes: list[NodeProto], rows: Rows | None) -> None:
        nodes, trims = self._bounded(nodes)
        made = {name for node in nodes for name in node.output if name}
        wanted = set(self._results) | {name for trim in trims for name in trim[:2]}
        for node in self._pending:
            wanted |= self._needs(node)
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        inputs = [name for name in read if name not in made and self._scope.constant(name) is None]
        outputs = [name for node in nodes for name in node.output if name in wanted]
        if outputs:
            index = self._parts.add(nodes, self._scope, inputs, outputs, rows)
            given = tuple(self._scope.id(name) for name in inputs)
            taken = tuple(self._scope.define(name) for name in outputs)
            self._steps.append(CallSegment(index, given, taken))
        for value, count, axis, output in trims:
            padded, length = self._scope.id(value), self._scope.id(count)
            self._steps.append(Trim(padded, length, axis, self._scope.define(output)))

    def _bounded(
        self, nodes: list[NodeProto]
    ) -> tuple[list[NodeProto], list[tuple[str, str, int, str]]]:
        """The nodes with operators that have bounds for data-dependent ones, and what to trim."""
        kept, trims = [], []
        for node in nodes:
            if not is_data_dependent(node):
                kept.append(node)
                continue
            shape = dimensions(self._scope.type(node.input[0]))
            padded, axes = bounded_node(node, None if shape is None else len(shape))
            count = padded.output[-1] = f"{node.name}/count"
            self._scope.set_type(count, helper.make_tensor_type_proto(TensorProto.INT64, [1]))
            opsets = self._parts.model.opsets
            made = infer_node(padded, self._types(node), self._constants(node), opsets)
            shapes = [static_shape(made.get(name)) for name in padded.output]
            limits = {s[axes[i]] for i, s in enumerate(shapes) if i in axes and s is not None}
            rows = Rows(limits.pop() if len(limits) == 1 else 0)
            self._rows.append(rows)
            for i, axis in axes.items():
                name = node.output[i] if i < len(node.output) else ""
                if name:
                    padded.output[i] = f"{name}/padded"
                    self._scope.set_type(padded.output[i], self._scope.type(name))
                    trims.append((str(padded.output[i]), count, axis, str(name)))
                    rows.axes[name] = axis
            kept.append(padded)
        return kept, trims

    def _types(self, node: NodeProto) -> dict[str, TypeProto]:
        return {name: self._scope.type(name) for name in node.input if name}

    def _constants(self, node: NodeProto) -> dict[str, TensorProto]:
        found = {name: self._scope.constant(name) for name in node.input if name}
        return {
            name: tensor
            for name, tensor in found.items()
            if tensor is not None and prod(tensor.dims) <= _MAX_PARAMETERS
        }
