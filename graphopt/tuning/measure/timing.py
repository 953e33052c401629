"""Checks a kernel's result and times it; runs in a child of the measure server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.tuning.advice import replay
from graphopt.tuning.measure.program import Array, Measured
from graphopt.tuning.measure.reference import LIMIT, offers
from schedules.interface import Candidate, TargetTraits, Workload

TIMED_SECONDS = 0.04
"""Time that a kernel runs for its measurement, unless that would be more than MOST_RUNS."""
FEWEST_RUNS, MOST_RUNS = 4, 200
TURNS, TURN_SECONDS = 7, 0.1
"""Of each program in the finals."""
HOPELESS = 3.0
"""A kernel so many times slower than the best of its workload is timed no further."""


def find_candidate(
    workload: Workload, name: str, decisions: dict[str, int], traits: TargetTraits
) -> Candidate:
    """The candidate `name` of a workload with these decisions.

    Raises:
        LookupError: there is no such candidate, or the decisions do not fit it.
    """
    for candidate in offers(workload, traits):
        if candidate.name != name:
            continue
        made = replay(candidate, tuple(decisions.items()))
        if made is not None:
            return made
        raise LookupError(f"{name} has no kernel with {decisions}")
    raise LookupError(f"no candidate is called {name}")


def timed(program: Measured, expected: Array, best: float) -> dict[str, Any]:
    """Check a program, and time one call of its kernel.

    Args:
        best: seconds of the fastest kernel so far; one that is hopeless beside it is timed once.
    """
    error = relative_error(program.run(), expected)
    if not error <= LIMIT:
        return {"status": "wrong", "reason": f"it is off by {error:.2g}", "error": min(error, 1e9)}
    seconds = program.seconds(1)
    if seconds < HOPELESS * best:
        repeats = int(TIMED_SECONDS / (seconds * program.copies))
        seconds = program.seconds(max(FEWEST_RUNS, min(MOST_RUNS, repeats)))
    return {"status": "ok", "seconds": seconds, "error": error}


def take_turns(programs: Sequence[Callable[[int], list[float]]]) -> list[list[list[float]]]:
    """Seconds of each call, in each turn, of each program.

    Args:
        programs: run so many times, a program says what each of its calls takes.
    """
    once = sum(programs[0](1))
    repeats = max(3, min(500, round(TURN_SECONDS / once)))
    times: list[list[list[float]]] = [[] for _ in programs]
    for turn in range(TURNS):
        order = range(len(programs)) if turn % 2 == 0 else reversed(range(len(programs)))
        for number in order:
            times[number].append(programs[number](repeats))
    return times


def relative_error(found: Array, expected: Array) -> float:
    """Largest difference, relative to the largest expected value; inf where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    if found.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else float("inf")
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0.0)) / scale
