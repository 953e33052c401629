"""What a run knows: the records from before it, and its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from graphopt.tuning.advice import Advice, advise
from graphopt.tuning.cost_model import CostModel, train
from graphopt.tuning.records import Record

RETRAINED = 1.1
"""The model is trained again when there are so many times the records, what it was taught before
this run not counted."""
_JUDGED = 40
"""With fewer records, the model's error is not known."""


class Knowledge:
    """Records for one target key; those of other targets only teach the cost model."""

    def __init__(
        self, key: str, records: Sequence[Record], pretrained: CostModel | None = None
    ) -> None:
        """pretrained: a cost model whose lessons count as well."""
        self.key, self._pretrained = key, pretrained
        self._earlier, self._mine = list(records), list[Record]()
        self._model: CostModel | None = None
        self._taught = 0  # records
        self._before = {(r.workload_key, r.trace_key) for r in records if r.target == key}

    def add(self, record: Record) -> None:
        """A record of this run."""
        self._mine.append(record)

    def own(self) -> list[Record]:
        """All records of this target."""
        return [r for r in (*self._earlier, *self._mine) if r.target == self.key]

    def trials(self) -> list[Record]:
        """The kernels that this run was the first to measure; the finals are no trials."""
        found = {(r.workload_key, r.trace_key): r for r in self._mine if not r.final}
        return [record for key, record in found.items() if key not in self._before]

    def fastest(self) -> dict[str, float]:
        """The least ratio of each workload, by its key, of kernels that were measured alone."""
        found: dict[str, float] = {}
        for record in self.own():
            if record.ok and not record.final:
                key = record.workload_key
                found[key] = min(found.get(key, record.ratio), record.ratio)
        return found

    def advice(self) -> Advice:
        """The best kernels now."""
        return advise((*self._earlier, *self._mine), self.key)

    def model(self, threads: int) -> CostModel | None:
        """A cost model of all records, but for some of the newest where there are many; the
        pretrained one where there are too few, if there is one."""
        records = self._alone()
        if self._model is None or len(records) > RETRAINED * self._taught:
            recent = sum(map(_teaches, self._mine))
            self._model = train(records, threads, self._pretrained, recent)
            self._taught = len(records)
        return self._model or self._pretrained

    def uncertainty(self, threads: int) -> float | None:
        """The model's error on kernels it has not seen, as log2 of a time: a quarter of this run's
        records judge one that was taught by all others. None where there are too few."""
        mine = [record for record in self._mine if record.ok and _teaches(record)]
        if len(mine) < _JUDGED:
            return None
        held = mine[::4]
        judges = {id(record) for record in held}
        known = self._alone()
        taught = [record for record in known if id(record) not in judges]
        recent = sum(_teaches(record) for record in self._mine) - len(held)
        model = train(taught, threads, self._pretrained, recent)
        if model is None:
            return None
        best: dict[tuple[str, str], float] = {}
        for record in known:
            if record.ok:
                key = (record.target, record.workload_key)
                best[key] = min(best.get(key, math.inf), record.ratio)
        truths = [math.log2(best[r.target, r.workload_key] / r.ratio) for r in held]
        scores = model.scores([r.features for r in held])
        # Only among the better ones does it matter.
        near = [abs(s - t) for s, t in zip(scores, truths, strict=True) if t > -1]
        return 1.4826 * median(near) if near else None

    def _alone(self) -> list[Record]:
        """What kernels took outside a program, where all of them were measured."""
        return [record for record in (*self._earlier, *self._mine) if _teaches(record)]


def _teaches(record: Record) -> bool:
    return bool(record.features) and not record.final
