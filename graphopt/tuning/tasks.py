"""What a model leaves to be tuned, and what each kernel is worth to the whole of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphopt.lowering.choose import Assignment
from graphopt.lowering.lower import Problem
from graphopt.lowering.prices import Advisor
from graphopt.tuning.codec import workload_key
from schedules.interface import Candidate, Decisions, Workload


@dataclass(frozen=True)
class Task:
    """A candidate of a workload, whose space is searched.

    uses: groups of the model, in all its shapes, that have the workload.
    """

    workload: Workload
    candidate: Candidate
    uses: int

    @property
    def name(self) -> tuple[str, str]:
        """The workload's key and the candidate's name."""
        return workload_key(self.workload), self.candidate.name


@dataclass(frozen=True)
class Worth:
    """What is known of a task beside its rivals.

    seconds: of its best kernel, or what the static table says. break_even: what its kernel would
    have to take for the model to be as fast as now; faster ones gain. chosen: whether the model
    uses it now. measured: whether `seconds` was.
    """

    seconds: float
    break_even: float
    chosen: bool
    measured: bool


@dataclass(frozen=True)
class Standing:
    """The model with the best kernels known: its seconds (kernels and layout changes), and tasks.

    chosen: names of the tasks that groups take, one per group; decisions: of those kernels.
    measured: whether each of its tunable kernels was measured, so that `seconds` is no guess.
    """

    seconds: float
    worth: Mapping[tuple[str, str], Worth]
    chosen: tuple[tuple[str, str], ...]
    decisions: Mapping[tuple[str, str], Decisions]
    measured: bool


def tasks_of(problems: Sequence[Problem]) -> list[Task]:
    """All tasks of these problems, each once: workloads with a candidate that has a space."""
    uses: dict[Workload, int] = {}
    candidates: dict[Workload, list[Candidate]] = {}
    for problem in problems:
        for index, offers in problem.offers.items():
            workload = problem.group(index).workload
            found = [offer.candidate for offer in offers]
            if any(candidate.space is not None for candidate in found):
                uses[workload] = uses.get(workload, 0) + 1
                candidates[workload] = found
    return [
        Task(workload, candidate, count)
        for workload, count in uses.items()
        for candidate in candidates[workload]
    ]


def standing(
    problems: Sequence[Problem],
    advisor: Advisor,
    fixed: Sequence[Mapping[int, str]] | None = None,
) -> Standing:
    """Where the model stands with what the advisor knows; its shapes count equally.

    Args:
        fixed: for each problem, the candidate's name that each group takes; by default the best.
    """
    total, measured = 0.0, True
    worth: dict[tuple[str, str], Worth] = {}
    chosen: list[tuple[str, str]] = []
    decisions: dict[tuple[str, str], Decisions] = {}
    for place, problem in enumerate(problems):
        offers = {
            index: advisor(problem.group(index).workload, [o.candidate for o in found])
            for index, found in problem.offers.items()
        }
        limit = problem.options.weight_limit
        assignment = Assignment(problem.dataflow, problem.entries, offers, problem.traits, limit)
        picks = (
            assignment.picks()
            if fixed is None
            else [
                [offer.candidate.name for offer in assignment.offers[number]].index(
                    fixed[place][index]
                )
                for number, index in enumerate(assignment.groups)
            ]
        )
        # What may be gained is judged without the limit on weights, which few models meet.
        free = assignment.seconds(assignment.solve(0.0))
        total += assignment.seconds(picks)
        seen: set[Workload] = set()
        for number, index in enumerate(assignment.groups):
            workload = problem.group(index).workload
            found = assignment.offers[number]
            if not any(offer.candidate.space is not None for offer in found):
                continue
            key = workload_key(workload)
            taken = found[picks[number]]
            chosen.append((key, taken.candidate.name))
            decisions[chosen[-1]] = taken.candidate.decisions
            measured &= taken.seconds is not None
            if workload in seen:
                continue
            seen.add(workload)
            for option, offer in enumerate(found):
                cost = float(assignment.nodes[number][option])
                slack = assignment.forced(number, option) - free
                name = (key, offer.candidate.name)
                took = option == picks[number]
                known = offer.seconds is not None
                worth[name] = Worth(cost, max(cost - slack, 0.0), took, known)
    return Standing(total, worth, tuple(chosen), decisions, measured)
