"""The account of a tuning run: while it goes, and when it has ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.tuning.advice import Name
from graphopt.tuning.knowledge import Knowledge
from graphopt.tuning.tasks import Standing, Task
from schedules.interface import Decisions, Workload


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

    before, after: seconds of the kernels that were taken before the run and are taken now, both as
    far as it measured them; share: of the model's time, now. origin: "tuned", or "default" if the
    kernel was not measured. trials: kernels of the workload that were measured.
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

    before, after: expected seconds of the model with the kernels taken before the run and now.
    reason: why it ended. history: (seconds since the start, trials, expected seconds of the model)
    of each batch.
    """

    target: str
    trials: int
    ok: int
    failed: int
    seconds: float
    before: float
    after: float
    reason: str
    rows: tuple[TaskRow, ...]
    history: tuple[tuple[float, int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        plain = asdict(self)
        for row, found in zip(plain["rows"], self.rows, strict=True):
            row["decisions"] = dict(found.decisions)
        return plain


def progress_rows(
    tasks: dict[Name, Task], knowledge: Knowledge, first: Standing, now: Standing
) -> tuple[TaskProgress, ...]:
    """The workloads of a model, by their share of its time."""
    trials, failed = _counts(knowledge)
    before = dict(first.chosen)
    rows = [
        TaskProgress(
            describe(tasks[key, name].workload),
            now.chosen.count((key, name)),
            name,
            first.worth[key, before[key]].seconds,
            now.worth[key, name].seconds,
            trials[key],
            failed[key],
        )
        for key, name in dict.fromkeys(now.chosen)
    ]
    return tuple(sorted(rows, key=lambda row: -row.uses * row.best))


def closing_rows(
    tasks: dict[Name, Task], knowledge: Knowledge, before: Standing, after: Standing
) -> tuple[TaskRow, ...]:
    """The workloads of a model, by their share of its time, with what became of their kernels."""
    trials, _ = _counts(knowledge)
    earlier = dict(before.chosen)
    rows = []
    for key, name in dict.fromkeys(after.chosen):
        worth, uses = after.worth[key, name], after.chosen.count((key, name))
        rows.append(
            TaskRow(
                describe(tasks[key, name].workload),
                uses,
                name,
                after.decisions[key, name],
                before.worth[key, earlier.get(key, name)].seconds,
                worth.seconds,
                uses * worth.seconds / max(after.seconds, 1e-12),
                "tuned" if worth.measured else "default",
                trials[key],
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.share))


def describe(workload: Workload) -> str:
    """A workload in few words, for people."""
    op = workload.op
    shapes = " × ".join("x".join(map(str, sig.shape)) for sig in op.inputs[:2])
    steps = [step.op for step in workload.epilogue.steps]
    return f"{op.kind} {shapes}" + (f" + {', '.join(steps)}" if steps else "")


def _counts(knowledge: Knowledge) -> tuple[Counter[str], Counter[str]]:
    """Trials, and those that failed, by workload."""
    trials = knowledge.trials()
    return (
        Counter(record.workload_key for record in trials),
        Counter(record.workload_key for record in trials if not record.ok),
    )
