"""The kernels of one task that a search may measure: drawn at random, or near the best ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from graphopt.tuning.tasks import Task
from schedules.interface import Candidate, Decisions, Space


@dataclass(frozen=True)
class Proposal:
    """A kernel to be measured: a candidate with decisions, its features, and what is hoped for."""

    task: Task
    candidate: Candidate
    features: tuple[float, ...]
    gain: float = 0.0  # expected seconds

    @property
    def decisions(self) -> Decisions:
        """Of the candidate."""
        return self.candidate.decisions


@dataclass
class Pool:
    """Kernels of one task: those that may be measured, and what is known of the others.

    known: measured, or open. best: ratios and decisions of the best that were measured. kin: pools
    of workloads that differ in their epilogue only. seeds: decisions to try first.
    """

    task: Task
    open: dict[Decisions, Proposal] = field(default_factory=dict)
    known: set[Decisions] = field(default_factory=set)
    best: list[tuple[float, Decisions]] = field(default_factory=list)
    exhausted: bool = False
    kin: list[Pool] = field(default_factory=list, repr=False)
    seeds: list[Decisions] = field(default_factory=list)

    def inherited(self) -> dict[str, int] | None:
        """Decisions that were good elsewhere and that it does not know yet: on another machine, or
        for its kin."""
        while self.seeds:
            seed = self.seeds.pop()
            if seed not in self.known:
                return dict(seed)
        known = (entry for pool in self.kin for entry in pool.best[:3])
        best = min((e for e in known if e[1] not in self.known), default=None)
        return None if best is None else dict(best[1])

    def draw(self, rng: random.Random) -> Candidate | None:
        """A kernel that is not known yet; None if none was found in a while."""
        space = self.task.candidate.space
        if space is None:
            return None
        for attempt in range(60):
            inherited = self.inherited() if attempt == 0 else None
            if inherited is not None:
                values = inherited
            elif self.best and rng.random() < 0.6:
                _, parent = rng.choice(self.best)
                values = _changed(space, dict(parent), rng)
            else:
                values = {knob.name: rng.choice(knob.values) for knob in space.knobs}
            decisions = tuple((knob.name, values[knob.name]) for knob in space.knobs)
            if decisions in self.known:
                continue
            made = space.make(values)
            if made is not None and made.decisions not in self.known:
                return made
        return None


def _changed(space: Space, values: dict[str, int], rng: random.Random) -> dict[str, int]:
    """Decisions near `values`: one or two knobs moved, mostly by a step."""
    moved = min(len(space.knobs), rng.choice((1, 1, 2)))
    for knob in rng.sample(space.knobs, moved):
        place = knob.values.index(values[knob.name]) if values[knob.name] in knob.values else 0
        step = rng.choice((-3, -2, -1, -1, 1, 1, 2, 3))
        values[knob.name] = knob.values[max(0, min(len(knob.values) - 1, place + step))]
    return values
