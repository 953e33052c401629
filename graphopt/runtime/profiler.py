"""Where the time of a run goes: one row per kernel call, and one for everything else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.codegen.abi import TIMESPEC_BYTES
from graphopt.codegen.plan import Plan
from graphopt.runtime.memory import address


@dataclass(frozen=True)
class ProfileRow:
    """One kernel call.

    Attributes:
        site, kernel, nodes, flops, bytes: as in the plan's Call.
        seconds: mean time from the barrier before the call to the barrier after it.
        share: of the whole run, 0 … 1.
    """

    site: str
    kernel: str
    nodes: tuple[str, ...]
    seconds: float
    share: float
    flops: float
    bytes: float


@dataclass(frozen=True)
class Profile:
    """Mean times of the faster half of the measured runs.

    Attributes:
        rows: one per kernel call, in the order of execution.
        outside_seconds: what was not spent in kernels: binding inputs, making outputs, waking
            the workers. Rows and this sum to `total_seconds`.
        total_seconds: a whole run.
        repeats: runs that were measured.
    """

    rows: tuple[ProfileRow, ...]
    outside_seconds: float
    total_seconds: float
    repeats: int


class Stopwatch:
    """The times of one run: the caller's, and those that worker 0 notes after each call."""

    def __init__(self, calls: int) -> None:
        self._stamps = np.zeros((calls + 1, TIMESPEC_BYTES // 8), np.int64)  # seconds, nanoseconds
        self._begin = self._end = 0
        self.address = address(self._stamps)

    def start(self) -> None:
        """The run begins."""
        self._begin = time.monotonic_ns()  # the clock that compiled code reads

    def stop(self) -> None:
        """The run has ended."""
        self._end = time.monotonic_ns()

    @property
    def total(self) -> int:
        """The whole run, in nanoseconds."""
        return self._end - self._begin

    @property
    def calls(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Nanoseconds of each call."""
        return np.diff(self._stamps[:, 0] * 1_000_000_000 + self._stamps[:, 1])


def summarise(plan: Plan, watches: Sequence[Stopwatch]) -> Profile:
    """The profile of `plan` from the times of several runs.

    Only the faster half counts: on a shared machine the slower runs measure the neighbours. Means
    are used throughout because, unlike medians, they add up.
    """
    kept = sorted(watches, key=lambda watch: watch.total)[: (len(watches) + 1) // 2]
    total = sum(watch.total for watch in kept) / len(kept) / 1e9
    seconds = np.mean([watch.calls for watch in kept], axis=0) / 1e9
    rows = tuple(
        ProfileRow(
            site=call.site,
            kernel=call.kernel,
            nodes=call.nodes,
            seconds=float(spent),
            share=float(spent) / total,
            flops=call.flops,
            bytes=call.bytes,
        )
        for call, spent in zip(plan.calls, seconds, strict=True)
    )
    outside = total - sum(row.seconds for row in rows)
    return Profile(rows, outside, total, len(watches))
