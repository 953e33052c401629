"""The tuning loop: propose, measure, record, learn, until budget or hope are spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import tvm

from graphopt.lowering.lower import Problem
from graphopt.lowering.prices import Offer
from graphopt.target import TargetSpec
from graphopt.tuning.advice import advise
from graphopt.tuning.codec import trace_key, workload_key
from graphopt.tuning.cost_model import CostModel
from graphopt.tuning.database import Writer
from graphopt.tuning.finals import Profiler, Variant, distinct, results, variants
from graphopt.tuning.knowledge import Knowledge
from graphopt.tuning.measure.client import Result, Server, Trial
from graphopt.tuning.measure.fleet import Fleet
from graphopt.tuning.outcome import Outcome, Progress, closing_rows, progress_rows
from graphopt.tuning.pool import Proposal
from graphopt.tuning.records import Record
from graphopt.tuning.search import Search
from graphopt.tuning.tasks import Standing, standing, tasks_of
from graphopt.tuning.trials import measure
from schedules.interface import Candidate, Workload
from schedules.space import VERSION as SCHEDULES

BATCH = 16
NIL = 5e-4
"""A batch that is expected to gain less than this share of the model's time is not worth it."""
PATIENCE = 3
"""So many batches without hope end the search."""
JUDGED_EVERY = 4
"""Every so many batches, the model's error is measured."""
FIRST_UNCERTAINTY, UNCERTAINTIES = 0.5, (0.08, 0.6)
"""Of the model, before it is known, and its bounds."""
FINAL_STAGES = 2
"""Finals are held again where they bring up kernels that did not take part."""
FINAL_SHARE = 0.1
"""Share of a time limit that is kept for the finals."""


@dataclass(frozen=True)
class Budget:
    """When to stop: trials, seconds from the start, or once the model takes `latency` seconds."""

    trials: int
    seconds: float = math.inf
    latency: float = 0.0


