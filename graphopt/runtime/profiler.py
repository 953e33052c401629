"""Where the time of a run goes: one row per kernel call, and one for everything else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

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


class Watch(Protocol):
    """The times of one run, in nanoseconds."""

    @property
    def total(self) -> int:
        """The whole run."""
        ...

    @property
    def calls(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Each call."""
        ...


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


class Meter:
    """The times of one run of a host program: per call of each segment's plan, summed up.

    The sites of a segment's calls are marked by where it stands among the segments.
    """

    def __init__(self) -> None:
        self._path: list[str] = []
        self._rows: dict[tuple[str, int], _Metered] = {}

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """What is added in here belongs to segment `name`."""
        self._path.append(name)
        try:
            yield
        finally:
            self._path.pop()

    def add(self, plan: Plan, nanoseconds: np.ndarray[Any, Any]) -> None:
        """Note one run of `plan`."""
        key = ("/".join(self._path), id(plan))
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Metered(plan, np.zeros(len(plan.calls)), 0)
        row.nanoseconds += nanoseconds
        row.runs += 1

    def rows(self) -> dict[tuple[str, int], _Metered]:
        """Path and identity of a plan → its plan, summed times and number of runs."""
        return self._rows


@dataclass
class _Metered:
    plan: Plan
    nanoseconds: np.ndarray[Any, Any]
    runs: int


def summarise_meters(meters: Sequence[tuple[int, Meter]]) -> Profile:
    """The profile of a host program: whole times in nanoseconds, and meters, of several runs.

    As in summarise(), only the faster half counts. A call's time, operations and bytes are those
    of all its runs together; runs that took other branches count with zero.
    """
    kept = sorted(meters, key=lambda item: item[0])[: (len(meters) + 1) // 2]
    total = sum(nanoseconds for nanoseconds, _ in kept) / len(kept) / 1e9
    found: dict[tuple[str, int], list[_Metered]] = {}
    for _, meter in kept:
        for key, row in meter.rows().items():
            found.setdefault(key, []).append(row)
    rows = []
    for position, ((path, _), metered) in enumerate(found.items()):
        plan = metered[0].plan
        # One segment may have several plans, for different shapes, with sites of the same names.
        twins = sum(other == path for other, _ in list(found)[:position])
        prefix = f"{path}@{twins}" if twins else path
        seconds = np.sum([row.nanoseconds for row in metered], axis=0) / len(kept) / 1e9
        runs = sum(row.runs for row in metered) / len(kept)
        rows += [
            ProfileRow(
                site=f"{prefix}/{call.site}",
                kernel=call.kernel,
                nodes=call.nodes,
                seconds=float(spent),
                share=float(spent) / total,
                flops=call.flops * runs,
                bytes=call.bytes * runs,
            )
            for call, spent in zip(plan.calls, seconds, strict=True)
        ]
    outside = total - sum(row.seconds for row in rows)
    return Profile(tuple(rows), outside, total, len(meters))


def summarise(plan: Plan, watches: Sequence[Watch]) -> Profile:
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
