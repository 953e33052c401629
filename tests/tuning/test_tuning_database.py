"""Logs on disk: nothing that was appended is lost, whoever else writes and however it ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tuning_records import KEY, OTHER, failure, record

from graphopt.errors import OptionError, TuningError
from graphopt.tuning.database import FILE, Writer, read, targets
from graphopt.tuning.records import Record, to_line


def write(folder: Path, *records: Record, target: str = KEY) -> Path:
    with Writer(folder, target) as writer:
        writer.append(records)
    return writer.path


def python(script: str, *words: object) -> subprocess.Popen[str]:
    """A Python process that finds the helpers of these tests."""
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    records = [record(1), failure(2), record(3, final=True)]
    write(tmp_path, *records[:2])
    write(tmp_path, records[2])
    write(tmp_path, record(target=OTHER), target=OTHER)
    assert read(tmp_path, KEY).records == records
    assert read(tmp_path).records == [*records, record(target=OTHER)]
    assert read(tmp_path).skipped == []
    assert list(targets(tmp_path)) == [KEY, OTHER]


def test_there_may_be_no_log(tmp_path: Path) -> None:
    assert read(tmp_path / "none").records == []
    assert read(tmp_path, KEY).records == []
    assert list(targets(tmp_path)) == []


def test_every_file_of_a_target_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, record(1))
    path.with_name("copied.jsonl").write_text(to_line(record(2)))
    path.with_name("notes.txt").write_text("not a log")
    assert read(tmp_path).records == [record(2), record(1)]
    assert list(targets(tmp_path)) == [KEY]


def test_a_target_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path, record(1))
    assert read(tmp_path, "*").records == []


@pytest.mark.parametrize("length", [1, 40, -1])
def test_a_torn_line_loses_that_line_only(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, record(1))
    with path.open("a") as file:
        file.write(to_line(record(2))[:length])
    contents = read(tmp_path)
    assert contents.records == [record(1)]
    assert [(s.path, s.line, s.reason) for s in contents.skipped] == [(path, 2, "it is torn")]
    with caplog.at_level(logging.WARNING):
        contents.warn()
    assert f"{path}: 1 line(s) skipped; the first is line 2: it is torn" in caplog.text

    write(tmp_path, record(3))
    found = read(tmp_path)
    # Only its end was missing in the last case, and now it has one.
    assert found.records == [record(1), *([record(2)] if length == -1 else []), record(3)]
    assert len(found.skipped) == (length != -1)


def test_foreign_lines_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, record(1))
    with path.open("ab") as file:
        file.write(b'\n\n{"v":99}\n\xff\xfe\n<html>\n' + to_line(record(2)).encode())
    contents = read(tmp_path)
    assert contents.records == [record(1), record(2)]
    assert [skipped.line for skipped in contents.skipped] == [4, 5, 6]
    assert "version is 99" in contents.skipped[0].reason


def test_a_record_of_another_target_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, record(1))
    with path.open("a") as file:
        file.write(to_line(record(2, target=OTHER)))
    contents = read(tmp_path)
    assert contents.records == [record(1)]
    assert contents.skipped[0].reason == f"it is of target {OTHER}"
    with Writer(tmp_path, KEY) as writer, pytest.raises(ValueError, match=OTHER):
        writer.append([record(target=OTHER)])


def test_new_files_are_no_programs(tmp_path: Path) -> None:
    assert write(tmp_path, record(1)).stat().st_mode & 0o111 == 0


# --- several processes, and their ends ---------------------------------------------------------

APPEND = """
import sys
from pathlib import Path
from tuning_records import KEY, record
from graphopt.tuning.database import Writer

with Writer(Path(sys.argv[1]), KEY) as writer:
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        writer.append([record(number, features=(1.5,) * 300)])
        print(number, flush=True)
