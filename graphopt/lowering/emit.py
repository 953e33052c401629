"""Emission: chosen candidates become kernels, values become buffers, groups become calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tvm
from schedules.layout_change import change_candidate
from tvm import s_tir

from graphopt.codegen.kernel import Kernel, lower, to_kernel
from graphopt.codegen.plan import Buffer, Call, Plan, TensorSpec
from graphopt.errors import CompileError
from graphopt.lowering.choose import alias_table, find_source
from graphopt.lowering.dataflow import Dataflow
from graphopt.lowering.groups import Alias, Group
from graphopt.lowering.memory import Lifetime, place
from graphopt.lowering.prices import is_serial
from graphopt.lowering.weights import WeightPool
from schedules.interface import (
    PLAIN,
    Candidate,
    Epilogue,
    Layout,
    Op,
    TargetTraits,
    TensorSig,
    Workload,
)


@dataclass(frozen=True)
class KernelUse:
    """For the report: one call, what it runs, and how its schedule was found."""

    site: str
    kernel: str
    candidate: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Emitted:
    """A plan, the kernels it names and the report's rows."""

    plan: Plan
    kernels: Mapping[str, Kernel]
    uses: tuple[KernelUse, ...]
    layout_changes: int


@dataclass
class _Memory:
    """A buffer while the plan is being made: where it will live and which calls touch it."""

    space: str
    offset: int  # index for inputs and outputs, offset for weights, unknown yet in the arena
    nbytes: int
    first: int = 1 << 30
    last: int = -1


