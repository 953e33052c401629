"""Lowering as a whole: groups, candidates, assignment, emission."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from graphopt.codegen.kernel import KernelMaker
from graphopt.codegen.plan import Plan, TensorSpec
from graphopt.errors import CompileError
from graphopt.ir import Graph
from graphopt.lowering.choose import choose_offers
from graphopt.lowering.dataflow import Dataflow
from graphopt.lowering.emit import Emitted, emit
from graphopt.lowering.groups import Alias, Group, form_groups
from graphopt.lowering.legalised import legalised_candidate
from graphopt.lowering.prices import (
    SMALL_PROGRAM_SECONDS,
    Advisor,
    Offer,
    single_core_seconds,
    unadvised,
)
from graphopt.lowering.read import read_dataflow
from graphopt.lowering.weights import WeightPool
from schedules.interface import Candidate, Numerics, TargetTraits, Workload
from schedules.registry import families


@dataclass(frozen=True)
class LoweringOptions:
    """What of the compile options lowering needs.

    numerics: candidates that need more freedom than this are not offered.
    weight_limit: packed weights may take this many times the bytes of the constants.
    """

    numerics: Numerics = Numerics.DEFAULT
    weight_limit: float = 2.0


@dataclass(frozen=True)
class Lowered:
    """The emitted program and how many operations, groups and bytes of constants it came from."""

    emitted: Emitted
    operations: int
    groups: int
    constant_bytes: int


@dataclass(frozen=True)
class Problem:
    """A network as groups of operations, and what is offered for each: what is left is to choose.

    offers: by the group's index in `entries`. elements: see Graph.
    """

    dataflow: Dataflow
    entries: tuple[Group | Alias, ...]
    offers: Mapping[int, tuple[Offer, ...]]
    elements: Mapping[str, str]
    traits: TargetTraits
    options: LoweringOptions

    def group(self, index: int) -> Group:
        """The group at `index` of the entries."""
        entry = self.entries[index]
        assert isinstance(entry, Group)
        return entry

    def choice(self) -> dict[int, Offer]:
        """The offers that make the network fastest."""
        limit = self.options.weight_limit
        return choose_offers(self.dataflow, self.entries, self.offers, self.traits, limit)


def pose(
    graph: Graph,
    traits: TargetTraits,
    options: LoweringOptions,
    advisor: Advisor = unadvised,
) -> Problem:
    """Form the groups of a graph, and collect what is offered for them.

    Raises:
        CompileError: there is no kernel for a group; it names the ONNX node.
    """
    dataflow = read_dataflow(graph)
    entries = tuple(form_groups(dataflow))
    found: dict[tuple[Workload, int], tuple[Offer, ...]] = {}
    offers: dict[int, tuple[Offer, ...]] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, Group):
            continue
        key = (entry.workload, id(entry.function) if entry.function is not None else 0)
        if key not in found:
            found[key] = advisor(entry.workload, _candidates(entry, traits, options))
        offers[index] = found[key]
    return Problem(dataflow, entries, offers, graph.elements, traits, options)


def lower_choice(
    problem: Problem, chosen: Mapping[int, Offer], jobs: KernelMaker, pool: WeightPool
) -> Lowered:
    """The plan of a network with the offer `chosen` for each group, whose kernels `jobs` makes.

    Packed constants go to `pool`. Raises CompileError naming the ONNX node where a kernel fails.
    """
    dataflow, traits = problem.dataflow, problem.traits
    alone = sum(single_core_seconds(offer.candidate.cost, traits) for offer in chosen.values())

    def copy(workload: Workload) -> Candidate:
        return _offers(workload, traits, problem.options)[0]

    share = alone > SMALL_PROGRAM_SECONDS
    emitted = emit(dataflow, problem.entries, chosen, traits, jobs, pool, copy, share)
    emitted = replace(emitted, plan=_as_users_see_it(emitted.plan, problem.elements))
    constant_bytes = sum(array.nbytes for array in dataflow.constants.values())
    return Lowered(emitted, len(dataflow.operations), len(chosen), constant_bytes)


def _as_users_see_it(plan: Plan, elements: Mapping[str, str]) -> Plan:
    """The plan with the element types of those inputs and outputs that kernels see as codes."""

    def named(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(s, dtype=elements.get(s.name, s.dtype)) for s in specs)

    return replace(plan, inputs=named(plan.inputs), outputs=named(plan.outputs))


def _candidates(
    group: Group, traits: TargetTraits, options: LoweringOptions
) -> tuple[Candidate, ...]:
    if group.function is not None:
        return (legalised_candidate(group.workload, group.function, traits),)
    found = _offers(group.workload, traits, options)
    if not found:
        raise CompileError(
            "lowering",
            f"no kernel for {group.workload.op.kind} of "
            f"{[(s.shape, s.dtype) for s in group.workload.inputs]}",
            node=", ".join(group.nodes) or None,
        )
    return found


def _offers(
    workload: Workload, traits: TargetTraits, options: LoweringOptions
) -> tuple[Candidate, ...]:
    offers = (c for family in families(traits) for c in family(workload, traits))
    return tuple(c for c in offers if c.numerics <= options.numerics)
