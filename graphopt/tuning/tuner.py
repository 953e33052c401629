"""The tuning loop: propose, measure, record, learn, until budget or hope are spent."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import tvm

from graphopt.lowering.lower import Problem
from graphopt.target import TargetSpec
from graphopt.tuning.advice import advise
from graphopt.tuning.codec import trace_key, workload_key
from graphopt.tuning.cost_model import CostModel, train
from graphopt.tuning.database import Writer
from graphopt.tuning.finals import Profiler, results, variants
from graphopt.tuning.measure.client import Result, Server, Trial
from graphopt.tuning.records import Record
from graphopt.tuning.search import Proposal, Search
from graphopt.tuning.tasks import Standing, Task, standing, tasks_of
from schedules.interface import Decisions
from schedules.space import VERSION as SCHEDULES

log = logging.getLogger(__name__)

BATCH = 16
NIL = 5e-4
"""A batch that is expected to gain less than this share of the model's time is not worth it."""
PATIENCE = 3
"""So many batches without hope end the search."""
CALIBRATED = 4
"""Every so many batches, the model's error is measured."""
FINAL_STAGES = 2
"""Finals are held again where they bring up kernels that did not take part."""
FINAL_SHARE = 0.1
"""Share of a time limit that is kept for the finals."""

Name = tuple[str, str]


@dataclass(frozen=True)
class Budget:
    """When to stop: trials, seconds from the start, or once the model takes `latency` seconds."""

    trials: int
    seconds: float = math.inf
    latency: float = 0.0


@dataclass(frozen=True)
class TaskProgress:
    """One workload during a run: expected seconds of its kernels at first and now."""

    workload: str
    uses: int
    candidate: str
    first: float
    best: float
    trials: int
    failed: int


@dataclass(frozen=True)
class Progress:
    """How far a run is, after each batch.

    latency: expected seconds of the model. phase: "search", "finals" or "done". tasks: workloads
    by their share of the model's time, the largest first.
    """

    phase: str
    trials: int
    failed: int
    seconds: float
    latency: float
    first_latency: float
    tasks: tuple[TaskProgress, ...]


@dataclass(frozen=True)
class TaskRow:
    """One workload of the closing report.

    before, after: seconds of the kernels taken with the records known before and now; share: of
    the model's time, now. origin: "tuned", "borrowed" or "default".
    """

    workload: str
    uses: int
    candidate: str
    decisions: Decisions
    before: float
    after: float
    share: float
    origin: str
    trials: int


