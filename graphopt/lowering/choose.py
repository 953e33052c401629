"""The assignment problem of a network: candidates as choices, layout changes as edge costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.lowering.assignment import Costs, solve, total_cost
from graphopt.lowering.dataflow import Dataflow
from graphopt.lowering.groups import Alias, Group
from graphopt.lowering.prices import Offer, price
from graphopt.weight_budget import allowed_bytes
from schedules.interface import PLAIN, Candidate, Layout, Packing, TargetTraits, TensorSig
from schedules.layout_change import change_candidate


@dataclass(frozen=True)
class Source:
    """Where a group's input comes from: the value that owns the memory, and whether through a view.

    A view (a reshape, or a leading dimension added for broadcasting) only reads row-major memory.
    """

    value: int
    viewed: bool


def find_source(dataflow: Dataflow, aliases: Mapping[int, int], value: int, rank: int) -> Source:
    """The owner of `value`'s memory, read as a tensor of `rank` dimensions."""
    viewed = len(dataflow.values[value].shape) != rank
    while value in aliases:
        value, viewed = aliases[value], True
    return Source(value, viewed)


def alias_table(entries: Sequence[Group | Alias]) -> dict[int, int]:
    """View result → source."""
    return {entry.result: entry.source for entry in entries if isinstance(entry, Alias)}


def hops(source: Layout, target: Layout, viewed: bool) -> int:
    """Layout changes on the way from producer to consumer: 0, 1, or 2 through a view."""
    if not viewed:
        return int(source != target)
    return int(source != PLAIN) + int(target != PLAIN)


def choose_offers(
    dataflow: Dataflow,
    entries: Sequence[Group | Alias],
    offers: Mapping[int, Sequence[Offer]],
    traits: TargetTraits,
    weight_limit: float,
) -> dict[int, Offer]:
    """The offer taken for each group, by the group's index in `entries`.

    Args:
        offers: per group at least one.
        weight_limit: packed weights may take this many times the bytes of the constants, which
            count for a megabyte at least.
    """
    assignment = Assignment(dataflow, entries, offers, traits, weight_limit)
    picks = assignment.picks()
    return {
        entry: offers[entry][pick] for entry, pick in zip(assignment.groups, picks, strict=True)
    }


