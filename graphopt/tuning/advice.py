"""Advice: the best kernels that records know, as offers for lowering."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from graphopt.lowering.prices import Offer
from graphopt.tuning.codec import workload_key
from graphopt.tuning.nearness import distance
from graphopt.tuning.records import Record, averaged, trusted
from schedules.interface import Candidate, Decisions, Workload

log = logging.getLogger(__name__)

Name = tuple[str, str]
"""A workload's key and a candidate's name."""


@dataclass(frozen=True)
class Advice:
    """The best known decisions of each candidate of each workload.

    own: records of this target; their times count. others: of similar ones; only their decisions
    do. second: seconds of the reference kernel on a usual day, which ratios are multiples of.
    context: by workload, how much longer its kernels take in a program than alone, where that was
    measured: what is known of the others is multiplied by it.
    """

    own: Mapping[Name, Record]
    others: Mapping[Name, Record]
    second: float
    context: Mapping[str, float] = field(default_factory=dict)
    stale: set[Name] = field(default_factory=set, compare=False)

    def __call__(self, workload: Workload, candidates: Sequence[Candidate]) -> tuple[Offer, ...]:
        """One offer for each candidate."""
        key = workload_key(workload)
        return tuple(self._offer(key, candidate) for candidate in candidates)

    def _offer(self, key: str, candidate: Candidate) -> Offer:
        name = (key, candidate.name)
        record = self.own.get(name)
        if record is not None:
            made = replay(candidate, record.decisions)
            if made is not None:
                times = 1.0 if record.final else self.context.get(key, 1.0)
                return Offer(made, times * record.ratio * self.second, "tuned")
            self._warn(name)
        record = self.others.get(name)
        if record is not None:
            made = replay(candidate, record.decisions)
            if made is not None:
                return Offer(made, None, "borrowed")
        return Offer(candidate)

    def _warn(self, name: Name) -> None:
        if name not in self.stale:
            self.stale.add(name)
            log.warning(
                "the record of %s for workload %s fits its space no more; tune again", *name[::-1]
            )

    def digest(self) -> str:
        """What identifies the advice, for the compile cache."""
        state = hashlib.blake2b(digest_size=16)
        for table in (self.own, self.others):
            for name, record in sorted(table.items()):
                state.update(repr((name, record.decisions, record.ratio)).encode())
            state.update(b";")
        return state.hexdigest()


def replay(candidate: Candidate, decisions: Decisions) -> Candidate | None:
    """The candidate with other decisions; None if its space has no such kernel (any more)."""
    if candidate.decisions == decisions:
        return candidate
    space = candidate.space
    if space is None or {knob.name for knob in space.knobs} != {name for name, _ in decisions}:
        return None
    return space.make(dict(decisions))


def advise(records: Iterable[Record], target: str) -> Advice:
    """Advice for the target key `target` from records of any target.

    Those of targets with vectors of another length are not used; of the others, those of the
    nearest one that has any are borrowed from.
    """
    own: dict[Name, Record] = {}
    others: dict[Name, Record] = {}
    seconds = []
    known = averaged(trusted(records))
    distances = {key: distance(target, key) for key in {record.target for record in known}}

    def rank(record: Record) -> tuple[object, ...]:
        # What was measured in turns with its rivals beats what was not.
        return *(distances[record.target] or ()), record.target, *record.rank

    for record in sorted((r for r in known if distances[r.target] is not None), key=rank):
        mine = record.target == target
        (own if mine else others).setdefault((record.workload_key, record.candidate), record)
        if mine:
            seconds.append(record.seconds / record.ratio)
    second = median(seconds) if seconds else 1.0
    return Advice(own, others, second, _context(r for r in known if r.target == target))


def _context(records: Iterable[Record]) -> dict[str, float]:
    """By workload: ratios in a program over ratios alone, of the kernels that have both."""
    alone: dict[tuple[str, str], float] = {}
    inside: dict[tuple[str, str], float] = {}
    for record in records:
        table = inside if record.final else alone
        key = (record.workload_key, record.trace_key)
        table[key] = min(table.get(key, record.ratio), record.ratio)
    found: dict[str, list[float]] = {}
    for key in inside.keys() & alone.keys():
        found.setdefault(key[0], []).append(inside[key] / alone[key])
    return {workload: max(1.0, median(ratios)) for workload, ratios in found.items()}