@dataclass
class _Emitter:
    dataflow: Dataflow
    aliases: Mapping[int, int]
    traits: TargetTraits
    target: Any
    pool: WeightPool
    copy: Any
    share: bool
    kernels: dict[str, Kernel] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)
    memories: list[_Memory] = field(default_factory=list)
    tensors: dict[tuple[int, Layout], int] = field(default_factory=dict)
    made: dict[int, Layout] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    claims: dict[int, int] = field(default_factory=dict)
    origin: dict[int, tuple[str, ...]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    uses: list[KernelUse] = field(default_factory=list)
    layout_changes: int = 0

    # --- tensors -------------------------------------------------------------------------------

    def memory(self, space: str, offset: int, nbytes: int) -> int:
        self.memories.append(_Memory(space, offset, nbytes))
        return len(self.memories) - 1

    def tensor(self, value: int, layout: Layout) -> int:
        """Memory for `value` in `layout`, whose maker is about to be emitted."""
        sig = self.dataflow.values[value]
        nbytes = TensorSig(layout.physical(sig.shape), sig.dtype).nbytes
        if layout == PLAIN and value in self.claims:
            found = self.memory("output", self.claims[value], nbytes)
        else:
            found = self.memory("arena", 0, nbytes)
        self.tensors[value, layout] = found
        return found

    def weight(self, value: int, layout: Any, shape: tuple[int, ...]) -> int:
        offset, nbytes = self.pool.add(self.dataflow.constants[value], layout, shape)
        if offset not in self.weights:
            self.weights[offset] = self.memory("weight", offset, nbytes)
        return self.weights[offset]

    def read(self, value: int, sig: TensorSig, layout: Layout) -> int:
        """The memory that holds `value`, read as `sig`, in `layout`; emits changes if needed."""
        source = find_source(self.dataflow, self.aliases, value, len(sig.shape))
        owner = source.value
        if owner in self.dataflow.constants:
            return self.weight(owner, layout, sig.shape)
        if not source.viewed:
            return self.change(owner, sig, self.made[owner], layout, (owner, layout))
        plain = self.read(owner, self.dataflow.values[owner], PLAIN)
        if layout == PLAIN:
            return plain
        # Row-major memory under another shape: a tensor of its own once it is blocked.
        self.tensors[value, PLAIN] = plain
        self.origin[value] = self.origin.get(owner, ())
        return self.change(value, sig, PLAIN, layout, (value, layout))

    def change(
        self, value: int, sig: TensorSig, have: Layout, want: Layout, key: tuple[int, Layout]
    ) -> int:
        if key not in self.tensors:
            source = self.tensors[value, have]
            if want == PLAIN:
                result = self.tensor(value, PLAIN)
            else:
                nbytes = TensorSig(want.physical(sig.shape), sig.dtype).nbytes
                result = self.tensors[key] = self.memory("arena", 0, nbytes)
            candidate = change_candidate(sig, have, want, self.traits)
            workload = Workload(Op("layout_change", (sig,), sig))
            nodes = self.origin.get(value, ())
            self.emit(candidate, workload, [source], [result], nodes)
            self.layout_changes += 1
        return self.tensors[key]

    # --- kernels and calls -----------------------------------------------------------------------

    def group(self, group: Group, candidate: Candidate) -> None:
        if group.workload.output.elements == 0 and group.function is None:
            for value in group.outputs:  # nothing to compute, but others may name it
                self.made[value] = candidate.output
                self.tensor(value, candidate.output)
            return
        inputs = []
        for value, sig, constant, layout in zip(
            group.inputs,
            group.workload.inputs,
            group.workload.constant,
            candidate.layouts,
            strict=True,
        ):
            if constant:
                inputs.append(self.weight(value, layout, sig.shape))
            else:
                assert isinstance(layout, Layout)
                inputs.append(self.read(value, sig, layout))
        outputs = []
        for value in group.outputs:
            self.made[value] = candidate.output
            self.origin[value] = group.nodes
            outputs.append(self.tensor(value, candidate.output))
        self.emit(candidate, group.workload, inputs, outputs, group.nodes)

    def emit(
        self,
        candidate: Candidate,
        workload: Workload,
        inputs: Sequence[int],
        outputs: Sequence[int],
        nodes: tuple[str, ...],
    ) -> None:
        name = self.kernel(candidate, workload, nodes)
        serial = not self.share or is_serial(candidate.cost, self.traits)
        arguments = [*inputs, *outputs]
        for workspace in self.kernels[name].workspaces:
            workers = 1 if workspace.shared or serial else self.traits.threads
            arguments.append(self.memory("arena", 0, workspace.nbytes * workers))
        index = len(self.calls)
        for argument in arguments:
            memory = self.memories[argument]
            memory.first, memory.last = min(memory.first, index), index
        site = f"{index}:{name}"
        self.calls.append(
            Call(
                site,
                name,
                tuple(arguments),
                nodes,
                serial,
                float(candidate.cost.flops),
                float(candidate.cost.bytes),
            )
        )
        self.uses.append(KernelUse(site, name, candidate.name, nodes))

    def kernel(self, candidate: Candidate, workload: Workload, nodes: tuple[str, ...]) -> str:
        """The name of the kernel for a candidate; identical groups share one."""
        key = (candidate.name, workload, candidate.layouts, candidate.output)
        if key not in self.names:
            name = f"{workload.op.kind}_{len(self.names)}"
            try:
                schedule = s_tir.Schedule(tvm.IRModule({"main": candidate.compute()}))
                candidate.schedule(schedule)
                self.kernels[name] = to_kernel(lower(schedule.mod["main"], self.target))
            except Exception as error:
                raise CompileError(
                    "lowering",
                    f"the kernel {candidate.name} cannot be made: {_last_line(error)}",
                    node=", ".join(nodes) or None,
                    hint="This is a defect of graphopt; please report it with the model.",
                ) from error
            self.names[key] = name
        return self.names[key]


def emit(
    dataflow: Dataflow,
    entries: Sequence[Group | Alias],
    chosen: Mapping[int, Candidate],
    traits: TargetTraits,
    target: Any,
    pool: WeightPool,
    copy: Any,
    share: bool,
) -> Emitted:
    """The plan and kernels of a network.

    Args:
        chosen: per group (by index in `entries`) its candidate.
        pool: receives the packed constants; shared by the programs of one model.
        copy: makes a candidate that copies a tensor of a given workload, for outputs that are
            inputs, constants or other outputs.
        share: whether workers share the larger kernels; otherwise one runs them all.
    """
    emitter = _Emitter(dataflow, alias_table(entries), traits, target, pool, copy, share)
    for index, (_, value) in enumerate(dataflow.inputs):
        emitter.made[value] = PLAIN
        nbytes = dataflow.values[value].nbytes
        emitter.tensors[value, PLAIN] = emitter.memory("input", index, nbytes)
    produced = {v for entry in entries if isinstance(entry, Group) for v in entry.outputs}
    copies: list[tuple[int, int]] = []
    for index, (_, value) in enumerate(dataflow.outputs):
        rank = len(dataflow.values[value].shape)
        owner = find_source(dataflow, emitter.aliases, value, rank).value
        if owner in produced and owner not in emitter.claims:
            emitter.claims[owner] = index
        else:
            copies.append((index, value))
    for index, entry in enumerate(entries):
        if isinstance(entry, Group):
            emitter.group(entry, chosen[index])
    for owner in emitter.claims:
        emitter.read(owner, dataflow.values[owner], PLAIN)
    for index, value in copies:
        _emit_copy(emitter, index, value)
    return _finish(emitter)


def _emit_copy(emitter: _Emitter, index: int, value: int) -> None:
    sig = emitter.dataflow.values[value]
    operand = replace(sig, shape=sig.shape or (1,))
    workload = Workload(
        Op("elementwise", (), operand), Epilogue((operand,), (), sig.dtype, (False,))
    )
    source = emitter.read(value, sig, PLAIN)
    result = emitter.memory("output", index, sig.nbytes)
    emitter.emit(emitter.copy(workload), workload, [source], [result], ())


def _finish(emitter: _Emitter) -> Emitted:
    arena = [m for m in emitter.memories if m.space == "arena"]
    offsets, total = place([Lifetime(m.nbytes, m.first, m.last) for m in arena])
    for memory, offset in zip(arena, offsets, strict=True):
        memory.offset = offset
    dataflow = emitter.dataflow
    plan = Plan(
        tuple(_spec(dataflow, name, value) for name, value in dataflow.inputs),
        tuple(_spec(dataflow, name, value) for name, value in dataflow.outputs),
        tuple(Buffer(m.space, m.offset, m.nbytes) for m in emitter.memories),
        tuple(emitter.calls),
        total,
        emitter.pool.nbytes,
        emitter.traits.threads,
    )
    return Emitted(plan, emitter.kernels, tuple(emitter.uses), emitter.layout_changes)


def _spec(dataflow: Dataflow, name: str, value: int) -> TensorSpec:
    sig = dataflow.values[value]
    return TensorSpec(name, sig.dtype, sig.shape)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
