"""Where records are: the user's logs, and those that are shipped with graphopt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import schedules
from graphopt.tuning.advice import Advice, advise
from graphopt.tuning.database import Contents, read


def shipped() -> Path | None:
    """The folder of the records that are shipped; None if they were not installed."""
    # Beside the packages, wherever they are: by name, a folder of the user's would be found.
    folder = Path(schedules.__file__).parents[1] / "tuning_logs"
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
        found = read(folder)
        together.records += found.records
        together.skipped += found.skipped
    together.warn()
    return together


def advice(target: str, tuning_log: Sequence[Path] | None) -> Advice:
    """What is known for the target key `target`."""
    return advise(records(folders(tuning_log)).records, target)
