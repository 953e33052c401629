"""Whole logs: accounts of them, merging, pruning, and files that are sent."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tuning_records import KEY, OTHER, failure, record

from graphopt.errors import ArtifactError, OptionError, TuningError
from graphopt.tuning import prune as pruning
from graphopt.tuning.advice import advise
from graphopt.tuning.archive import Added, export, import_file, merge, summarise
from graphopt.tuning.database import FILE, Writer, read
from graphopt.tuning.prune import Versions, prune
from graphopt.tuning.records import Record, to_line

NEWER = b'{"v":2,"target":"of the future"}\n'


def write(folder: Path, *records: Record) -> Path:
    for target in dict.fromkeys(each.target for each in records):
        with Writer(folder, target) as writer:
            writer.append(each for each in records if each.target == target)
    return folder


def damage(folder: Path, data: bytes, target: str = KEY) -> Path:
    with (folder / target / FILE).open("ab") as file:
        file.write(data)
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- list ----------------------------------------------------------------------------------------


def test_a_log_is_summed_up_by_target(tmp_path: Path) -> None:
    write(tmp_path, record(1), record(1, final=True), record(2), record(2, size=9), failure(3))
    write(tmp_path, failure(4, status="wrong"), failure(5), record(1, target=OTHER, when=0.0))
    damage(tmp_path, b"torn")
    first, second = summarise(tmp_path)
    assert (first.target, first.records, first.ok) == (KEY, 7, 4)
    assert first.failed == {"timeout": 2, "wrong": 1}
    assert (first.workloads, first.kernels, first.skipped) == (2, 6, 1)
    assert (first.first, first.last) == (1.7e9 + 1, 1.7e9 + 5)
    assert first.nbytes == (tmp_path / KEY / FILE).stat().st_size
    assert (second.target, second.records, second.failed) == (OTHER, 1, {})
    assert (second.first, second.last) == (None, None)


def test_a_log_without_records(tmp_path: Path) -> None:
    assert summarise(tmp_path) == ()
    (tmp_path / KEY).mkdir()
    (tmp_path / KEY / FILE).touch()
    assert [found.records for found in summarise(tmp_path)] == [0]


@pytest.mark.parametrize("name", ["none", "file"])
def test_a_log_must_be_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text(to_line(record()))
    log = tmp_path / name
    for call in (
        lambda: summarise(log),
        lambda: merge([log], tmp_path / "into"),
        lambda: prune(log),
        lambda: export(log, tmp_path / "out.jsonl"),
    ):
        with pytest.raises(OptionError, match="does not exist" if name == "none" else "no folder"):
            call()
    assert not (tmp_path / "into").exists()


# --- merge ---------------------------------------------------------------------------------------


def test_merging_adds_what_is_not_there(tmp_path: Path) -> None:
    into = write(tmp_path / "into", record(1))
    one = write(tmp_path / "one", record(1), record(2), record(5, target=OTHER))
    two = write(tmp_path / "two", record(2), failure(3), record(2, when=1.8e9))
    damage(two, b"torn")
    before = everything(one), everything(two)
    assert merge([one, two], into) == Added(added=4, present=2, skipped=1)
    expected = [record(1), record(2), failure(3), record(2, when=1.8e9)]
    assert read(into, KEY).records == expected
    assert read(into, OTHER).records == [record(5, target=OTHER)]
    assert (everything(one), everything(two)) == before
    assert merge([one, two], into) == Added(added=0, present=6, skipped=1)


@pytest.mark.parametrize(
    "changes", [{"final": True}, {"ratio": 2.5}, {"when": 1.8e9}, {"tvm": "1.0"}, {"features": ()}]
)
def test_other_trials_of_a_kernel_are_other_records(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    into = write(tmp_path / "into", record(1))
    assert merge([write(tmp_path / "from", record(1, **changes))], into).added == 1


def test_merging_with_wrong_logs(tmp_path: Path) -> None:
    log = write(tmp_path / "log", record(1))
    with pytest.raises(OptionError, match="into itself"):
        merge([log / ".." / "log"], log)
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="cannot write"):
        merge([log], tmp_path / "file")


# --- prune ---------------------------------------------------------------------------------------


def test_pruning_keeps_the_best_of_each(tmp_path: Path) -> None:
    many = [record(tile, size) for size in (8, 9) for tile in (5, 3, 1, 4, 2)]
    others = [record(7, candidate="matmul.plain"), record(9, target=OTHER)]
    write(tmp_path, *many, *others, failure(6), failure(6, candidate="matmul.broken"))
    done = prune(tmp_path, 2)
    assert (done.kept, done.dropped, done.damaged, done.newer) == (6, 8, 0, 0)
    kept = [record(1), record(2), record(1, 9), record(2, 9)]
    assert read(tmp_path, KEY).records == [*kept, others[0]]
    assert read(tmp_path, OTHER).records == [others[1]]
    assert done.bytes_before > done.bytes_after == sum(map(len, everything(tmp_path).values()))
    assert prune(tmp_path, 2).dropped == 0


def test_pruning_keeps_all_finals_of_the_best(tmp_path: Path) -> None:
    finals = [record(4, final=True), record(4, final=True, ratio=4.5), record(5, final=True)]
    write(tmp_path, record(1), record(4), *finals, record(2), record(4, final=True))
    before = advise(read(tmp_path).records, KEY).own
    prune(tmp_path, 3)
    # What was measured in turns goes before what was not; of the others the fastest stays.
    assert read(tmp_path).records == [record(1), record(4), *finals]
    assert advise(read(tmp_path).records, KEY).own == before
    prune(tmp_path, 1)
    assert read(tmp_path).records == [record(4), *finals[:2]]
    assert advise(read(tmp_path).records, KEY).own == before


def test_pruning_keeps_how_much_longer_a_program_takes(tmp_path: Path) -> None:
    inside = record(4, final=True, ratio=6.0)
    write(tmp_path, record(4, ratio=4.0), inside, record(5, candidate="matmul.plain"))
    before = advise(read(tmp_path).records, KEY).context
    prune(tmp_path, 1)
    assert advise(read(tmp_path).records, KEY).context == before
    assert list(before.values()) == [1.5]


def test_pruning_keeps_the_best_time_of_a_kernel(tmp_path: Path) -> None:
    write(tmp_path, record(3, ratio=3.5), record(3), record(3, ratio=4.0), failure(3))
    prune(tmp_path, failures=True)
    assert read(tmp_path).records == [record(3)]


def test_failures_stay_if_asked_for(tmp_path: Path) -> None:
    write(tmp_path, failure(1), failure(1, status="crash"), record(2), failure(3))
    assert prune(tmp_path, 1, failures=True).kept == 3
    assert read(tmp_path).records == [failure(1, status="crash"), record(2), failure(3)]


def test_a_kernel_that_was_ever_wrong_does_not_stay_as_one_that_works(tmp_path: Path) -> None:
    write(tmp_path, record(1), failure(1, status="wrong"), record(2))
    prune(tmp_path, failures=True)
    assert read(tmp_path).records == [failure(1, status="wrong"), record(2)]
    prune(tmp_path)
    assert read(tmp_path).records == [record(2)]


def test_other_versions_go_if_asked_for(tmp_path: Path) -> None:
    write(tmp_path, record(1, tvm="0.26"), record(2, schedules=0), record(3))
    assert prune(tmp_path).dropped == 0
    assert prune(tmp_path, only=Versions("0.27.0", 1)).dropped == 2
    assert read(tmp_path).records == [record(3)]


def test_pruning_drops_what_is_no_record(tmp_path: Path) -> None:
    write(tmp_path, record(1))
    damage(tmp_path, b"<html>\n" + to_line(record(2, target=OTHER)).encode() + NEWER + b"\xff\n")
    damage(tmp_path, to_line(record(3)).encode()[:-30])
    done = prune(tmp_path)
    assert (done.kept, done.dropped, done.damaged, done.newer) == (1, 0, 4, 1)
    # A later version of graphopt may read it.
    assert (tmp_path / KEY / FILE).read_bytes() == to_line(record(1)).encode() + NEWER


def test_every_file_of_a_target_is_pruned(tmp_path: Path) -> None:
    write(tmp_path, record(3), record(1))
    copied = tmp_path / KEY / "copied.jsonl"
    copied.write_text(to_line(record(1)) + to_line(record(2)))
    copied.chmod(0o664)
    assert prune(tmp_path, 1).kept == 1
    assert copied.read_text() == to_line(record(1))
    assert copied.stat().st_mode & 0o777 == 0o664
    assert read(tmp_path).records == [record(1)]


def test_what_needs_no_pruning_is_not_touched(tmp_path: Path) -> None:
    write(tmp_path, record(1), record(2))
    before = (tmp_path / KEY / FILE).stat()
    prune(tmp_path)
    after = (tmp_path / KEY / FILE).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    with pytest.raises(OptionError, match="at least 1"):
        prune(tmp_path, 0)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_pruning_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write(tmp_path, record(1), record(2))
    before = everything(tmp_path)

    def fail(handle: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises((ArtifactError, KeyboardInterrupt)):
            prune(tmp_path, 1)
    assert everything(tmp_path) == before
    write(tmp_path, record(3))  # the lock is free again
    assert prune(tmp_path, 1).kept == 1


def test_what_is_appended_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waits while a file is replaced writes to the new one."""
    write(tmp_path, record(1), record(2))
    script = (
        "import sys\nfrom pathlib import Path\nfrom tuning_records import KEY, record\n"
        "from graphopt.tuning.database import Writer\n"
        "with Writer(Path(sys.argv[1]), KEY) as writer:\n"
        "    print('open', flush=True)\n    input()\n    print('asked', flush=True)\n"
        "    writer.append([record(1, size=70)])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        rewrite = pruning._rewrite

        def slowly(*words: object) -> None:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "asked\n"
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(0.2)  # it waits for the lock
            rewrite(*words)

        monkeypatch.setattr(pruning, "_rewrite", slowly)
        assert prune(tmp_path, 1).kept == 1
        assert writer.wait(30) == 0
    assert read(tmp_path).records == [record(1), record(1, size=70)]


def test_pruning_over_and_over_loses_no_record(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom tuning_records import KEY, failure, record\n"
        "from graphopt.tuning.database import Writer\n"
        "with Writer(Path(sys.argv[1]), KEY) as writer:\n"
        "    for size in range(1, 301):\n"
        "        writer.append([failure(1, size), record(1, size)])\n"
    )
    write(tmp_path, record(1, 999))
    rounds = 0
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as writer:
        while writer.poll() is None:
            rounds += prune(tmp_path, 1).dropped > 0
    assert writer.returncode == 0
    assert rounds > 1
    contents = read(tmp_path)
    assert contents.skipped == []
    assert [found for found in contents.records if found.ok] == [
        record(1, size) for size in (999, *range(1, 301))
    ]


# --- export and import ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_a_log_travels_in_a_file(tmp_path: Path, name: str) -> None:
    log = write(tmp_path / "log", record(1), failure(2), record(3, target=OTHER))
    damage(log, b"torn")
    path = tmp_path / name
    done = export(log, path)
    assert (done.records, done.targets, done.skipped) == (3, 2, 1)
    assert done.nbytes == path.stat().st_size
    data = path.read_bytes()
    text = gzip.decompress(data) if name.endswith(".gz") else data
    assert text.decode().splitlines(keepends=True) == [
        to_line(each) for each in (record(1), failure(2), record(3, target=OTHER))
    ]
    export(log, path)
    assert path.read_bytes() == data

    copy = tmp_path / "copy"
    assert import_file(path, copy) == Added(3, 0, 0)
    assert read(copy).records == read(log).records
    assert import_file(path, copy) == Added(0, 3, 0)
    moved = path.rename(tmp_path / "renamed.txt")
    assert import_file(moved, copy) == Added(0, 3, 0)


def test_one_target_may_be_exported(tmp_path: Path) -> None:
    log = write(tmp_path / "log", record(1), record(3, target=OTHER))
    export(log, tmp_path / "out.jsonl", OTHER)
    assert (tmp_path / "out.jsonl").read_text() == to_line(record(3, target=OTHER))
    for wrong in ("x86_64-avx2", "*", ""):
        with pytest.raises(OptionError, match=f"no records of target.*it has: {KEY}, {OTHER}"):
            export(log, tmp_path / "out.jsonl", wrong)


def test_files_that_are_not_exported_to(tmp_path: Path) -> None:
    log = write(tmp_path / "log", record(1))
    before = everything(log)
    with pytest.raises(OptionError, match=r"neither \.jsonl nor \.jsonl\.gz"):
        export(log, tmp_path / "out.json")
    with pytest.raises(OptionError, match="in the log itself"):
        export(log, log / KEY / FILE)
    with pytest.raises(ArtifactError):
        export(log, tmp_path / "none" / "out.jsonl")
    assert everything(log) == before


def test_lines_are_checked_before_they_are_imported(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    outside = to_line(record(2)).replace(KEY, "../../outside")
    false = to_line(record(3)).replace('"tile":3', '"tile":1')
    path.write_text(f"# mine\n\n{outside}{false}" + to_line(record(1)).rstrip("\n"))
    into = tmp_path / "log"
    assert import_file(path, into) == Added(added=1, present=0, skipped=3)
    assert list(everything(into)) == [f"{KEY}/{FILE}"]
    assert read(into).records == [record(1)]


def test_files_that_are_not_imported(tmp_path: Path) -> None:
    into, path = tmp_path / "log", tmp_path / "in.jsonl.gz"
    with pytest.raises(OptionError, match="there is no file"):
        import_file(path, into)
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xff")
    with pytest.raises(OptionError, match="holds no tuning records"):
        import_file(path, into)
    export(write(tmp_path / "from", *map(record, range(1, 50))), path)
    whole = path.read_bytes()
    for data in (whole[:-20], whole[:40] + b"\x00\xff\x00\xff" + whole[44:], whole[:-1]):
        path.write_bytes(data)
        with pytest.raises(TuningError, match=path.name):
            import_file(path, into)
    assert not into.exists()
    path.write_bytes(b"")
    assert import_file(path, into) == Added(0, 0, 0)
