"""Whole logs: what they hold, putting them together, thinning them out, and one file to send.

Records are compared by content: a line that is there already is not added again, so merging and
importing can be repeated, or go on where they were interrupted.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from graphopt.artifact.atomic import replacing
from graphopt.errors import OptionError, TuningError
from graphopt.tuning.database import Contents, Skipped, Writer, files, read, targets
from graphopt.tuning.records import Record, RecordError, from_line, to_line

STAGE = "tuning log"


@dataclass(frozen=True)
class TargetSummary:
    """What a log holds of one target key.

    failed: how many trials failed in which way. workloads, kernels: distinct ones, kernels that
    failed included. first, last: Unix times; None if unknown. skipped: lines that are no records.
    """

    target: str
    records: int
    ok: int
    failed: dict[str, int]
    workloads: int
    kernels: int
    nbytes: int
    first: float | None
    last: float | None
    skipped: int


@dataclass(frozen=True)
class Added:
    """What came of adding records to a log: added, there already, and lines that are no records."""

    added: int
    present: int
    skipped: int


@dataclass(frozen=True)
class Exported:
    """What was written to a file, of how many targets, and lines of the log that are no records."""

    records: int
    targets: int
    nbytes: int
    skipped: int


def summarise(folder: Path) -> tuple[TargetSummary, ...]:
    """What a log holds, target by target. Warns of lines that are skipped.

    Raises:
        OptionError: there is no such log.
        TuningError: it cannot be read.
    """
    require(folder)
    found = []
    for target in targets(folder):
        contents = read(folder, target)
        contents.warn()
        records = contents.records
        kernels = {(record.workload_key, record.trace_key) for record in records}
        times = [record.when for record in records if record.when]
        with reading(folder):
            nbytes = sum(path.stat().st_size for path in files(folder, target))
        found.append(
            TargetSummary(
                target,
                len(records),
                sum(record.ok for record in records),
                dict(sorted(Counter(r.status for r in records if not r.ok).items())),
                len({workload for workload, _ in kernels}),
                len(kernels),
                nbytes,
                min(times, default=None),
                max(times, default=None),
                len(contents.skipped),
            )
        )
    return tuple(found)


def merge(sources: Sequence[Path], into: Path) -> Added:
    """Append the records of `sources` that `into` does not have; it is made if there is none.

    Raises:
        OptionError: a source is missing or is `into` itself, or `into` cannot be written.
        TuningError: a log cannot be read, or there is no room. What was added before stays.
    """
    for source in sources:
        require(source)
        if source.resolve() == into.resolve():
            raise OptionError(
                STAGE, f"'{source}' cannot be merged into itself.", hint="leave it out."
            )
    together = Contents()
    for source in sources:
        contents = read(source)
        contents.warn()
        together.records += contents.records
        together.skipped += contents.skipped
    return _add(together, into)


def export(folder: Path, path: Path, target: str | None = None) -> Exported:
    """Write the records of a log, or of one target key in it, to one .jsonl or .jsonl.gz file.

    Raises:
        OptionError: there is no such log or no such target in it, or `path` is named otherwise or
            is a part of the log.
        TuningError: the log cannot be read.
        ArtifactError: the file cannot be written; an old one stays as it was.
    """
    require(folder)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise OptionError(STAGE, f"'{path}' is named neither .jsonl nor .jsonl.gz.")
    if path.resolve().parent.parent == folder.resolve():
        raise OptionError(STAGE, f"'{path}' lies in the log itself.", hint="name another folder.")
    known = list(targets(folder))
    if target is not None and target not in known:
        raise OptionError(
            STAGE,
            f"'{folder}' has no records of target '{target}'.",
            hint=f"it has: {', '.join(known) or 'none at all'}.",
        )
    contents = read(folder, target)
    contents.warn()
    lines = (to_line(record).encode() for record in contents.records)
    with replacing(path, STAGE) as file:
        if path.name.endswith(".gz"):
            # Without a name and a time in it, equal records make equal files.
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                packed.writelines(lines)
        else:
            file.writelines(lines)
    written = len({record.target for record in contents.records})
    return Exported(len(contents.records), written, path.stat().st_size, len(contents.skipped))


def import_file(path: Path, into: Path) -> Added:
    """Append the records of an exported file that the log `into` does not have.

    Nothing is added from a file that cannot be read to its end.

    Raises:
        OptionError: there is no such file, no record in it, or `into` cannot be written.
        TuningError: the file cannot be read, or there is no room.
    """
    if not path.is_file():
        raise OptionError(STAGE, f"there is no file '{path}'.")
    contents = Contents()
    for number, raw in enumerate(_raw_lines(path), 1):
        if not raw.strip():
            continue
        try:
            contents.records.append(from_line(raw.decode()))
        except (RecordError, UnicodeDecodeError) as error:
            contents.skipped.append(Skipped(path, number, str(error)))
    if contents.skipped and not contents.records:
        raise OptionError(
            STAGE,
            f"'{path}' holds no tuning records; of its first line: {contents.skipped[0].reason}.",
            hint="graphopt logs export makes such a file.",
        )
    contents.warn()
    return _add(contents, into)


def require(folder: Path) -> None:
    """Raises OptionError unless there is such a folder."""
    if not folder.is_dir():
        reason = "is no folder" if folder.exists() else "does not exist"
        raise OptionError(
            STAGE, f"the log '{folder}' {reason}.", hint="graphopt tune --log DIR makes one."
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns an OSError in the block into a TuningError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise TuningError(STAGE, f"cannot read '{error.filename or path}': {reason}.") from error


def _raw_lines(path: Path) -> Iterator[bytes]:
    try:
        with reading(path), path.open("rb") as file:
            # By content, not by name: a file that was renamed or unpacked on its way is as good.
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield from gzip.GzipFile(fileobj=file) if packed else file
    except (EOFError, zlib.error) as error:
        reason = f"'{path}' is cut short or damaged ({error})."
        raise TuningError(STAGE, reason, hint="nothing was added; get the file again.") from error


def _add(contents: Contents, into: Path) -> Added:
    by_target: dict[str, list[Record]] = {}
    for record in contents.records:
        by_target.setdefault(record.target, []).append(record)
    added = 0
    with ExitStack() as stack:
        # All that can be opened is, before anything is written.
        writers = {name: stack.enter_context(Writer(into, name)) for name in by_target}
        for name, records in by_target.items():
            known = {_identity(record) for record in read(into, name).records}
            fresh = list(_unknown(records, known))
            writers[name].append(fresh)
            added += len(fresh)
    return Added(added, len(contents.records) - added, len(contents.skipped))


def _unknown(records: Iterable[Record], known: set[bytes]) -> Iterator[Record]:
    for record in records:
        identity = _identity(record)
        if identity not in known:
            known.add(identity)
            yield record


def _identity(record: Record) -> bytes:
    # Not the record's own hash: to Python 1 == True, though they are different attributes.
    return hashlib.blake2b(to_line(record).encode(), digest_size=16).digest()
