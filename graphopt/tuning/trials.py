"""A batch of trials: what looks best is measured again before it counts.

The best of many noisy times is partly the luckiest, and the more kernels are tried the more so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from graphopt.tuning.codec import workload_key
from graphopt.tuning.measure.client import Result, Server, Trial
from graphopt.tuning.records import OK

REPEATS = 2
"""How often, after the whole batch: what disturbed the machine may have passed by then."""


def measure(
    server: Server,
    trials: Sequence[Trial],
    best: Mapping[str, float],
    keep: Callable[[int, Result], None],
) -> None:
    """Measure each trial once, and those that seem faster than all before them again.

    Args:
        best: ratio of the fastest kernel of each workload so far, by the workload's key.
        keep: called once for each trial with its index and what came of it; also where an error
            or an interrupt ends the batch, for those that were measured at least once.

    Raises:
        TuningError: as Server.measure().
    """
    held: dict[int, list[Result]] = {}
    try:
        for index, result in server.measure(trials):
            key = workload_key(trials[index].workload)
            if result.status == OK and result.ratio < best.get(key, math.inf):
                held[index] = [result]
            else:
                keep(index, result)
        for _ in range(REPEATS):
            order = list(held)
            for place, result in server.measure([trials[index] for index in order]):
                held[order[place]].append(result)
    finally:
        for index, results in held.items():
            keep(index, typical(results))


def typical(results: Sequence[Result]) -> Result:
    """The middle one of several results of one kernel; a failure, if there is one."""
    for result in results:
        if result.status != OK:
            return result
    return sorted(results, key=lambda result: result.ratio)[len(results) // 2]
