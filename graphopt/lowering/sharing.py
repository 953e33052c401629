"""Concatenations and slices that need no kernel, because one tensor can lie inside another.

The parts of a concatenation are written where they belong in its result; a slice that is one
piece of its source's memory is read there. Both are decided when every group's layout is known
and before anything is emitted: a tensor is written before the concatenation it will be part of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from graphopt.lowering.choose import alias_table, find_source
from graphopt.lowering.dataflow import Dataflow
from graphopt.lowering.groups import Alias, Group
from graphopt.lowering.memory import ALIGNMENT
from schedules.interface import PLAIN, Candidate, Layout, TensorSig, Workload

MAX_COPIES = 1
"""More copies of parts than this would be more launches than the concatenation's one."""


class Tensor(NamedTuple):
    """A value in one of the layouts and, with leading axes of 1, ranks in which it is in memory."""

    value: int
    layout: Layout
    rank: int


@dataclass(frozen=True)
class Place:
    """Where a tensor lies inside another: `offset` in bytes."""

    host: Tensor
    offset: int


@dataclass(frozen=True)
class Sharing:
    """Which tensors lie inside others, and the groups (by index) that need no kernel of their own.

    parts: tensor → its place in a concatenation's result. copies: concatenation → the positions
    of its inputs that are somewhere else and must be copied. views: slice → its place in its
    source, which is always written as a whole before.
    """

    parts: Mapping[Tensor, Place] = field(default_factory=dict)
    copies: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    views: Mapping[int, Place] = field(default_factory=dict)


def share_memory(
    dataflow: Dataflow,
    entries: Sequence[Group | Alias],
    chosen: Mapping[int, Candidate],
    claims: Mapping[int, int],
    alignment: int = ALIGNMENT,
) -> Sharing:
    """Find all tensors that can lie inside others.

    Args:
        claims: the values whose row-major tensors are the program's outputs.
        alignment: in bytes, of where a tensor may begin.
    """
    search = _Search(dataflow, entries, claims, alignment)
    for index, entry in enumerate(entries):
        if not isinstance(entry, Group) or not _moves_only(entry, chosen[index]):
            continue
        if entry.workload.op.kind == "slice":
            search.slice(index, entry, chosen[index].output)
        elif entry.workload.op.kind == "concat":
            search.concat(index, entry, chosen[index].output)
    return Sharing(search.parts, search.copies, search.views)


class _Search:
    def __init__(
        self,
        dataflow: Dataflow,
        entries: Sequence[Group | Alias],
        claims: Mapping[int, int],
        alignment: int,
    ) -> None:
        self.dataflow = dataflow
        self.alignment = alignment
        self.aliases = alias_table(entries)
        self.claims = claims
        self.made = {v for entry in entries if isinstance(entry, Group) for v in entry.outputs}
        self.parts: dict[Tensor, Place] = {}
        self.copies: dict[int, tuple[int, ...]] = {}
        self.views: dict[int, Place] = {}
        self.viewed: set[Tensor] = set()

    def slice(self, index: int, group: Group, layout: Layout) -> None:
        source, result = self.read(group.inputs[0], layout), self.own(group.outputs[0], layout)
        offset = piece_offset(group.workload, layout, self.alignment)
        if offset is not None and self.in_arena(source) and self.in_arena(result):
            self.views[index] = Place(source, offset)
            self.viewed.add(result)

    def concat(self, index: int, group: Group, layout: Layout) -> None:
        host = self.own(group.outputs[0], layout)
        offsets = part_offsets(group.workload, layout, self.alignment)
        if offsets is None or not self.in_arena(host):
            return
        parts: dict[Tensor, Place] = {}
        copies = []
        for position, (value, offset) in enumerate(zip(group.inputs, offsets, strict=True)):
            tensor = self.read(value, layout)
            taken = tensor in self.parts or tensor in parts or tensor in self.viewed
            if taken or not self.in_arena(tensor):
                copies.append(position)
            else:
                parts[tensor] = Place(host, offset)
        if parts and len(copies) <= MAX_COPIES:
            self.parts.update(parts)
            self.copies[index] = tuple(copies)

    def own(self, value: int, layout: Layout) -> Tensor:
        return Tensor(value, layout, len(self.dataflow.values[value].shape))

    def read(self, value: int, layout: Layout) -> Tensor:
        """The tensor that a reader of `value` in `layout` reads."""
        source = find_source(self.dataflow, self.aliases, value, self.own(value, layout).rank)
        # A view of another shape is a tensor of its own once it is blocked.
        own = source.viewed and layout != PLAIN
        return self.own(value if own else source.value, layout)

    def in_arena(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory is the program's own, so that it may be a part or have parts.

        Inputs and outputs are the caller's; constants are among the weights.
        """
        owner = find_source(self.dataflow, self.aliases, tensor.value, tensor.rank).value
        if owner in self.dataflow.constants:
            return False
        return tensor.layout != PLAIN or (owner in self.made and owner not in self.claims)


def _moves_only(group: Group, candidate: Candidate) -> bool:
    """Whether every element is stored as it was read, in the same layout."""
    epilogue, op = group.workload.epilogue, group.workload.op
    same = all(layout == candidate.output for layout in candidate.layouts)
    return (
        same and not epilogue.steps and not epilogue.operands and epilogue.dtype == op.output.dtype
    )


def part_offsets(
    workload: Workload, layout: Layout, alignment: int = ALIGNMENT
) -> tuple[int, ...] | None:
    """Where each input of a concatenation lies in its result, in bytes.

    None where an input is not one aligned piece of the result's memory, or is empty.
    """
    op = workload.op
    axis = op.attr("axis")
    if prod(layout.physical(op.output.shape)[:axis]) != 1:
        return None
    if layout.block and axis == 1 and any(s.shape[1] % layout.block for s in op.inputs[:-1]):
        return None  # the next part begins in the middle of a block
    sizes = [_nbytes(sig, layout) for sig in op.inputs]
    if not all(sizes):
        return None
    offsets = tuple(_running(sizes))
    return None if any(offset % alignment for offset in offsets) else offsets


def piece_offset(workload: Workload, layout: Layout, alignment: int = ALIGNMENT) -> int | None:
    """Where a slice begins in its source's memory, in bytes.

    None where it is not one aligned piece, or would show channels in padding lanes.
    """
    op = workload.op
    begin, strides = list(op.attr("begin")), list(op.attr("strides"))
    source, target = layout.physical(op.inputs[0].shape), layout.physical(op.output.shape)
    if layout.block:
        end = begin[1] + op.output.shape[1]
        cut = end % layout.block and end != op.inputs[0].shape[1]
        if cut or begin[1] % layout.block or strides[1] != 1:
            return None
        begin, strides = [begin[0], begin[1] // layout.block, *begin[2:], 0], [*strides, 1]
    if not prod(target) or any(s != 1 and t != 1 for s, t in zip(strides, target, strict=True)):
        return None
    cuts = [axis for axis, (s, t) in enumerate(zip(source, target, strict=True)) if s != t]
    if cuts and prod(target[: cuts[-1]]) != 1:
        return None
    offset = 0
    for first, extent in zip(begin, source, strict=True):
        offset = offset * extent + first
    offset *= TensorSig((1,), op.output.dtype).nbytes
    return None if offset % alignment else offset


def _nbytes(sig: TensorSig, layout: Layout) -> int:
    return TensorSig(layout.physical(sig.shape), sig.dtype).nbytes


def _running(sizes: Sequence[int]) -> Iterator[int]:
    """The sum of all sizes before each."""
    total = 0
    for size in sizes:
        yield total
        total += size
