"""A log: a folder of append-only files of records, one folder per target key inside it.

Any number of processes may append to one log at a time: each record is one write() to a file opened
for appending, under a lock. A process that is killed leaves at most one torn line behind, which
every reader skips and the next writer ends.

Who rewrites a file puts a new one in its place, all at once, while holding the lock of the old one.
Whoever gets a lock therefore looks whether the file is still the one at its path, and opens the new
one if not: nothing is ever appended to a file that was replaced or removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from graphopt.errors import OptionError, TuningError
from graphopt.tuning.records import Record, RecordError, from_line, to_line

log = logging.getLogger(__name__)

FILE = "records.jsonl"
"""Where records are appended; every *.jsonl beside it is read as well."""
_ATTEMPTS = 1000
"""To lock a file before somebody replaces it: an end for file systems without stable numbers."""


@dataclass(frozen=True)
class Line:
    """One line of a file, its end included: a record, or why it is none.

    newer: it may be a record to a later version of graphopt.
    """

    number: int
    raw: bytes
    record: Record | None
    reason: str = ""
    newer: bool = False


@dataclass(frozen=True)
class Skipped:
    """A line that is no record of this version: where, and why."""

    path: Path
    line: int
    reason: str


@dataclass
class Contents:
    """What a log holds: records in the order of the files, and the lines that were skipped."""

    records: list[Record] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def warn(self) -> None:
        """Log a warning for each file with lines that were skipped."""
        files: dict[Path, list[Skipped]] = {}
        for each in self.skipped:
            files.setdefault(each.path, []).append(each)
        for path, lines in files.items():
            first = lines[0]
            log.warning(
                "%s: %d line(s) skipped; the first is line %d: %s",
                *(path, len(lines), first.line, first.reason),
            )


def read(folder: Path, target: str | None = None) -> Contents:
    """The records in a log, of one target key or of all; nothing if there is no such folder.

    Raises:
        TuningError: the folder or a file cannot be read.
    """
    contents = Contents()
    try:
        for path in files(folder, target):
            for line in lines(path):
                if line.record is not None:
                    contents.records.append(line.record)
                else:
                    contents.skipped.append(Skipped(path, line.number, line.reason))
    except OSError as error:
        raise TuningError(
            "tuning log", f"cannot read '{error.filename or folder}': {error.strerror}."
        ) from error
    return contents


def files(folder: Path, target: str | None = None) -> list[Path]:
    """The files of a log, or of one target key in it, in the order they are read."""
    return sorted(folder.glob(f"{'*' if target is None else glob.escape(target)}/*.jsonl"))


def lines(path: Path) -> Iterator[Line]:
    """The lines of a file of a log, but for empty ones. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                if not raw.endswith(b"\n"):
                    raise RecordError("it is torn")
                record = from_line(raw.decode())
                if record.target != path.parent.name:
                    raise RecordError(f"it is of target {record.target}")
            except RecordError as error:
                yield Line(number, raw, None, str(error), error.newer)
            except UnicodeDecodeError as error:
                yield Line(number, raw, None, str(error))
            else:
                yield Line(number, raw, record)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """No writer appends to the file while the block runs; it may be replaced in the block.

    Raises:
        OSError: it is not there, or cannot be locked.
    """
    for _ in range(_ATTEMPTS):
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_at(handle, path):
                continue  # replaced while we waited for the lock
            yield
            return
        finally:
            os.close(handle)  # and with it the lock
    raise _never_the_same()


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _never_the_same() -> OSError:
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class Writer:
    """Appends records of one target to a log."""

    def __init__(self, folder: Path, target: str) -> None:
        """Make the folder.

        Raises:
            OptionError: it cannot be made, or nothing can be written there.
        """
        self.path = folder / target / FILE
        self._target = target
        try:
            self._file = self._open()
        except OSError as error:
            raise OptionError(
                "tuning log",
                f"cannot write to '{self.path}': {error.strerror}.",
                hint="name a folder that you may write to with --log.",
            ) from error

    def append(self, records: Iterable[Record]) -> None:
        """Append records; they are on their way to the disk when this returns.

        Raises:
            TuningError: there is no room, or the file cannot be written to any more. What was
                written before stays.
        """
        for record in records:
            if record.target != self._target:  # no reader would find it
                raise ValueError(f"a record of {record.target} among those of {self._target}")
            self._append(to_line(record).encode())

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.open(self.path, flags, 0o666)

    def _lock(self) -> None:
        for _ in range(_ATTEMPTS):
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if _is_at(self._file, self.path):
                return
            new = self._open()  # it was replaced or removed
            os.close(self._file)
            self._file = new
        raise _never_the_same()

    def _append(self, line: bytes) -> None:
        try:
            self._lock()
            try:
                size = os.fstat(self._file).st_size
                if size and os.pread(self._file, 1, size - 1) != b"\n":
                    line = b"\n" + line  # a writer died in the middle of its line
                written = os.write(self._file, line)
                if written < len(line):
                    os.ftruncate(self._file, size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise TuningError(
                "tuning log",
                f"cannot append to '{self.path}': {error.strerror}.",
                hint="what was measured before is kept; make room and run the same command again.",
            ) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def targets(folder: Path) -> Iterator[str]:
    """The target keys that a log has records of."""
    yield from dict.fromkeys(path.parent.name for path in files(folder))
