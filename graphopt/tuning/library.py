"""Where records are: the user's logs, and those that are shipped with graphopt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import schedules
from graphopt.tuning.advice import Advice, advise
from graphopt.tuning.database import Contents, files, read


def shipped() -> Path | None:
    """The folder of the records that are shipped; None if they were not installed."""
    # Beside the packages, wherever they are: by name, a folder of the user's would be found.
    folder = Path(schedules.__file__).resolve().parents[1] / "tuning_logs"
    return folder if folder.is_dir() else None


def folders(tuning_log: Sequence[Path] | None) -> list[Path]:
    """The logs to look into, best first: those given, then the shipped one; () for none."""
    if tuning_log is not None and not tuning_log:
        return []
    own = shipped()
    return [*(tuning_log or ()), *([own] if own is not None else [])]


def records(logs: Sequence[Path]) -> Contents:
    """The records of all targets in these logs. Warns of lines that were skipped."""
    together = Contents()
    for folder in dict.fromkeys(path.resolve() for path in logs):
        found = _read_shipped(_stamp(folder)) if folder == shipped() else read(folder)
        together.records += found.records
        together.skipped += found.skipped
    together.warn()
    return together


def advice(target: str, tuning_log: Sequence[Path] | None) -> Advice:
    """What is known for the target key `target`."""
    own = shipped()
    if tuning_log is None and own is not None:
        return _shipped_advice(target, _stamp(own))
    return advise(records(folders(tuning_log)).records, target)


# Every compilation asks for what is shipped, which hardly ever changes.

_Stamp: TypeAlias = "tuple[tuple[Path, int, int], ...]"


def _stamp(folder: Path) -> _Stamp:
    """The files of a log, with what changes when they do."""
    stats = [(path, path.stat()) for path in files(folder)]
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)


@lru_cache(maxsize=1)
def _read_shipped(_stamp: _Stamp) -> Contents:
    own = shipped()
    return read(own) if own is not None else Contents()


@lru_cache(maxsize=8)
def _shipped_advice(target: str, _stamp: _Stamp) -> Advice:
    return advise(records(folders(None)).records, target)