class Tuner:
    """One run on one model for one target."""

    def __init__(
        self,
        problems: Sequence[Problem],
        target: TargetSpec,
        threads: int,
        writer: Writer,
        records: Sequence[Record],
        profile: Profiler,
        pretrained: CostModel | None = None,
        *,
        fleet: Fleet | None = None,
        learn: bool = True,
        seed: int = 0,
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Args:
        problems: the model, once per set of shapes, with default kernels offered.
        records: known before; kernels in them are not measured again.
        profile: runs variants of the program, for the finals.
        pretrained: a cost model whose lessons count beside the records.
        fleet: other machines that run the kernels.
        learn: False measures kernels at random, to compare with.
        watch: called after every batch.
        """
        self._problems, self._target, self._threads = problems, target, threads
        self._writer = writer
        self._known = Knowledge(target.key(threads), records, pretrained)
        self._learn, self._watch = learn, watch
        self._profile, self._fleet = profile, fleet
        self._tasks = {task.name: task for task in tasks_of(problems)}
        self._search = Search(list(self._tasks.values()), target.traits(threads), seed)
        self._history: list[tuple[float, int, float]] = []
        self._uncertainty = FIRST_UNCERTAINTY
        self._started = time.monotonic()
        self._first = self._standing()
        self._before = [self._taken(problem) for problem in problems]
        for name, record in self._known.advice().others.items():
            self._search.seed(name, record.decisions)
        for record in self._known.own():
            if not record.final:
                self._tell(record)

    def run(self, budget: Budget) -> Outcome:
        """Tune; what was measured is in the log even if this ends with an error.

        Raises:
            TuningError: the log cannot be written, or nothing can be measured.
        """
        reason = "there is nothing to tune"
        if self._tasks:
            with Server(self._target, self._threads, fleet=self._fleet) as server:
                try:
                    reason = self._explore(server, budget)
                    self._report("finals", self._standing())
                    self._finals(server, budget)
                except KeyboardInterrupt:
                    reason = "interrupted"
        after = self._standing()
        self._report("done", after)
        return self._outcome(reason, after)

    # --- the search ------------------------------------------------------------------------------

    def _explore(self, server: Server, budget: Budget) -> str:
        """Measure until something ends it; says what."""
        hopeless = 0
        slowest = 0.0  # batch, in seconds
        while True:
            left = budget.trials - len(self._known.trials())
            if left <= 0:
                return "all trials are spent"
            if self._elapsed() + slowest > budget.seconds * (1 - FINAL_SHARE):
                return "the time is up"
            now = self._standing()
            self._history.append((self._elapsed(), len(self._known.trials()), now.seconds))
            self._report("search", now)
            if now.measured and now.seconds <= budget.latency:
                return "the target latency is reached"
            batch = self._batch(min(BATCH, left), now)
            if not batch:
                return "every kernel was measured"
            # The first kernel of a candidate comes without an expected gain.
            gain = sum(proposal.gain for proposal in batch)
            hopeful = gain > NIL * now.seconds or not all(proposal.gain for proposal in batch)
            hopeless = 0 if hopeful else hopeless + 1
            if hopeless == PATIENCE:
                return "no more gain is expected"
            begun = self._elapsed()
            self._measure(server, batch, now)
            slowest = max(slowest, self._elapsed() - begun)

    def _batch(self, count: int, now: Standing) -> list[Proposal]:
        if not self._learn:
            return self._search.propose_randomly(count, now)
        if len(self._history) % JUDGED_EVERY == 0:
            found = self._known.uncertainty(self._threads)
            if found is not None:
                self._uncertainty = min(max(found, UNCERTAINTIES[0]), UNCERTAINTIES[1])
        model = self._known.model(self._threads)
        return self._search.propose(count, now, model, self._uncertainty)

    def _measure(self, server: Server, batch: Sequence[Proposal], now: Standing) -> None:
        best: dict[str, float] = {}
        for (key, _), worth in now.worth.items():
            if worth.measured:
                best[key] = min(best.get(key, math.inf), worth.seconds)
        trials = [
            Trial(
                p.task.workload, p.candidate.name, p.decisions, best.get(p.task.name[0], math.inf)
            )
            for p in batch
        ]

        def keep(index: int, result: Result) -> None:
            self._tell(self._keep(batch[index], result))

        measure(server, trials, self._known.fastest(), keep)

    def _keep(self, proposal: Proposal, result: Result, final: bool = False) -> Record:
        """Write what came of a kernel to the log."""
        record = Record(
            target=self._known.key,
            tvm=tvm.__version__,
            schedules=SCHEDULES,
            workload=proposal.task.workload,
            candidate=proposal.candidate.name,
            decisions=proposal.decisions,
            status=result.status,
            seconds=result.seconds,
            ratio=result.ratio,
            error=result.error,
            final=final,
            features=proposal.features,
            reason=result.reason,
            when=time.time(),
        )
        self._writer.append([record])
        self._known.add(record)
        return record

    def _tell(self, record: Record) -> None:
        name = (record.workload_key, record.candidate)
        self._search.tell(name, record.decisions, record.ratio if record.ok else None)

    # --- the finals ------------------------------------------------------------------------------

    def _finals(self, server: Server, budget: Budget) -> None:
        """Run the best kernels inside the program; what they take there decides.

        The winner meets the default, and what was there before, once more: the best of many is
        partly the luckiest.
        """
        for problem, before in zip(self._problems, self._before, strict=True):
            rivals = [problem.choice(), before]
            for _ in range(FINAL_STAGES):
                if self._elapsed() > budget.seconds or self._settled(problem):
                    break
                self._final(server, problem, variants(problem, self._known.own(), rivals))
                again = distinct([*rivals, self._taken(problem)])
                if self._elapsed() < budget.seconds and len(again) > 1:
                    self._final(server, problem, again)

    def _final(self, server: Server, problem: Problem, chosen: Sequence[Variant]) -> None:
        seconds, reference = self._profile(server, problem, chosen)
        for each in results(problem, chosen, seconds):
            task = self._tasks[workload_key(each.workload), each.candidate.name]
            result = Result("ok", each.seconds, each.seconds / reference)
            self._keep(Proposal(task, each.candidate, ()), result, final=True)

    def _taken(self, problem: Problem) -> Variant:
        """What a program would be made of now."""
        advice = self._known.advice()
        offers = {
            index: advice(problem.group(index).workload, [o.candidate for o in given])
            for index, given in problem.offers.items()
        }
        return replace(problem, offers=offers).choice()

    def _settled(self, problem: Problem) -> bool:
        """Whether all kernels that would be taken now have run in the program."""
        finals = {(r.workload_key, r.trace_key) for r in self._known.own() if r.final}
        return all(
            (
                workload_key(problem.group(index).workload),
                trace_key(offer.candidate.name, offer.candidate.decisions),
            )
            in finals
            for index, offer in self._taken(problem).items()
            if offer.candidate.space is not None
        )

    # --- the account -----------------------------------------------------------------------------

    def _standing(self) -> Standing:
        return standing(self._problems, self._known.advice())

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _report(self, phase: str, now: Standing) -> None:
        trials = self._known.trials()
        self._watch(
            Progress(
                phase,
                len(trials),
                sum(not record.ok for record in trials),
                self._elapsed(),
                now.seconds,
                self._first.seconds,
                progress_rows(self._tasks, self._known, self._first, now),
            )
        )

    def _outcome(self, reason: str, after: Standing) -> Outcome:
        trials = self._known.trials()
        self._history.append((self._elapsed(), len(trials), after.seconds))
        failed = sum(not record.ok for record in trials)
        before = self._first_measured()
        return Outcome(
            self._known.key,
            len(trials),
            len(trials) - failed,
            failed,
            self._elapsed(),
            before.seconds,
            after.seconds,
            reason,
            closing_rows(self._tasks, self._known, before, after),
            tuple(self._history),
        )

    def _first_measured(self) -> Standing:
        """Where the model stood before, by the times that are known of those kernels now."""
        taken = self._first.decisions
        records = [
            record
            for record in self._known.own()
            if taken.get((record.workload_key, record.candidate)) == record.decisions
        ]
        now = self._known.advice()
        earlier = replace(advise(records, self._known.key), second=now.second, context=now.context)

        def advisor(workload: Workload, candidates: Sequence[Candidate]) -> tuple[Offer, ...]:
            """Whatever was taken then with its time then, and the others as they are known now."""
            key = workload_key(workload)
            pairs = zip(now(workload, candidates), earlier(workload, candidates), strict=True)
            return tuple(
                then if (key, then.candidate.name) in taken else new for new, then in pairs
            )

        names = [
            {index: offer.candidate.name for index, offer in variant.items()}
            for variant in self._before
        ]
        return standing(self._problems, advisor, names)