"""


def test_two_processes_lose_and_tear_nothing(tmp_path: Path) -> None:
    writers = [python(APPEND, tmp_path, first, first + 200) for first in (1, 1001)]
    assert [writer.communicate()[0].count("\n") for writer in writers] == [200, 200]
    contents = read(tmp_path)
    assert contents.skipped == []
    tiles = [dict(found.decisions)["tile"] for found in contents.records]
    assert sorted(tiles) == [*range(1, 201), *range(1001, 1201)]
    for first in (1, 1001):  # each one's records are in their order
        mine = [tile for tile in tiles if first <= tile < first + 200]
        assert mine == sorted(mine)


def test_a_killed_process_loses_at_most_its_last_record(tmp_path: Path) -> None:
    writer = python(APPEND, tmp_path, 1, 1_000_000)
    assert writer.stdout is not None
    said = 0
    while said < 100:
        said = int(writer.stdout.readline())
    writer.kill()
    said = int([str(said), *writer.communicate()[0].split()][-1])
    assert writer.returncode == -signal.SIGKILL

    contents = read(tmp_path)
    tiles = [dict(found.decisions)["tile"] for found in contents.records]
    assert tiles == list(range(1, len(tiles) + 1))
    assert said <= len(tiles) <= said + 1
    assert len(contents.skipped) <= 1
    write(tmp_path, record(7, size=77))
    assert read(tmp_path).records[-1] == record(7, size=77)


def test_a_writer_follows_a_file_that_is_replaced(tmp_path: Path) -> None:
    with Writer(tmp_path, KEY) as writer:
        writer.append([record(1)])
        new = writer.path.with_suffix(".new")
        new.write_text(to_line(record(5)))
        new.replace(writer.path)
        writer.append([record(2)])
        assert read(tmp_path).records == [record(5), record(2)]
        writer.path.unlink()
        writer.path.parent.rmdir()
        writer.append([record(3)])
    assert read(tmp_path).records == [record(3)]


# --- what goes wrong with disks ----------------------------------------------------------------


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    with pytest.raises(OptionError, match=r"cannot write to .*log.*--log"):
        Writer(tmp_path / "log", KEY)
    (tmp_path / KEY / FILE).mkdir(parents=True)
    with pytest.raises(OptionError, match="Is a directory"):
        Writer(tmp_path, KEY)
    with pytest.raises(TuningError, match=f"cannot read .*{FILE}.*Is a directory"):
        read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_log_that_may_not_be_written(tmp_path: Path) -> None:
    path = write(tmp_path, record(1))
    path.chmod(0o400)
    with pytest.raises(OptionError, match="Permission denied"):
        Writer(tmp_path, KEY)
    assert read(tmp_path).records == [record(1)]
    tmp_path.chmod(0o500)
    with pytest.raises(OptionError, match="Permission denied"):
        Writer(tmp_path, OTHER)
    tmp_path.chmod(0o700)


FILL = """
import resource
import sys
from pathlib import Path
from tuning_records import KEY, record
from graphopt.errors import TuningError
from graphopt.tuning.database import Writer

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
with Writer(Path(sys.argv[1]), KEY) as writer:
    for number in range(1, 1000):
        try:
            writer.append([record(number)])
        except TuningError as error:
            print(number, error)
            break
    try:
        writer.append([record(number)])
    except TuningError:
        print("again")
"""


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    out = python(FILL, tmp_path).communicate()[0]
    number, text = out.splitlines()[0].split(" ", 1)
    assert "cannot append to" in text
    assert "what was measured before is kept" in text
    assert out.splitlines()[1:] == ["again"]
    contents = read(tmp_path)
    assert contents.records == [record(tile) for tile in range(1, int(number))]
    assert contents.skipped == []  # what fitted of the last line is gone again


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_without_room_for_a_byte(tmp_path: Path) -> None:
    (tmp_path / KEY).mkdir()
    (tmp_path / KEY / FILE).symlink_to("/dev/full")
    with Writer(tmp_path, KEY) as writer, pytest.raises(TuningError, match="No space left"):
        writer.append([record(1)])
