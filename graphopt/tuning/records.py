"""Records of trials: one line of JSON each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from graphopt.tuning.codec import (
    trace_key,
    whole,
    workload_from_json,
    workload_key,
    workload_to_json,
)
from schedules.interface import Decisions, Workload

VERSION = 1
"""Of the form of a record. A reader skips lines of versions that it does not know."""

FEATURES = 1
"""Of what the features mean: those of other versions are not used."""

OK = "ok"
FAILURES = ("error", "crash", "timeout", "memory", "wrong")
"""How a trial fails: it cannot be built, its process dies, takes too long or too much memory, or
gives wrong numbers."""


class RecordError(ValueError):
    """A line that is no record; `newer` if it may be one to a later version of graphopt."""

    def __init__(self, reason: str, newer: bool = False) -> None:
        super().__init__(reason)
        self.newer = newer


@dataclass(frozen=True)
class Record:
    """One trial: a kernel that was built, checked and timed, or failed.

    Attributes:
        target: target key, threads included. tvm, schedules: versions the kernel was made with.
        status: "ok" or one of FAILURES.
        seconds: of one call; 0 if it failed. ratio: seconds over those of the reference kernel,
            which was timed beside it: what is compared, because the clock of a machine drifts.
        error: largest difference from the reference result, relative to its largest value.
        final: measured inside the program, in turns with its rivals, after the search; otherwise
            alone.
        features: of the lowered program, for the cost model.
        reason: of a failure, in words.
        when: Unix time; for people only.
    """

    target: str
    tvm: str
    schedules: int
    workload: Workload
    candidate: str
    decisions: Decisions
    status: str
    seconds: float = 0.0
    ratio: float = 0.0
    error: float = 0.0
    final: bool = False
    features: tuple[float, ...] = ()
    reason: str = ""
    when: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the kernel works."""
        return self.status == OK

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts the records of working kernels, the best first: what was measured inside a program
        beats what was measured alone."""
        return not self.final, self.ratio

    @cached_property
    def workload_key(self) -> str:
        """See codec.workload_key()."""
        return workload_key(self.workload)

    @cached_property
    def trace_key(self) -> str:
        """See codec.trace_key()."""
        return trace_key(self.candidate, self.decisions)


def trusted(records: Iterable[Record]) -> list[Record]:
    """Those of kernels that work. One that ever gave wrong numbers does not, however often it gave
    the right ones."""
    known = list(records)
    wrong = {(r.workload_key, r.trace_key) for r in known if r.status == "wrong"}
    return [r for r in known if r.ok and (r.workload_key, r.trace_key) not in wrong]


def averaged(records: Iterable[Record]) -> list[Record]:
    """These records, with those of one kernel inside a program made one of their mean: to go by the
    least of several noisy times would be to go by luck. Equal ones, as of a log that was imported
    twice, count once."""
    alone: list[Record] = []
    finals: dict[tuple[str, str, str], dict[Record, None]] = {}
    for record in records:
        if record.final and record.ok:
            key = (record.target, record.workload_key, record.trace_key)
            finals.setdefault(key, {})[record] = None
        else:
            alone.append(record)
    return alone + [
        replace(
            next(iter(same)),
            ratio=fmean(record.ratio for record in same),
            seconds=fmean(record.seconds for record in same),
        )
        for same in finals.values()
    ]


def to_line(record: Record) -> str:
    """The record as one line, its end included."""
    plain: dict[str, Any] = {
        "v": VERSION,
        "target": record.target,
        "tvm": record.tvm,
        "schedules": record.schedules,
        "workload": workload_to_json(record.workload),
        "w": record.workload_key,
        "t": record.trace_key,
        "candidate": record.candidate,
        "decisions": dict(record.decisions),
        "status": record.status,
        "when": round(record.when),
    }
    if record.ok:
        plain |= {
            "seconds": _short(record.seconds),
            "ratio": _short(record.ratio),
            "error": _short(record.error),
        }
    if record.final:
        plain["final"] = True
    if record.features:
        plain["fv"] = FEATURES
        plain["features"] = [_short(value) for value in record.features]
    if record.reason:
        plain["reason"] = record.reason
    return json.dumps(plain, separators=(",", ":")) + "\n"


def from_line(line: str) -> Record:
    """The record in a line.

    Raises:
        RecordError: it is torn, foreign, damaged or of another version.
    """
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError):
        raise RecordError("it is not JSON") from None
    if not isinstance(plain, dict) or type(plain.get("v")) is not int:
        raise RecordError("it is no tuning record")
    if plain["v"] != VERSION:
        raise RecordError(f"its version is {plain['v']}, not {VERSION}", plain["v"] > VERSION)
    try:
        record = _record(plain)
        keys = record.workload_key, record.trace_key
    except _DAMAGE as error:
        raise RecordError(f"it is damaged ({type(error).__name__}: {error})") from None
    if keys != (plain.get("w"), plain.get("t")):
        raise RecordError("its hashes do not fit its content")
    return record


def _record(plain: Mapping[str, Any]) -> Record:
    status = plain["status"]
    if status not in (OK, *FAILURES):
        raise ValueError(f"status {status!r}")
    numbers = [_number(plain[name]) if status == OK else 0.0 for name in _NUMBERS]
    when = _number(plain["when"])
    if min(*numbers, when) < 0 or when > _NEVER:
        raise ValueError(f"times {[*numbers, when]}")
    if status == OK and min(numbers[:2]) <= 0:
        raise ValueError(f"times {numbers}")
    texts = {name: plain[name] for name in ("target", "tvm", "candidate")}
    texts["reason"] = plain.get("reason", "")
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError(f"{texts}")
    if not _TARGET.fullmatch(texts["target"]):
        raise ValueError(f"target {texts['target']!r}")
    final = plain.get("final", False)
    if type(final) is not bool:
        raise TypeError(f"final {final!r}")
    features = plain["features"] if plain.get("fv") == FEATURES else ()
    return Record(
        **texts,
        schedules=whole(plain["schedules"]),
        workload=workload_from_json(plain["workload"]),
        decisions=tuple((name, whole(value)) for name, value in plain["decisions"].items()),
        status=status,
        seconds=numbers[0],
        ratio=numbers[1],
        error=numbers[2],
        final=final,
        features=tuple(_number(value) for value in features),
        when=when,
    )


_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
_NEVER = 1e11  # the year 5138
_ENDLESS = 1e300  # the largest numbers become infinite when they are rounded
_NUMBERS = ("seconds", "ratio", "error")
# Target keys are names of folders: a record from elsewhere must not choose a path.
_TARGET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")


def _number(plain: Any) -> float:
    if type(plain) not in (int, float):
        raise TypeError(f"{plain!r} is no number")
    if not abs(plain) < _ENDLESS:  # NaN neither
        raise ValueError(f"{plain!r} is out of range")
    return float(plain)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
