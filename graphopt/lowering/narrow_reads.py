"""Numbers that are kept as bytes are read as bytes: what groups compute again for themselves.

A dequantization, or a cast of bytes, costs one or two instructions where its result is used, and
four times the traffic where it is a tensor of its own. So it is a part of every group that reads
it; only kernels that cannot compute it get a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphopt.lowering.dataflow import Anchor, Dataflow, Operation, Pointwise

WIDENING = frozenset({"reduce", "avg_pool2d", "resize2d", "layer_norm", "rms_norm"})
"""Kinds whose kernels read bytes as numbers of the type they compute in."""

Cheap = Mapping[int, int]
"""Values that groups compute for themselves, and the operations that make them."""


def recomputed(dataflow: Dataflow) -> Cheap:
    """The values that each group which reads them computes for itself."""
    return {
        operation.outputs[0]: index
        for index, operation in enumerate(dataflow.operations)
        if _is_cheap(dataflow, operation)
    }


def _is_cheap(dataflow: Dataflow, operation: Operation) -> bool:
    action = operation.action
    if isinstance(action, Pointwise) and action.op == "dequantize":
        return True
    return _widens(dataflow, operation)


def _widens(dataflow: Dataflow, operation: Operation) -> bool:
    """Whether an operation is a cast of bytes."""
    action = operation.action
    cast = isinstance(action, Pointwise) and action.op == "cast"
    return cast and dataflow.values[operation.inputs[0]].dtype in ("int8", "uint8")


def left_to_readers(dataflow: Dataflow, users: Mapping[int, Sequence[int]], index: int) -> bool:
    """Whether an operation at a group's end is cheap, and other groups compute it themselves."""
    operation = dataflow.operations[index]
    return _is_cheap(dataflow, operation) and any(
        isinstance(dataflow.operations[user].action, Pointwise)
        or (_reads_bytes(dataflow.operations[user]) and _widens(dataflow, operation))
        for user in users.get(operation.outputs[0], ())
    )


def _reads_bytes(operation: Operation) -> bool:
    return isinstance(operation.action, Anchor) and operation.action.kind in WIDENING


def with_operands(dataflow: Dataflow, members: Sequence[int], cheap: Cheap) -> list[int]:
    """The members of a group with the cheap operations that make what its pointwise ones read."""
    first, found = members[0], set(members)
    pointwise = isinstance(dataflow.operations[first].action, Pointwise)
    pending = [m for m in members if pointwise or m != first]
    while pending:
        for value in dataflow.operations[pending.pop()].inputs:
            if value in cheap and cheap[value] not in found:
                found.add(cheap[value])
                pending.append(cheap[value])
    return sorted(found) if pointwise else [first, *sorted(found - {first})]


def narrow_inputs(dataflow: Dataflow, anchor: Operation, cheap: Cheap) -> tuple[int, ...]:
    """The inputs of an anchor, the first as bytes where its kernel reads them as numbers."""
    if _reads_bytes(anchor) and anchor.inputs[0] in cheap:
        source = dataflow.operations[cheap[anchor.inputs[0]]]
        if _widens(dataflow, source):
            return source.inputs + anchor.inputs[1:]
    return anchor.inputs
