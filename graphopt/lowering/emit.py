"""Emission: chosen candidates become kernels, values become buffers, groups become calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graphopt.codegen.kernel import HasWorkspaces, KernelMaker
from graphopt.codegen.plan import Call, Plan, TensorSpec
from graphopt.lowering.choose import alias_table, find_source
from graphopt.lowering.dataflow import Dataflow
from graphopt.lowering.groups import Alias, Group
from graphopt.lowering.kernels import KernelSet
from graphopt.lowering.prices import Offer, is_serial
from graphopt.lowering.sharing import Place, Sharing, Tensor, share_memory
from graphopt.lowering.storage import Storage
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
from schedules.layout_change import change_candidate


@dataclass(frozen=True)
class KernelUse:
    """For the report: one call, what it runs, and how its schedule was found.

    group: index of the group that it computes; −1 for a change of layout or a copy.
    """

    site: str
    kernel: str
    candidate: str
    nodes: tuple[str, ...]
    origin: str = "default"
    group: int = -1


@dataclass(frozen=True)
class Emitted:
    """A plan, the kernels it names and the report's rows."""

    plan: Plan
    kernels: Mapping[str, Any]
    uses: tuple[KernelUse, ...]
    layout_changes: int


@dataclass
class _Emitter:
    dataflow: Dataflow
    aliases: Mapping[int, int]
    claims: Mapping[int, int]
    sharing: Sharing
    traits: TargetTraits
    kernels: KernelSet
    pool: WeightPool
    copy: Any
    share: bool
    storage: Storage
    tensors: dict[Tensor, int] = field(default_factory=dict)
    made: dict[int, Layout] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    origin: dict[int, tuple[str, ...]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    uses: list[KernelUse] = field(default_factory=list)
    layout_changes: int = 0

    # --- tensors -------------------------------------------------------------------------------

    def tensor(self, value: int, layout: Layout, sig: TensorSig | None = None) -> int:
        """Memory for `value`, read as `sig`, in `layout`, whose maker is about to be emitted."""
        sig = sig or self.dataflow.values[value]
        key = Tensor(value, layout, len(sig.shape))
        if key not in self.tensors:
            nbytes = _physical(sig, layout).nbytes
            part = self.sharing.parts.get(key)
            if part is not None:
                host = self.tensor(part.host.value, part.host.layout)
                found = self.storage.inside(host, part.offset, nbytes)
            elif layout == PLAIN and value in self.claims:
                found = self.storage.add("output", self.claims[value], nbytes)
            else:
                found = self.storage.add("arena", 0, nbytes)
            self.tensors[key] = found
        return self.tensors[key]

    def weight(self, value: int, layout: Any, shape: tuple[int, ...]) -> int:
        offset, nbytes = self.pool.add(self.dataflow.constants[value], layout, shape)
        if offset not in self.weights:
            self.weights[offset] = self.storage.add("weight", offset, nbytes)
        return self.weights[offset]

    def read(self, value: int, sig: TensorSig, layout: Layout) -> int:
        """The memory that holds `value`, read as `sig`, in `layout`; emits changes if needed."""
        source = find_source(self.dataflow, self.aliases, value, len(sig.shape))
        owner = source.value
        if owner in self.dataflow.constants:
            return self.weight(owner, layout, sig.shape)
        if not source.viewed:
            return self.change(owner, sig, self.made[owner], layout)
        plain = self.read(owner, self.dataflow.values[owner], PLAIN)
        if layout == PLAIN:
            return plain
        # Row-major memory under another shape: a tensor of its own once it is blocked.
        self.tensors[Tensor(value, PLAIN, len(sig.shape))] = plain
        self.origin[value] = self.origin.get(owner, ())
        return self.change(value, sig, PLAIN, layout)

    def change(self, value: int, sig: TensorSig, have: Layout, want: Layout) -> int:
        """`value`'s memory in layout `want`, changed from what is in layout `have`."""
        rank = len(sig.shape)
        key = Tensor(value, want, rank)
        if key not in self.tensors:
            source = self.tensors[Tensor(value, have, rank)]
            result = self.tensor(value, want, sig)
            candidate = change_candidate(sig, have, want, self.traits)
            workload = Workload(Op("layout_change", (sig,), sig))
            nodes = self.origin.get(value, ())
            self.emit(candidate, workload, [source], [result], nodes)
            self.layout_changes += 1
        return self.tensors[key]

    # --- kernels and calls -----------------------------------------------------------------------

    def group(self, index: int, group: Group, offer: Offer) -> None:
        candidate = offer.candidate
        if index in self.sharing.views:
            self.view(group, candidate.output, self.sharing.views[index])
            return
        if index in self.sharing.copies:
            self.join(group, candidate.output, self.sharing.copies[index])
            return
        if not any(sig.elements for sig in group.workload.outputs) and group.function is None:
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
        self.emit(candidate, group.workload, inputs, outputs, group.nodes, offer.origin, index)

    def view(self, group: Group, layout: Layout, place: Place) -> None:
        """A slice that is read where it lies in its source."""
        [source], [result] = group.inputs, group.outputs
        host = self.read(source, group.workload.op.inputs[0], layout)
        sig = self.dataflow.values[result]
        region = self.storage.inside(host, place.offset, _physical(sig, layout).nbytes)
        self.storage.written(region, self.storage.writers(host))
        self.tensors[Tensor(result, layout, len(sig.shape))] = region
        self.done(result, layout, group.nodes)

    def join(self, group: Group, layout: Layout, copies: tuple[int, ...]) -> None:
        """A concatenation whose parts lie in its result, but for those in `copies`."""
        op, [result] = group.workload.op, group.outputs
        host = self.tensor(result, layout)
        offset = 0
        for position, (value, sig) in enumerate(zip(group.inputs, op.inputs, strict=True)):
            region, piece = self.read(value, sig, layout), _physical(sig, layout)
            if position in copies:
                target = self.storage.inside(host, offset, piece.nbytes)
                self.copy_tensor(region, target, piece, group.nodes)
                region = target
            self.storage.written(host, self.storage.writers(region))
            offset += piece.nbytes
        self.done(result, layout, group.nodes)

    def done(self, result: int, layout: Layout, nodes: tuple[str, ...]) -> None:
        """`result` has been computed by the kernels of other nodes, whose calls get its `nodes`."""
        self.made[result], self.origin[result] = layout, nodes
        for index in self.storage.writers(self.tensor(result, layout)):
            merged = tuple(dict.fromkeys(self.calls[index].nodes + nodes))
            self.calls[index] = replace(self.calls[index], nodes=merged)
            self.uses[index] = replace(self.uses[index], nodes=merged)

    def copy_tensor(self, source: int, target: int, sig: TensorSig, nodes: tuple[str, ...]) -> None:
        """Copy memory of shape `sig`."""
        operand = replace(sig, shape=sig.shape or (1,))
        epilogue = Epilogue((operand,), (), sig.dtype, (False,))
        workload = Workload(Op("elementwise", (), operand), epilogue)
        self.emit(self.copy(workload), workload, [source], [target], nodes)

    def emit(
        self,
        candidate: Candidate,
        workload: Workload,
        inputs: Sequence[int],
        outputs: Sequence[int],
        nodes: tuple[str, ...],
        origin: str = "default",
        group: int = -1,
    ) -> None:
        name = self.kernels.name(candidate, workload, nodes)
        serial = not self.share or is_serial(candidate.cost, self.traits)
        arguments = [*inputs, *outputs]
        index = len(self.calls)
        for argument in arguments:
            self.storage.touch(argument, index)
        for output in outputs:
            self.storage.written(output, [index])
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
        self.uses.append(KernelUse(site, name, candidate.name, nodes, origin, group))

    def with_workspaces(self, index: int, call: Call, kernel: HasWorkspaces) -> Call:
        """Call number `index`, given the memory that its kernel needs beside the arguments."""
        found = []
        for workspace in kernel.workspaces:
            workers = 1 if workspace.shared or call.serial else self.traits.threads
            region = self.storage.add("arena", 0, workspace.nbytes * workers)
            self.storage.touch(region, index)
            found.append(region)
        return replace(call, args=(*call.args, *found))


def emit(
    dataflow: Dataflow,
    entries: Sequence[Group | Alias],
    chosen: Mapping[int, Offer],
    traits: TargetTraits,
    jobs: KernelMaker,
    pool: WeightPool,
    copy: Any,
    share: bool,
) -> Emitted:
    """The plan and kernels of a network.

    Args:
        chosen: per group (by index in `entries`) the offer that was taken.
        jobs: makes the kernels.
        pool: receives the packed constants; shared by the programs of one model.
        copy: makes a candidate that copies a tensor of a given workload, for outputs that are
            inputs, constants or other outputs.
        share: whether workers share the larger kernels; otherwise one runs them all.
    """
    aliases = alias_table(entries)
    produced = {v for entry in entries if isinstance(entry, Group) for v in entry.outputs}
    claims: dict[int, int] = {}
    copies: list[tuple[int, int]] = []
    for index, (_, value) in enumerate(dataflow.outputs):
        rank = len(dataflow.values[value].shape)
        owner = find_source(dataflow, aliases, value, rank).value
        if owner in produced and owner not in claims:
            claims[owner] = index
        else:
            copies.append((index, value))
    candidates = {index: offer.candidate for index, offer in chosen.items()}
    sharing = share_memory(dataflow, entries, candidates, claims, traits.alignment)
    kernels = KernelSet(jobs)
    storage = Storage(traits.alignment)
    emitter = _Emitter(
        dataflow, aliases, claims, sharing, traits, kernels, pool, copy, share, storage
    )
    for index, (_, value) in enumerate(dataflow.inputs):
        emitter.made[value] = PLAIN
        nbytes = dataflow.values[value].nbytes
        key = Tensor(value, PLAIN, len(dataflow.values[value].shape))
        emitter.tensors[key] = emitter.storage.add("input", index, nbytes)
    for index, entry in enumerate(entries):
        if isinstance(entry, Group):
            emitter.group(index, entry, chosen[index])
    for owner in claims:
        emitter.read(owner, dataflow.values[owner], PLAIN)
    for index, value in copies:
        sig = dataflow.values[value]
        if not sig.elements:
            continue
        result = emitter.storage.add("output", index, sig.nbytes)
        emitter.copy_tensor(emitter.read(value, sig, PLAIN), result, sig, ())
    return _finish(emitter)


def _finish(emitter: _Emitter) -> Emitted:
    kernels = emitter.kernels.finished()
    for index, call in enumerate(emitter.calls):
        emitter.calls[index] = emitter.with_workspaces(index, call, kernels[call.kernel])
    buffers, arena_bytes = emitter.storage.buffers()
    dataflow = emitter.dataflow
    plan = Plan(
        tuple(_spec(dataflow, name, value) for name, value in dataflow.inputs),
        tuple(_spec(dataflow, name, value) for name, value in dataflow.outputs),
        buffers,
        tuple(emitter.calls),
        arena_bytes,
        emitter.pool.nbytes,
        emitter.traits.threads,
    )
    return Emitted(plan, kernels, tuple(emitter.uses), emitter.layout_changes)


def _physical(sig: TensorSig, layout: Layout) -> TensorSig:
    return TensorSig(layout.physical(sig.shape), sig.dtype)


def _spec(dataflow: Dataflow, name: str, value: int) -> TensorSpec:
    sig = dataflow.values[value]
    return TensorSpec(name, sig.dtype, sig.shape)
