"""Fusion: groups of operations that become one kernel each, and the views between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphopt.lowering.dataflow import Anchor, Dataflow, Legalised, Operation, Pointwise, View
from graphopt.lowering.narrow_reads import (
    Cheap,
    left_to_readers,
    narrow_inputs,
    recomputed,
    with_operands,
)
from graphopt.lowering.orient import orient
from schedules.interface import Attr, Epilogue, Op, Step, TensorSig, Workload
from schedules.registry import UNFUSED
from schedules.scalar_repetition import repetitions

MAX_STEPS = 24
"""A longer chain of scalar operations gains nothing and costs compile time."""
MAX_OPERANDS = 8
"""More streams than this defeat the hardware's prefetchers."""
MAX_REPETITION = 2500
"""Repeating a value more often costs compile time beyond all proportion. Softplus comes to 2250."""


@dataclass(frozen=True)
class Group:
    """One future kernel. `inputs` are value ids in the order of workload.inputs.

    `function` is the PrimFunc of an operator that only TVM defines, else None.
    """

    workload: Workload
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    nodes: tuple[str, ...]
    function: Any = None


@dataclass(frozen=True)
class Alias:
    """`result` is the memory of `source` under another shape, both row-major."""

    source: int
    result: int


def form_groups(dataflow: Dataflow) -> tuple[Group | Alias, ...]:
    """Partition the dataflow, in an order in which every input comes before its use."""
    users = dataflow.users()
    kept = {value for _, value in dataflow.outputs}
    cheap = recomputed(dataflow)
    taken: set[int] = set()
    found: list[tuple[int, Group | Alias]] = []
    for index, operation in enumerate(dataflow.operations):
        if index in taken or operation.outputs[0] in cheap:
            continue
        if isinstance(operation.action, View):
            found.append((index, Alias(operation.inputs[0], operation.outputs[0])))
            continue
        members = [index]
        if _takes_epilogue(operation):
            members = _absorb(dataflow, users, kept, taken, index)
            while len(members) > 1 and left_to_readers(dataflow, users, members[-1]):
                members.pop()
        taken.update(members)
        members = with_operands(dataflow, members, cheap)
        found.append((members[-1], _make_group(dataflow, members, cheap)))
    read = {value for _, entry in found for value in _reads(entry)} | kept
    for value, index in cheap.items():
        if value in read and index not in taken:
            members = with_operands(dataflow, [index], cheap)
            found.append((index, _make_group(dataflow, members, cheap)))
    # A group may read what is computed between its first and its last member, never later.
    return tuple(entry for _, entry in sorted(found, key=lambda pair: pair[0]))


def _reads(entry: Group | Alias) -> tuple[int, ...]:
    return entry.inputs if isinstance(entry, Group) else (entry.source,)


def _takes_epilogue(operation: Operation) -> bool:
    action = operation.action
    if isinstance(action, Legalised) or len(operation.outputs) > 1:
        return False
    return not (isinstance(action, Anchor) and action.kind in UNFUSED)


def _absorb(
    dataflow: Dataflow, users: dict[int, list[int]], kept: set[int], taken: set[int], start: int
) -> list[int]:
    """The members of the group that begins at `start`: it and the pointwise code behind it."""
    members = [start]
    while True:
        value = dataflow.operations[members[-1]].outputs[0]
        region = _pointwise_region(dataflow, users, kept, value)
        if not region or taken.intersection(region):
            return members
        operations = [dataflow.operations[m] for m in members + region]
        if sum(map(_weight, operations)) > MAX_STEPS and not _only_rounds(dataflow, region):
            return members
        if _operands(dataflow, members + region) > MAX_OPERANDS:
            return members
        if _repetition(dataflow, members + region) > MAX_REPETITION:
            return members
        members += region


def _weight(operation: Operation) -> int:
    """How many steps an operation counts for: a rounding is several."""
    return 6 if _rounds(operation) else 1


def _only_rounds(dataflow: Dataflow, region: list[int]) -> bool:
    """Whether it is one rounding: a good end for any kernel: a quarter of the bytes is left."""
    return len(region) == 1 and _rounds(dataflow.operations[region[0]])


def _rounds(operation: Operation) -> bool:
    action = operation.action
    return isinstance(action, Pointwise) and action.op in ("quantize", "requantize")


def _pointwise_region(
    dataflow: Dataflow, users: dict[int, list[int]], kept: set[int], value: int
) -> list[int]:
    """The smallest set of pointwise operations through which all uses of `value` pass.

    Its last operation is the only one whose result is used outside: the post-dominator of `value`.
    Empty where there is none, or where a shape differs.
    """
    shape = dataflow.values[value].shape
    region: list[int] = []
    open_values = [value]
    while len(region) < MAX_STEPS:
        if any(v in kept for v in open_values):
            return []
        waiting = sorted({u for v in open_values for u in users.get(v, ())} - set(region))
        if not waiting:
            return []
        operation = dataflow.operations[waiting[0]]
        if not isinstance(operation.action, Pointwise):
            return []
        if dataflow.values[operation.outputs[0]].shape != shape:
            return []
        region.append(waiting[0])
        open_values = [v for v in open_values if any(u not in region for u in users.get(v, ()))] + [
            operation.outputs[0]
        ]
        if len(open_values) == 1:
            return region
    return []


