"""Which kernels to measure next: those from which the model is expected to gain the most.

Each task keeps a pool of kernels that were not measured, drawn at random and by changing the best
ones. The cost model foretells the time of each; its error turns that into the expected gain over
what the model would need to break even (Mockus, "Bayesian Approach to Global Optimization", 1989),
times the number of groups that would gain.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from graphopt.lowering.kernels import scheduled
from graphopt.tuning.cost_model import CostModel
from graphopt.tuning.features import features
from graphopt.tuning.pool import Pool, Proposal
from graphopt.tuning.tasks import Standing, Task
from schedules.interface import Candidate, Decisions, Op, TargetTraits

POOL = 64
"""Kernels that a task keeps at most."""
FIRST, REFILL = 16, 8
"""How many it draws in the beginning, and in each round in which it is among the most promising."""
REFILLED = 8
"""How many tasks are refilled in a round."""
HOPELESS = 3.0
"""A candidate that the static table prices so many times above the best is not tried at first."""
DECAY = 0.75
"""What the expected gain of a task is multiplied by for each kernel of it in the same batch."""
EXPLORED = 0.1
"""Share of a batch that is drawn at random."""
GUESS = 0.35
"""Standard deviation of the logarithm of a time that only the static table knows."""

Name = tuple[str, str]


class Search:
    """Proposes kernels and learns what became of them."""

    def __init__(self, tasks: Sequence[Task], traits: TargetTraits, seed: int = 0) -> None:
        self._pools = {task.name: Pool(task) for task in tasks}
        # Workloads that differ in their epilogue only: what is good for one is good for the others.
        kin: dict[tuple[Op, str], list[Pool]] = {}
        for pool in self._pools.values():
            kin.setdefault((pool.task.workload.op, pool.task.candidate.name), []).append(pool)
        for pools in kin.values():
            for pool in pools:
                pool.kin = [other for other in pools if other is not pool]
        self._traits = traits
        self._random = random.Random(seed)
        self._filled = False

    def seed(self, name: Name, decisions: Decisions) -> None:
        """Have task `name` try decisions that were the best on another machine."""
        pool = self._pools.get(name)
        if pool is None or pool.task.candidate.space is None:
            return
        knobs = pool.task.candidate.space.knobs
        if tuple(knob.name for knob in knobs) == tuple(knob for knob, _ in decisions):
            pool.seeds.append(decisions)

    def tell(self, name: Name, decisions: Decisions, ratio: float | None) -> None:
        """A kernel of task `name` was measured, now or before; ratio: None if it failed."""
        pool = self._pools.get(name)
        if pool is None:
            return
        pool.open.pop(decisions, None)
        pool.known.add(decisions)
        if ratio is not None:
            pool.best = sorted([*pool.best, (ratio, decisions)])[:8]

    def propose(
        self, count: int, standing: Standing, model: CostModel | None, uncertainty: float
    ) -> list[Proposal]:
        """At most `count` kernels to measure; fewer where there are no more.

        Args:
            model: None before there is anything to learn from.
            uncertainty: standard deviation of the model's error, as log2 of a time.
        """
        batch = self._defaults(count, standing)
        self._take(batch)
        if len(batch) < count:
            self._fill(standing)
            more = self._promising(count - len(batch), standing, model, uncertainty)
            self._take(more)
            batch += more
        return batch

    def _take(self, batch: Sequence[Proposal]) -> None:
        """These are not proposed again."""
        for proposal in batch:
            pool = self._pools[proposal.task.name]
            pool.open.pop(proposal.decisions, None)
            pool.known.add(proposal.decisions)

    def propose_randomly(self, count: int, standing: Standing) -> list[Proposal]:
        """Kernels drawn at random, from tasks by their share of the model's time: a yardstick."""
        batch = self._defaults(count, standing)
        self._take(batch)
        names = list(self._pools)
        weights = [
            self._pools[name].task.uses * standing.worth[name].seconds
            * (standing.worth[name].seconds <= HOPELESS * standing.worth[name].break_even)
            for name in names
        ]  # fmt: skip
        for _ in range(50 * count):
            if len(batch) == count or not any(weights):
                break
            pool = self._pools[self._random.choices(names, weights)[0]]
            drawn = pool.draw(self._random)
            if drawn is not None:
                batch.append(self._proposal(pool.task, drawn))
                pool.known.add(drawn.decisions)
        return batch

    # --- the parts of a batch ------------------------------------------------------------------

    def _defaults(self, count: int, standing: Standing) -> list[Proposal]:
        """Candidates of which nothing was measured, with their default decisions."""
        found = []
        for name, pool in self._pools.items():
            worth = standing.worth.get(name)
            default = pool.task.candidate
            if worth is None or pool.best or default.decisions in pool.known:
                continue
            if worth.chosen or worth.seconds <= HOPELESS * worth.break_even:
                gain = pool.task.uses * worth.break_even * (2.0 if worth.chosen else 1.0)
                found.append(Proposal(pool.task, default, (), gain))
        found.sort(key=lambda proposal: -proposal.gain)
        return [self._proposal(each.task, each.candidate) for each in found[:count]]

    def _promising(
        self, count: int, standing: Standing, model: CostModel | None, uncertainty: float
    ) -> list[Proposal]:
        explored = sum(self._random.random() < EXPLORED for _ in range(count))
        ranked = sorted(self._ranked(standing, model, uncertainty), key=lambda p: -p.gain)
        batch: list[Proposal] = []
        taken: dict[Name, int] = {}
        while ranked and len(batch) < count - explored:
            # What a task gains shrinks with every kernel of it that is measured already.
            at = max(
                range(min(len(ranked), 4 * count)),
                key=lambda i: ranked[i].gain * DECAY ** taken.get(ranked[i].task.name, 0),
            )
            chosen = ranked.pop(at)
            taken[chosen.task.name] = taken.get(chosen.task.name, 0) + 1
            batch.append(chosen)
        weights = [p.task.uses * standing.worth[p.task.name].break_even for p in ranked]
        while ranked and len(batch) < count:
            at = self._random.choices(range(len(ranked)), weights)[0]
            batch.append(ranked.pop(at))
            weights.pop(at)
        return batch

    def _ranked(
        self, standing: Standing, model: CostModel | None, uncertainty: float
    ) -> list[Proposal]:
        """All open kernels with their expected gains."""
        proposals = [
            (proposal, standing.worth[name])
            for name, pool in self._pools.items()
            if name in standing.worth
            for proposal in pool.open.values()
            if proposal.features
        ]
        if not proposals:
            return []
        fastest = _fastest(standing)
        scores = None if model is None else model.scores([p.features for p, _ in proposals])
        ranked = []
        for i, (proposal, worth) in enumerate(proposals):
            if scores is None:
                seconds, deviation = worth.seconds, GUESS
            else:
                seconds = fastest[proposal.task.name[0]] * 2.0 ** -float(scores[i])
                deviation = uncertainty * math.log(2)
            gain = proposal.task.uses * expected_gain(worth.break_even, seconds, deviation)
            ranked.append(Proposal(proposal.task, proposal.candidate, proposal.features, gain))
        return ranked

    # --- pools -----------------------------------------------------------------------------------

    def _fill(self, standing: Standing) -> None:
        """Draw kernels for the tasks that matter."""

        def weight(pool: Pool) -> float:
            worth = standing.worth.get(pool.task.name)
            if worth is None or pool.exhausted:
                return 0.0
            near = min(1.0, worth.break_even / max(worth.seconds, 1e-12))
            return pool.task.uses * worth.break_even * near**2

        pools = sorted(self._pools.values(), key=lambda pool: -weight(pool))
        for place, pool in enumerate(pools):
            share = weight(pool) / max(standing.seconds, 1e-12)
            if share < 1e-3:
                break
            if not self._filled:
                self._refill(pool, FIRST)
            elif place < REFILLED:
                self._refill(pool, REFILL)
        self._filled = True

    def _refill(self, pool: Pool, count: int) -> None:
        for _ in range(count):
            if len(pool.open) >= POOL:
                pool.open.pop(next(iter(pool.open)))  # the oldest had its chances
            drawn = pool.draw(self._random)
            if drawn is None:
                pool.exhausted = not pool.open
                return
            pool.open[drawn.decisions] = self._proposal(pool.task, drawn)
            pool.known.add(drawn.decisions)

    def _proposal(self, task: Task, candidate: Candidate) -> Proposal:
        return Proposal(task, candidate, describe(candidate, self._traits))


def describe(candidate: Candidate, traits: TargetTraits) -> tuple[float, ...]:
    """The candidate's features; none where it cannot be scheduled, which measuring will tell."""
    try:
        return features(candidate, scheduled(candidate), traits)
    except Exception:  # TVM raises many types; the trial fails with the same error, and is recorded
        return ()


def _fastest(standing: Standing) -> Mapping[str, float]:
    """Seconds of the best kernel of each workload that was measured, else of the best at all."""
    best: dict[str, tuple[bool, float]] = {}
    for (key, _), worth in standing.worth.items():
        rank = (not worth.measured, worth.seconds)
        best[key] = min(best.get(key, rank), rank)
    return {key: seconds for key, (_, seconds) in best.items()}


def expected_gain(threshold: float, seconds: float, deviation: float) -> float:
    """E[max(0, threshold − t)] of a time t that is log-normal around `seconds`.

    Args:
        deviation: of the natural logarithm of t; above 0.
    """
    if threshold <= 0 or seconds <= 0:
        return 0.0
    d = (math.log(threshold) - math.log(seconds)) / deviation
    mean = seconds * math.exp(deviation**2 / 2)
    return max(0.0, threshold * _normal(d) - mean * _normal(d - deviation))


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
