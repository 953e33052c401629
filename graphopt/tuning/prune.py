"""Prunes a log: keeps the records that compiling and tuning gain most from.

A file is not changed where it lies: a crash half-way would leave neither the old records nor the
new ones. The kept lines go to a new file, which takes the old one's place all at once. All files of
a target are locked meanwhile, from before they are read; a writer that waited for a lock sees that
its file was replaced and appends to the new one (see database.py). So nothing that is appended
while a log is pruned is lost, and a crash or a full disk leaves each file as it was or as it shall
be.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from graphopt.artifact.atomic import replacing
from graphopt.errors import OptionError
from graphopt.tuning.archive import STAGE, reading, require
from graphopt.tuning.database import Line, files, lines, locked, targets
from graphopt.tuning.records import Record, averaged, trusted

BEST = 8
"""Kernels to keep of each candidate of a workload."""


@dataclass(frozen=True)
class Versions:
    """Which records are current: made with this TVM and these schedules."""

    tvm: str
    schedules: int

    def fit(self, record: Record) -> bool:
        """Whether the record was made with these versions."""
        return (record.tvm, record.schedules) == (self.tvm, self.schedules)


@dataclass(frozen=True)
class Pruned:
    """What came of pruning, in lines: records kept and dropped, and what was no record.

    damaged: lines dropped because they are torn, damaged or of another target. newer: lines kept
    because a later version of graphopt may read them.
    """

    kept: int
    dropped: int
    damaged: int
    newer: int
    bytes_before: int
    bytes_after: int


def prune(
    folder: Path,
    keep: int = BEST,
    *,
    failures: bool = False,
    only: Versions | None = None,
) -> Pruned:
    """Keep the records of the best kernels, and drop the others for good.

    Kernels rank as compiling ranks them: what was measured in turns with its rivals first, then by
    time. Of a kernel that stays, all final records stay and the best other one: the two together
    say how much longer its workload takes inside a program.

    Args:
        keep: kernels of each candidate of each workload of each target.
        failures: keep a record of every kernel that failed, so that tuning does not try it again.
        only: drop the records of other versions.

    Raises:
        OptionError: there is no such log.
        TuningError: it cannot be read.
        ArtifactError: it cannot be written; records of some targets may be pruned already.
    """
    require(folder)
    if keep < 1:
        raise OptionError(STAGE, f"keep must be at least 1, not {keep}.")
    with reading(folder):
        parts = [_prune(files(folder, name), keep, failures, only) for name in targets(folder)]
    names = ("kept", "dropped", "damaged", "newer", "bytes_before", "bytes_after")
    return Pruned(*(sum(getattr(part, name) for part in parts) for name in names))


def _prune(paths: Sequence[Path], keep: int, failures: bool, only: Versions | None) -> Pruned:
    """Prune the files of one target key."""
    with ExitStack() as locks:
        for path in paths:  # always in the same order: two that prune never wait for each other
            locks.enter_context(locked(path))
        content = {path: list(lines(path)) for path in paths}
        before = sum(path.stat().st_size for path in paths)
        every = [line for path in paths for line in content[path]]
        records = [line.record for line in every if line.record is not None]
        wanted = choose(records, keep, failures, only)
        for path in paths:
            raws = [line.raw for line in content[path] if _stays(line, wanted)]
            if len(raws) < len(content[path]):
                _rewrite(path, raws)
        newer = sum(line.newer for line in every)
        return Pruned(
            len(wanted),
            len(records) - len(wanted),
            len(every) - len(records) - newer,
            newer,
            before,
            sum(path.stat().st_size for path in paths),
        )


def _stays(line: Line, wanted: set[int]) -> bool:
    return line.newer if line.record is None else id(line.record) in wanted


def _rewrite(path: Path, raws: Iterable[bytes]) -> None:
    mode = path.stat().st_mode
    with replacing(path, STAGE) as file:
        os.fchmod(file.fileno(), mode & 0o777)  # whoever could write to the log still can
        file.writelines(raws)


def choose(records: Sequence[Record], keep: int, failures: bool, only: Versions | None) -> set[int]:
    """The id() of each record to keep: two that are equal are still two lines of a file."""
    kernels: dict[tuple[str, str, str], dict[str, list[Record]]] = {}
    for record in records:
        if only is None or only.fit(record):
            name = (record.target, record.workload_key, record.candidate)
            kernels.setdefault(name, {}).setdefault(record.trace_key, []).append(record)
    wanted = set()
    for group in kernels.values():
        working = [sorted(trusted(same), key=_rank) for same in group.values()]
        best = sorted(
            (same for same in working if same),
            key=lambda same: min(record.rank for record in averaged(same)),
        )
        for same in best[:keep]:
            finals = list(dict.fromkeys(record for record in same if record.final))
            alone = [record for record in same if not record.final][:1]
            wanted |= {id(record) for record in (*finals, *alone)}
        if failures:
            for same in group.values():
                if not trusted(same):
                    wanted.add(id([record for record in same if not record.ok][-1]))
    return wanted


def _rank(record: Record) -> tuple[bool, float]:
    return record.rank