def _operands(dataflow: Dataflow, members: list[int]) -> int:
    """How many tensors the epilogue reads; numbers are a part of the code."""
    made = {v for m in members for v in dataflow.operations[m].outputs}
    read = {v for m in members[1:] for v in dataflow.operations[m].inputs}
    return sum(dataflow.values[v].elements > 1 for v in read - made)


def _repetition(dataflow: Dataflow, members: list[int]) -> int:
    """How often the group's expression repeats a value, were its variables written out."""
    found: dict[int, int] = {}
    for operation in (dataflow.operations[m] for m in members):
        action = operation.action
        if isinstance(action, Pointwise) and operation.inputs:
            step = Step(action.op, tuple(range(len(operation.inputs))), action.attrs)
            dtypes = tuple(dataflow.values[v].dtype for v in operation.inputs)
            counts = zip(operation.inputs, repetitions(step, dtypes), strict=True)
            # Being looked at once more for itself makes the chain, not one step, what costs.
            found[operation.outputs[0]] = max(
                found.get(v, 1) * (count + 1 if count > 1 else 1) for v, count in counts
            )
    return max(found.values(), default=1)


def _make_group(dataflow: Dataflow, members: list[int], cheap: Cheap) -> Group:
    operations = [dataflow.operations[m] for m in members]
    first, action = operations[0], operations[0].action
    nodes = tuple(dict.fromkeys(node for operation in operations for node in operation.nodes))
    if isinstance(action, Pointwise):
        return _pointwise_group(dataflow, operations, nodes)
    output = dataflow.values[first.outputs[0]]
    kind, function = "legalised", None
    attrs: tuple[tuple[str, Attr], ...] = ()
    if isinstance(action, Anchor):
        kind, attrs = action.kind, action.attrs
    elif isinstance(action, Legalised):
        attrs, function = (("digest", action.digest), ("name", action.name)), action.function
    inputs = narrow_inputs(dataflow, first, cheap)
    op = Op(
        kind,
        tuple(dataflow.values[v] for v in inputs),
        output,
        attrs,
        tuple(v in dataflow.constants for v in inputs),
        tuple(dataflow.values[v] for v in first.outputs[1:]),
    )
    epilogue, operands = _epilogue(dataflow, operations[1:], first.outputs[0], output)
    outputs = operations[-1].outputs
    return Group(orient(Workload(op, epilogue)), inputs + operands, outputs, nodes, function)


def _pointwise_group(
    dataflow: Dataflow, operations: list[Operation], nodes: tuple[str, ...]
) -> Group:
    output = dataflow.values[operations[-1].outputs[0]]
    epilogue, operands = _epilogue(dataflow, operations, None, output)
    workload = Workload(Op("elementwise", (), output), epilogue)
    return Group(workload, operands, operations[-1].outputs, nodes)


def _epilogue(
    dataflow: Dataflow, operations: list[Operation], anchor: int | None, output: TensorSig
) -> tuple[Epilogue, tuple[int, ...]]:
    """The scalar program of `operations` and the values that are its operands."""
    made = {operation.outputs[0] for operation in operations} | {anchor}
    read = dict.fromkeys(v for operation in operations for v in operation.inputs if v not in made)
    scalars = [v for v in read if v in dataflow.constants and dataflow.values[v].elements == 1]
    operands = tuple(v for v in read if v not in scalars)
    slots: dict[int | None, int] = {anchor: 0}
    slots.update({value: 1 + i for i, value in enumerate(operands)})
    steps: list[Step] = []

    def append(step: Step) -> int:
        steps.append(step)
        return len(operands) + len(steps)

    for value in scalars:
        dtype = dataflow.values[value].dtype
        item = dataflow.constants[value].reshape(()).item()
        slots[value] = append(Step("constant", (), (("dtype", dtype), ("value", item))))
    for operation in operations:
        action = operation.action
        assert isinstance(action, Pointwise)
        args = tuple(slots[v] for v in operation.inputs)
        if action.op == "identity":
            slots[operation.outputs[0]] = args[0]
            continue
        slots[operation.outputs[0]] = append(Step(action.op, args, action.attrs))
    rank = len(output.shape)
    dtype = dataflow.values[operations[-1].outputs[0]].dtype if operations else output.dtype
    return (
        Epilogue(
            tuple(_to_rank(dataflow.values[v], rank) for v in operands),
            tuple(steps),
            dtype,
            tuple(v in dataflow.constants for v in operands),
        ),
        operands,
    )


def _to_rank(sig: TensorSig, rank: int) -> TensorSig:
    """`sig` with leading dimensions of 1, as broadcasting reads it."""
    return TensorSig((1,) * (rank - len(sig.shape)) + sig.shape, sig.dtype)
