"""The finals: the best kernels run inside the program, in turns, and what they take there counts.

Alone, a kernel finds its inputs and much of its weights in nearer caches than in a network, and by
how much differs from kernel to kernel. So the program is compiled several times, each time with
another of the best kernels for every workload, and the variants are profiled in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from graphopt.lowering.choose import choose_offers
from graphopt.lowering.lower import Problem
from graphopt.lowering.prices import Offer
from graphopt.tuning.advice import replay
from graphopt.tuning.codec import workload_key
from graphopt.tuning.measure.client import Server
from graphopt.tuning.records import Record, averaged, trusted
from schedules.interface import Candidate, Workload

VARIANTS = 5
"""Programs that compete, beside the one with default kernels and the one of before the run."""
PER_CANDIDATE = 3
"""Kernels of one candidate among them at most."""

Variant: TypeAlias = "Mapping[int, Offer]"
"""One offer for each group of a problem."""
Times: TypeAlias = "Mapping[int, float]"
"""Seconds of each group's kernel."""
Profiler: TypeAlias = "Callable[[Server, Problem, Sequence[Variant]], tuple[list[Times], float]]"
"""Runs variants of a program in turns: times of each, and the seconds of the reference kernel."""


@dataclass(frozen=True)
class Finalist:
    """A kernel that ran in a program, and its mean time there over the groups that it computed."""

    workload: Workload
    candidate: Candidate
    seconds: float


def variants(
    problem: Problem, records: Iterable[Record], known: Sequence[Variant]
) -> list[Variant]:
    """The programs that compete: `known` ones, with the best kernels, the second best, …

    Args:
        records: of this target; those that ran in a program are not tried again, but for the best.
    """
    contenders = _contenders(problem, records)
    found = list(known)
    for place in range(VARIANTS):
        offers = {
            index: (Offer(ranked[min(place, len(ranked) - 1)]),)
            if (ranked := contenders.get(problem.group(index).workload))
            else given
            for index, given in problem.offers.items()
        }
        chosen = choose_offers(
            problem.dataflow, problem.entries, offers, problem.traits, problem.options.weight_limit
        )
        found.append(chosen)
    return distinct(found)


def results(
    problem: Problem, chosen: Sequence[Variant], seconds: Sequence[Times]
) -> list[Finalist]:
    """What each kernel with a space took, over all variants that it was in."""
    times: dict[tuple[Workload, Candidate], list[float]] = {}
    for variant, taken in zip(chosen, seconds, strict=True):
        for index, offer in variant.items():
            if offer.candidate.space is not None and index in taken:
                key = (problem.group(index).workload, offer.candidate)
                times.setdefault(key, []).append(taken[index])
    return [
        Finalist(workload, candidate, fmean(values))
        for (workload, candidate), values in times.items()
    ]


def _contenders(problem: Problem, records: Iterable[Record]) -> dict[Workload, list[Candidate]]:
    """The best kernels of each workload, best first."""
    by_workload: dict[str, dict[str, Record]] = {}
    for record in averaged(trusted(records)):
        kernels = by_workload.setdefault(record.workload_key, {})
        present = kernels.get(record.trace_key)
        if present is None or record.rank < present.rank:
            kernels[record.trace_key] = record
    found: dict[Workload, list[Candidate]] = {}
    for index, offers in problem.offers.items():
        workload = problem.group(index).workload
        if workload in found:
            continue
        kernels = by_workload.get(workload_key(workload), {})
        candidates = {offer.candidate.name: offer.candidate for offer in offers}
        incumbent = min((r for r in kernels.values() if r.final), key=_ratio, default=None)
        fresh = sorted((r for r in kernels.values() if not r.final), key=_ratio)
        ranked = [incumbent, *fresh] if incumbent is not None else fresh
        taken: dict[str, int] = {}
        kept = []
        for record in ranked:
            if (
                record.candidate not in candidates
                or taken.get(record.candidate, 0) >= PER_CANDIDATE
            ):
                continue
            made = replay(candidates[record.candidate], record.decisions)
            if made is not None and made.space is not None:
                taken[record.candidate] = taken.get(record.candidate, 0) + 1
                kept.append(made)
        if kept:
            found[workload] = kept[:VARIANTS]
    return found


def _ratio(record: Record) -> float:
    return record.ratio


def distinct(programs: Iterable[Variant]) -> list[Variant]:
    """Those that differ from all before them."""
    found: list[Variant] = []
    for one in programs:
        if not any(
            all(one[index].candidate == other[index].candidate for index in one) for other in found
        ):
            found.append(one)
    return found
