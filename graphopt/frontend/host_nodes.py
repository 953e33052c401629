"""Which nodes are steps of a host program, and the steps that they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnx import GraphProto, NodeProto, helper

from graphopt.codegen.host_program import Block, Branch, HostCall, Loop, Scan, Step
from graphopt.codegen.plan import TensorSpec
from graphopt.errors import ModelError
from graphopt.frontend.bounded import BOUNDED
from graphopt.frontend.control_flow import (
    batched,
    body_of,
    carried_count,
    is_control_flow,
    scan_axes,
)
from graphopt.frontend.model import LISTS, is_standard
from graphopt.frontend.scope import Scope, spec_of
from graphopt.frontend.shapes import dimensions, static_shape

VIEWS = frozenset(("Expand", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"))
"""Operators that only re-read memory, so that values computed at run time need no compilation."""

_ATTRIBUTES = ("axis", "keepdims", "new_axis", "allowzero", "num_outputs")

BlockMaker = Callable[[GraphProto, Scope, "tuple[str, ...]"], Block]


def is_stepwise(node: NodeProto) -> bool:
    """Whether the node is always a step: control flow, or an operator on lists."""
    return is_control_flow(node) or (is_standard(node) and node.op_type in LISTS)


def is_data_dependent(node: NodeProto) -> bool:
    """Whether the shape of the node's result depends on data."""
    return is_standard(node) and node.op_type in BOUNDED


def is_view(node: NodeProto) -> bool:
    """Whether the node can be a step when its parameters are computed at run time."""
    return is_standard(node) and node.op_type in VIEWS


def grows(node: NodeProto, scope: Scope) -> bool:
    """Whether a Concat in a loop joins values whose size changes: compiling each size would pay
    only if the sizes came again."""
    return (
        scope.in_loop
        and is_standard(node)
        and node.op_type == "Concat"
        and any(static_shape(scope.type(name)) is None for name in node.input)
    )


def step_of(node: NodeProto, scope: Scope, block: BlockMaker) -> Step:
    """The step that does `node`, whose inputs steps can read.

    Raises:
        ModelError: the node's attributes are wrong.
    """
    inputs = tuple(scope.id(name) for name in node.input)
    if node.op_type == "If":
        then, otherwise = (
            _body(node, body_of(node, name), scope, block, scope.in_loop)
            for name in ("then_branch", "else_branch")
        )
        return Branch(node.name, inputs[0], then, otherwise, _outputs(node, scope))
    if node.op_type == "Loop":
        return _loop(node, inputs, scope, block)
    if node.op_type == "Scan":
        return _scan(node, inputs, scope, block)
    attributes: dict[str, Any] = {
        a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in _ATTRIBUTES
    }
    return HostCall(
        node.name,
        node.op_type,
        inputs,
        _outputs(node, scope),
        tuple(sorted((name, int(value)) for name, value in attributes.items())),
    )


def _outputs(node: NodeProto, scope: Scope) -> tuple[str, ...]:
    return tuple(scope.define(name) for name in node.output)


def _body(
    node: NodeProto, graph: GraphProto, scope: Scope, block: BlockMaker, in_loop: bool
) -> Block:
    inner = scope.inside(graph, in_loop)
    parameters = tuple(inner.define(value.name) for value in graph.input)
    return block(graph, inner, parameters)


def _loop(node: NodeProto, inputs: tuple[str, ...], scope: Scope, block: BlockMaker) -> Loop:
    graph = body_of(node)
    count = carried_count(node)
    ranks = tuple(len(dimensions(value.type) or ()) for value in graph.input[:2])
    return Loop(
        node=node.name,
        trips=inputs[0],
        condition=inputs[1],
        initial=inputs[2:],
        body=_body(node, graph, scope, block, in_loop=True),
        ranks=(ranks[0], ranks[1]),
        stacked=_elements(graph, 1 + count),
        outputs=_outputs(node, scope),
    )


def _scan(node: NodeProto, inputs: tuple[str, ...], scope: Scope, block: BlockMaker) -> Scan:
    graph = body_of(node)
    is_batched = batched(node)
    lengths, inputs = (inputs[0], inputs[1:]) if is_batched else ("", inputs)
    count = carried_count(node)
    cut, made = len(inputs) - count, len(graph.output) - count
    # Operator set 8 calls the directions of its inputs "directions".
    direction = "directions" if is_batched else "scan_input_directions"
    return Scan(
        node=node.name,
        batched=is_batched,
        lengths=lengths,
        initial=inputs[:count],
        scanned=inputs[count:],
        axes=tuple(_axes(node, "scan_input_axes", cut)),
        backward=tuple(bool(v) for v in _axes(node, direction, cut)),
        body=_body(node, graph, scope, block, in_loop=True),
        stack_axes=tuple(_axes(node, "scan_output_axes", made)),
        stack_backward=tuple(bool(v) for v in _axes(node, "scan_output_directions", made)),
        stacked=_elements(graph, count),
        outputs=_outputs(node, scope),
    )


def _axes(node: NodeProto, name: str, count: int) -> Sequence[int]:
    found = scan_axes(node, name, count)
    if len(found) != count:
        raise ModelError(
            "prepare", f"{name} has {len(found)} elements instead of {count}.", node=node.name
        )
    return found


def _elements(graph: GraphProto, first: int) -> tuple[TensorSpec, ...]:
    """What the stacked outputs are made of; 0 where a dimension is unknown."""
    specs = [spec_of(value.name, value.type) for value in graph.output[first:]]
    return tuple(TensorSpec(s.name, s.dtype, tuple(d or 0 for d in s.shape)) for s in specs)