@dataclass(frozen=True)
class Outcome:
    """What a run came to: trials are distinct kernels, `ok` of them work, `failed` do not.

    history: (seconds since the start, trials, expected seconds of the model) of each batch.
    """

    target: str
    trials: int
    ok: int
    failed: int
    seconds: float
    before: float
    after: float
    reason: str  # why it ended
    rows: tuple[TaskRow, ...]
    history: tuple[tuple[float, int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        plain = asdict(self)
        for row, found in zip(plain["rows"], self.rows, strict=True):
            row["decisions"] = dict(found.decisions)
        return plain


@dataclass
class _State:
    """Records of earlier runs and of this one."""

    records: list[Record]
    mine: list[Record] = field(default_factory=list)

    def all(self) -> list[Record]:
        return self.records + self.mine


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
        learn: bool = True,
        seed: int = 0,
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Args:
        problems: the model, once per set of shapes.
        records: known before; kernels in them are not measured again.
        profile: runs variants of the program, for the finals.
        pretrained: a cost model for the time before there are records to learn from.
        learn: False measures kernels at random, to compare with.
        watch: called after every batch.
        """
        self._problems, self._target, self._threads = problems, target, threads
        self._key = target.key(threads)
        self._writer, self._state = writer, _State(list(records))
        self._pretrained, self._learn, self._watch = pretrained, learn, watch
        self._profile = profile
        self._tasks = tasks_of(problems)
        self._by_name = {task.name: task for task in self._tasks}
        self._search = Search(self._tasks, target.traits(threads), seed)
        self._history: list[tuple[float, int, float]] = []
        self._first: Standing | None = None
        self._uncertainty = 0.5
        self._started = time.monotonic()
        self._before = {(r.workload_key, r.trace_key) for r in records if r.target == self._key}
        names = {task.name for task in self._tasks}
        for record in records:
            name = (record.workload_key, record.candidate)
            if record.target == self._key and name in names:
                self._search.tell(name, record.decisions, record.ratio if record.ok else None)

    def run(self, budget: Budget) -> Outcome:
        """Tune; what was measured is in the log even if this ends with an error.

        Raises:
            TuningError: the log cannot be written, or nothing can be measured.
        """
        before = self._standing()
        reason = "there is nothing to tune"
        if self._tasks:
            with Server(self._target, self._threads) as server:
                try:
                    reason = self._explore(server, budget)
                except KeyboardInterrupt:
                    reason = "interrupted"
                else:
                    self._report("finals", self._standing())
                    try:
                        self._finals(server, budget)
                    except KeyboardInterrupt:
                        reason = "interrupted in the finals"
        self._report("done", self._standing())
        return self._outcome(before, reason)

    # --- the loop --------------------------------------------------------------------------------

    def _explore(self, server: Server, budget: Budget) -> str:
        hopeless = 0
        while True:
            left = budget.trials - len(self._trials())
            if left <= 0:
                return "all trials are spent"
            if self._elapsed() > budget.seconds * (1 - FINAL_SHARE):
                return "the time is up"
            now = self._standing()
            self._history.append((self._elapsed(), len(self._trials()), now.seconds))
            self._report("search", now)
            if now.measured and now.seconds <= budget.latency:
                return "the target latency is reached"
            batch = self._batch(min(BATCH, left), now)
            if not batch:
                return "every kernel was measured"
            hopeful = any(not p.gain for p in batch) or (
                sum(p.gain for p in batch) > NIL * now.seconds
            )
            hopeless = 0 if hopeful else hopeless + 1
            if hopeless == PATIENCE:
                return "no more gain is expected"
            self._measure(server, batch, now)
            if len(self._history) % CALIBRATED == 0:
                self._calibrate()

    def _batch(self, count: int, now: Standing) -> list[Proposal]:
        if not self._learn:
            return self._search.propose_randomly(count, now)
        model = train(self._learnable(), self._threads) or self._pretrained
        return self._search.propose(count, now, model, self._uncertainty)

    def _learnable(self) -> list[Record]:
        return [record for record in self._state.all() if record.features]

    def _measure(self, server: Server, batch: Sequence[Proposal], now: Standing) -> None:
        best = {name: worth.seconds for name, worth in now.worth.items() if worth.measured}
        trials = [
            Trial(
                p.task.workload,
                p.candidate.name,
                p.decisions,
                min((s for (key, _), s in best.items() if key == p.task.name[0]), default=math.inf),
            )
            for p in batch
        ]
        for index, result in server.measure(trials):
            proposal = batch[index]
            record = self._record(proposal, result)
            self._writer.append([record])
            self._state.mine.append(record)
            ratio = record.ratio if record.ok else None
            self._search.tell(proposal.task.name, proposal.decisions, ratio)

    def _calibrate(self) -> None:
        """The model's error on kernels it has not seen: learn from three quarters, ask the rest."""
        records = [record for record in self._learnable() if record.ok]
        if len(records) < 40:
            return
        held = records[::4]
        model = train([r for i, r in enumerate(records) if i % 4], self._threads)
        if model is None:
            return
        best: dict[str, float] = {}
        for record in records:
            best[record.workload_key] = min(best.get(record.workload_key, math.inf), record.ratio)
        truths = [math.log2(best[r.workload_key] / r.ratio) for r in held]
        scores = model.scores([r.features for r in held])
        near = [abs(s - t) for s, t in zip(scores, truths, strict=True) if t > -1]
        if near:
            self._uncertainty = min(0.6, max(0.08, 1.4826 * median(near)))

    def _finals(self, server: Server, budget: Budget) -> None:
        """Run the best kernels inside the program; what they take there decides."""
        for problem in self._problems:
            for _ in range(FINAL_STAGES):
                if self._elapsed() > budget.seconds or self._settled(problem):
                    break
                chosen = variants(problem, self._own())
                before = server.reference_seconds()
                seconds = self._profile(problem, chosen)
                second = 0.5 * (before + server.reference_seconds())
                for finalist in results(problem, chosen, seconds):
                    name = (workload_key(finalist.workload), finalist.candidate.name)
                    if name not in self._by_name:
                        continue
                    known = [r for r in self._ranked(name)
                             if r.decisions == finalist.candidate.decisions]  # fmt: skip
                    features = known[0].features if known else ()
                    proposal = Proposal(self._by_name[name], finalist.candidate, features)
                    taken = Result("ok", finalist.seconds, finalist.seconds / second)
                    record = replace(self._record(proposal, taken), final=True)
                    self._writer.append([record])
                    self._state.mine.append(record)

    def _settled(self, problem: Problem) -> bool:
        """Whether all kernels that would be taken now have run in the program."""
        advice = advise(self._state.all(), self._key)
        finals = {(r.workload_key, r.trace_key) for r in self._own() if r.final}
        offers = {
            index: advice(problem.group(index).workload, [o.candidate for o in given])
            for index, given in problem.offers.items()
        }
        for index, offer in replace(problem, offers=offers).choice().items():
            candidate = offer.candidate
            key = workload_key(problem.group(index).workload)
            if candidate.space is not None and (
                (key, trace_key(candidate.name, candidate.decisions)) not in finals
            ):
                return False
        return True

    def _own(self) -> list[Record]:
        return [record for record in self._state.all() if record.target == self._key]

    def _ranked(self, name: Name) -> list[Record]:
        """The records of a task's kernels that work, best first, one for each kernel."""
        found: dict[Decisions, Record] = {}
        for record in self._state.all():
            if (record.workload_key, record.candidate) != name or record.target != self._key:
                continue
            present = found.get(record.decisions)
            if record.ok and (present is None or record.final >= present.final):
                found[record.decisions] = record
        return sorted(found.values(), key=lambda record: record.ratio)

    # --- what is known -------------------------------------------------------------------------

    def _record(self, proposal: Proposal, result: Result) -> Record:
        return Record(
            target=self._key,
            tvm=tvm.__version__,
            schedules=SCHEDULES,
            workload=proposal.task.workload,
            candidate=proposal.candidate.name,
            decisions=proposal.decisions,
            status=result.status,
            seconds=result.seconds,
            ratio=result.ratio,
            error=result.error,
            features=proposal.features,
            reason=result.reason,
            when=time.time(),
        )

    def _standing(self) -> Standing:
        return standing(self._problems, advise(self._state.all(), self._key))

    def _trials(self) -> list[Record]:
        """The kernels that this run was the first to measure."""
        found = {(r.workload_key, r.trace_key): r for r in reversed(self._state.mine)}
        return [record for key, record in found.items() if key not in self._before]

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _report(self, phase: str, now: Standing) -> None:
        trials = self._trials()
        self._first = self._first or now
        tasks = {task.name: task for task in self._tasks}
        before = dict(self._first.chosen)
        rows = []
        for key, name in dict.fromkeys(now.chosen):
            mine = [record for record in trials if record.workload_key == key]
            rows.append(
                TaskProgress(
                    summary(tasks[key, name]),
                    now.chosen.count((key, name)),
                    name,
                    self._first.worth[key, before[key]].seconds,
                    now.worth[key, name].seconds,
                    len(mine),
                    sum(not record.ok for record in mine),
                )
            )
        rows.sort(key=lambda row: -row.uses * row.best)
        self._watch(
            Progress(
                phase,
                len(trials),
                sum(not record.ok for record in trials),
                self._elapsed(),
                now.seconds,
                self._first.seconds,
                tuple(rows),
            )
        )

    def _outcome(self, before: Standing, reason: str) -> Outcome:
        after = self._standing()
        self._history.append((self._elapsed(), len(self._trials()), after.seconds))
        trials = self._trials()
        counts: dict[str, int] = {}
        for record in trials:
            counts[record.workload_key] = counts.get(record.workload_key, 0) + 1
        rows = []
        tasks = {task.name: task for task in self._tasks}
        first = dict(before.chosen)
        for key, name in dict.fromkeys(after.chosen):
            task, worth = tasks[key, name], after.worth[key, name]
            ranked = self._ranked((key, name))
            earlier = self._default_seconds((key, first.get(key, name)), before)
            uses = after.chosen.count((key, name))
            rows.append(
                TaskRow(
                    summary(task),
                    uses,
                    name,
                    ranked[0].decisions if ranked else task.candidate.decisions,
                    earlier,
                    worth.seconds,
                    uses * worth.seconds / max(after.seconds, 1e-12),
                    "tuned" if worth.measured else "default",
                    counts.get(key, 0),
                )
            )
        rows.sort(key=lambda row: -row.share)
        start = self._history[0][2] if self._history else before.seconds
        failed = sum(not record.ok for record in trials)
        return Outcome(
            self._key,
            len(trials),
            len(trials) - failed,
            failed,
            self._elapsed(),
            start,
            after.seconds,
            reason,
            tuple(rows),
            tuple(self._history),
        )

    def _default_seconds(self, name: Name, before: Standing) -> float:
        """What the kernel that was taken before this run takes, as measured now if it was."""
        worth = before.worth.get(name)
        if worth is None or worth.measured:
            return worth.seconds if worth else 0.0
        task = next(task for task in self._tasks if task.name == name)
        for record in self._ranked(name):
            if record.decisions == task.candidate.decisions:
                return record.ratio * advise(self._state.all(), self._key).second
        return worth.seconds


def summary(task: Task) -> str:
    """A workload in few words, for people."""
    op = task.workload.op
    shapes = " × ".join("x".join(map(str, sig.shape)) for sig in op.inputs[:2])
    steps = [step.op for step in task.workload.epilogue.steps]
    return f"{op.kind} {shapes}" + (f" + {', '.join(steps)}" if steps else "")