class Assignment:
    """Node and edge costs of one network, in seconds.

    A measured offer costs what was measured. The static table prices the others; it ranks, but may
    be off by a factor, which is taken from the offers that were measured: those for the same group,
    else all.
    """

    def __init__(
        self,
        dataflow: Dataflow,
        entries: Sequence[Group | Alias],
        offers: Mapping[int, Sequence[Offer]],
        traits: TargetTraits,
        weight_limit: float,
    ) -> None:
        self.groups = [i for i, entry in enumerate(entries) if isinstance(entry, Group)]
        self.offers = [offers[i] for i in self.groups]
        self.options = [[offer.candidate for offer in found] for found in self.offers]
        self.traits = traits
        self.constant_bytes = sum(array.nbytes for array in dataflow.constants.values())
        self.weight_limit = allowed_bytes(self.constant_bytes, weight_limit)
        self.weights = [
            np.array([_packed_bytes(entries[i], o.candidate) for o in offers[i]], dtype=np.float64)
            for i in self.groups
        ]
        static = [
            np.array(
                [
                    price(c.cost, traits, packed, self.constant_bytes)
                    for c, packed in zip(found, weights, strict=True)
                ]
            )
            for found, weights in zip(self.options, self.weights, strict=True)
        ]
        self.scale, self.nodes = _measured(static, self.offers)
        self.edges: dict[tuple[int, int], Costs] = {}
        self._changes: dict[TensorSig, float] = {}
        aliases = alias_table(entries)
        makers = {
            value: number
            for number, index in enumerate(self.groups)
            for value in _group(entries[index]).outputs
        }
        for number, index in enumerate(self.groups):
            group = _group(entries[index])
            for position, value in enumerate(group.inputs):
                if value in dataflow.constants:
                    continue
                sig = group.workload.inputs[position]
                source = find_source(dataflow, aliases, value, len(sig.shape))
                self._edge(makers.get(source.value), number, position, source.viewed, sig)
        for _, value in dataflow.outputs:
            source = find_source(dataflow, aliases, value, len(dataflow.values[value].shape))
            maker = makers.get(source.value)
            if maker is not None:
                change = self._change(dataflow.values[source.value])
                self.nodes[maker] += [change * (c.output != PLAIN) for c in self.options[maker]]

    def picks(self) -> list[int]:
        """The option of each group that makes the network fastest within the limit on weights."""
        penalty, picks = 0.0, self.solve(0.0)
        # A price per byte, raised until the weights fit: the Lagrangian of the limit.
        for _ in range(24):
            if self.weight_bytes(picks) <= self.weight_limit:
                break
            penalty = penalty * 2 if penalty else 1e-13
            picks = self.solve(penalty)
        return self.spend(picks, self.weight_limit)

    def seconds(self, picks: Sequence[int]) -> float:
        """Time of the network with these options."""
        return total_cost(self.nodes, self.edges, picks)

    def forced(self, number: int, option: int) -> float:
        """Time of the network at best, if group `number` takes `option`; no limit on weights."""
        nodes = list(self.nodes)
        nodes[number] = np.full_like(nodes[number], _NEVER)
        nodes[number][option] = self.nodes[number][option]
        return total_cost(nodes, self.edges, solve(nodes, self.edges))

    def _edge(
        self, maker: int | None, user: int, position: int, viewed: bool, sig: TensorSig
    ) -> None:
        change = self._change(sig)
        wanted = [c.layouts[position] for c in self.options[user]]
        if maker is None:
            self.nodes[user] += [change * (layout != PLAIN) for layout in wanted]
            return
        matrix = np.array(
            [
                [change * hops(made.output, _layout(layout), viewed) for layout in wanted]
                for made in self.options[maker]
            ]
        )
        key = (maker, user)
        self.edges[key] = self.edges[key] + matrix if key in self.edges else matrix

    def _change(self, sig: TensorSig) -> float:
        if sig not in self._changes:
            block = Layout(self.traits.lanes)
            cost = (
                change_candidate(sig, PLAIN, block, self.traits).cost
                if len(sig.shape) > 1
                else None
            )
            self._changes[sig] = self.scale * price(cost, self.traits) if cost else 0.0
        return self._changes[sig]

    def solve(self, penalty: float) -> list[int]:
        nodes = [n + penalty * w for n, w in zip(self.nodes, self.weights, strict=True)]
        return solve(nodes, self.edges)

    def spend(self, picks: Sequence[int], limit: float) -> list[int]:
        """`picks` with faster candidates where weights still fit, the most time per byte first.

        One price per byte for all leaves bytes unspent where equal layers change sides together.
        Only candidates that look the same to their neighbours are exchanged.
        """
        swaps = []
        for number, (found, pick) in enumerate(zip(self.options, picks, strict=True)):
            for other, candidate in enumerate(found):
                gain = float(self.nodes[number][pick] - self.nodes[number][other])
                more = float(self.weights[number][other] - self.weights[number][pick])
                if gain > 0 and _face(candidate) == _face(found[pick]):
                    swaps.append((gain / max(more, 1.0), number, other))
        result = list(picks)
        room = limit - self.weight_bytes(picks)
        for _, number, other in sorted(swaps, reverse=True):
            costs, sizes = self.nodes[number], self.weights[number]
            more = float(sizes[other] - sizes[result[number]])
            if costs[other] < costs[result[number]] and more <= room:
                result[number] = other
                room -= more
        return result

    def weight_bytes(self, picks: Sequence[int]) -> float:
        return float(sum(w[pick] for w, pick in zip(self.weights, picks, strict=True)))


_NEVER = 1e6  # seconds


def _measured(
    static: Sequence[Costs], offers: Sequence[Sequence[Offer]]
) -> tuple[float, list[Costs]]:
    """The scale of the static table, and the costs of all offers."""
    known = [
        [offer.seconds / cost for offer, cost in zip(found, costs, strict=True) if offer.seconds]
        for found, costs in zip(offers, static, strict=True)
    ]
    scales = [float(np.exp(np.mean(np.log(ratios)))) if ratios else None for ratios in known]
    common = float(np.median([scale for scale in scales if scale] or [1.0]))
    costs = [
        np.array(
            [
                offer.seconds or float(cost) * (scale or common)
                for offer, cost in zip(found, prices, strict=True)
            ]
        )
        for found, prices, scale in zip(offers, static, scales, strict=True)
    ]
    return common, costs


def _group(entry: Group | Alias) -> Group:
    assert isinstance(entry, Group)
    return entry


def _face(candidate: Candidate) -> tuple[object, ...]:
    """What the neighbours of a candidate see of it: the layouts of its activations."""
    layouts = (layout if isinstance(layout, Layout) else None for layout in candidate.layouts)
    return (*layouts, candidate.output)


def _layout(layout: object) -> Layout:
    assert isinstance(layout, Layout), "an activation cannot be packed"
    return layout


def _packed_bytes(entry: Group | Alias, candidate: Candidate) -> int:
    group = _group(entry)
    total = 0
    for sig, constant, layout in zip(
        group.workload.inputs, group.workload.constant, candidate.layouts, strict=True
    ):
        if constant:
            total += _constant_bytes(sig, layout)
    return total


def _constant_bytes(sig: TensorSig, layout: Layout | Packing) -> int:
    """Bytes of a constant in a candidate's layout or packing."""
    if isinstance(layout, Layout):
        return TensorSig(layout.physical(sig.shape), sig.dtype).nbytes
    return TensorSig(layout.packed_shape(sig.shape), sig.dtype).nbytes
