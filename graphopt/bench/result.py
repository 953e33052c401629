"""What a comparison yields: latencies, paired ratios with their spread, and why a row failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes of a sample."""

    median: float
    low: float
    high: float
    minimum: float
    maximum: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Summarise `values` (at least one)."""
        if len(values) == 1:
            return Spread(values[0], values[0], values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return Spread(median(values), low, high, min(values), max(values))


@dataclass(frozen=True)
class EngineResult:
    """One engine on one model. Times in seconds, memory in bytes (of its whole process).

    latencies: one per round, the median iteration of that round's turn.
    compile_seconds: model file to something that can run; for graphopt the compilation, in a
        process of its own, after which `load_seconds` loads the artifact.
    """

    name: str
    version: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    compile_seconds: float = math.nan
    compile_peak_bytes: int = 0
    load_seconds: float = math.nan
    run_peak_bytes: int = 0
    latencies: tuple[float, ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def latency(self) -> float:
        """Median latency in seconds; nan if nothing was measured."""
        return median(self.latencies) if self.latencies else math.nan

    @property
    def error(self) -> float:
        """Worst relative error over the outputs; nan if none was compared."""
        return max(self.errors.values(), default=math.nan)


def paired_ratios(subject: EngineResult, peer: EngineResult) -> Spread | None:
    """Spread of subject ÷ peer, round by round; below 1 the subject is faster. None if unmeasured.

    Pairing within a round cancels what slows the whole machine for a while.
    """
    pairs = list(zip(subject.latencies, peer.latencies, strict=False))
    return Spread.of([s / p for s, p in pairs]) if pairs else None


@dataclass(frozen=True)
class Row:
    """One model: the engine under test, its peers, and every reason why the row does not count.

    beside: engines that are measured as well, but may fail: nothing is judged by them.
    """

    model: str
    threads: int
    subject: EngineResult
    peers: tuple[EngineResult, ...]
    failures: tuple[str, ...]
    beside: tuple[EngineResult, ...] = ()

    @property
    def ok(self) -> bool:
        """True if every engine loaded, ran and gave the right outputs."""
        return not self.failures

    @property
    def ratios(self) -> dict[str, Spread]:
        """Ratio of latencies subject ÷ peer for each peer that was measured."""
        return self._ratios(self.peers)

    @property
    def ratios_beside(self) -> dict[str, Spread]:
        """The same for the engines beside that gave the right outputs."""
        return self._ratios([engine for engine in self.beside if engine.failure is None])

    def _ratios(self, peers: Iterable[EngineResult]) -> dict[str, Spread]:
        found = {peer.name: paired_ratios(self.subject, peer) for peer in peers}
        return {name: ratio for name, ratio in found.items() if ratio is not None}

    @property
    def ratio_to_fastest(self) -> float:
        """Median ratio to the fastest peer (the largest of the ratios); nan without peers."""
        return max((ratio.median for ratio in self.ratios.values()), default=math.nan)


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive values; nan if there are none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
