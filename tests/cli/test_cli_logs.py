"""`graphopt logs`: its actions, their JSON, and what a user's mistakes look like."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphopt.cli.main import main
from graphopt.tuning.database import FILE, Writer, read
from graphopt.tuning.records import Record
from schedules.interface import Op, TensorSig, Workload

OK, WRONG = 0, 2
KEY, OTHER = "x86_64-avx2-l1.32k-l2.1024k-t2", "aarch64-neon-l1.64k-l2.512k-t4"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an action in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            code = main(["logs", *map(str, words)])
        except SystemExit as stopped:  # argparse
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert "defect" not in out + err
        return code, out, err

    return run


def record(tile: int, target: str = KEY, **fields: Any) -> Record:
    sig = TensorSig((8, 8))
    return Record(
        target,
        "0.1",
        1,
        Workload(Op("relu", (sig,), sig)),
        "elementwise",
        (("tile", tile),),
        **{"status": "ok", "seconds": 1e-5, "ratio": float(tile), "when": 1.7e9, **fields},
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three kernels that work and one that does not, one of another target, and a torn line."""
    folder = tmp_path / "log"
    with Writer(folder, OTHER) as writer:
        writer.append([record(9, OTHER)])
    with Writer(folder, KEY) as writer:
        writer.append([record(3), record(1), record(2), record(4, status="crash")])
    with (folder / KEY / FILE).open("a") as file:
        file.write('{"v":1,"tar')
    return folder


def result(cli: Run, *words: object) -> Any:
    code, out, _ = cli(*words, "--json")
    assert code == OK
    assert out.count("\n") == 1
    return json.loads(out)


ACTIONS = ("list", "merge", "prune", "export", "import")


def test_help_has_examples(cli: Run) -> None:
    code, out, _ = cli("--help")
    assert code == OK
    for action in ACTIONS:
        assert f"graphopt logs {action} " in out.split("examples:")[1]
        code, inner, _ = cli(action, "--help")
        assert code == OK
        assert f"graphopt logs {action} " in inner.split("examples:")[1]
        assert "--json" in inner


def test_help_needs_no_compiler() -> None:
    script = (
        "import sys\nfrom graphopt.cli.main import main\n"
        "try:\n    main(['logs', 'prune', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(sys.modules.keys() & {'tvm', 'onnx', 'xgboost'}), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


def test_logs_need_no_compiler(log: Path) -> None:
    script = (
        "import sys\nfrom graphopt.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "print(code, sorted(sys.modules.keys() & {'tvm', 'onnx', 'xgboost'}), file=sys.stderr)\n"
    )
    for words in (["list", log], ["prune", log, "--current"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "logs", *map(str, words)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr.splitlines()[-1] == "0 []"


def test_list(cli: Run, log: Path) -> None:
    code, out, err = cli("list", log)
    assert code == OK
    assert KEY in out
    assert "4: 3 ok, 1 crash" in out
    assert "1, 4 kernels" in out
    assert "1 lines that are no records" in out
    assert "2023-11-1" in out
    assert "warning: " in err
    assert "the first is line 5: it is torn" in err

    found = result(cli, "list", log)
    assert found["log"] == str(log)
    assert [each["target"] for each in found["targets"]] == [OTHER, KEY]
    assert found["targets"][1] == {
        "target": KEY,
        "records": 4,
        "ok": 3,
        "failed": {"crash": 1},
        "workloads": 1,
        "kernels": 4,
        "nbytes": (log / KEY / FILE).stat().st_size,
        "first": 1.7e9,
        "last": 1.7e9,
        "skipped": 1,
    }


def test_list_of_nothing(cli: Run, tmp_path: Path) -> None:
    assert cli("list", tmp_path)[:2] == (OK, "there are no records\n")
    assert result(cli, "list", tmp_path)["targets"] == []


def test_merge(cli: Run, log: Path, tmp_path: Path) -> None:
    into, more = tmp_path / "into", tmp_path / "more"
    with Writer(more, KEY) as writer:
        writer.append([record(1), record(8)])
    code, out, _ = cli("merge", log, more, "--into", into)
    assert code == OK
    assert "6 records added" in out
    assert "1 were there already" in out
    again = result(cli, "merge", log, more, "--into", into)
    assert again == {"into": str(into), "added": 0, "present": 7, "skipped": 1}
    assert len(read(into).records) == 6


def test_prune(cli: Run, log: Path) -> None:
    code, out, _ = cli("prune", log, "--keep", 2)
    assert code == OK
    assert "3 records kept, 2 dropped, 1 lines dropped that are no records" in out
    assert read(log, KEY).records == [record(1), record(2)]
    done = result(cli, "prune", log, "--keep", 1)
    assert (done["kept"], done["dropped"], done["damaged"], done["newer"]) == (2, 1, 0, 0)
    assert done["bytes_before"] > done["bytes_after"]


def test_prune_options(cli: Run, log: Path) -> None:
    assert result(cli, "prune", log, "--keep-failures")["kept"] == 5
    assert result(cli, "prune", log)["dropped"] == 1
    assert result(cli, "prune", log, "--current")["kept"] == 0


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_export_and_import(cli: Run, log: Path, tmp_path: Path, name: str) -> None:
    path, into = tmp_path / name, tmp_path / "into"
    code, out, _ = cli("export", log, "-o", path)
    assert code == OK
    assert "wrote 5 records of 2 targets, 1 lines skipped" in out
    done = result(cli, "export", log, "-o", path, "--target", OTHER)
    assert (done["records"], done["targets"]) == (1, 1)
    assert done["nbytes"] == path.stat().st_size
    found = result(cli, "import", path, "--into", into)
    assert found == {"into": str(into), "added": 1, "present": 0, "skipped": 0}
    assert read(into).records == [record(9, OTHER)]


def test_flags_hold_before_the_action_too(cli: Run, log: Path) -> None:
    code, out, _ = cli("--json", "list", log)
    assert code == OK
    assert len(json.loads(out)["targets"]) == 2


MISTAKES = [
    ("", "required: ACTION"),
    ("drop LOG", "invalid choice"),
    ("list none", "the log 'none' does not exist"),
    ("list FILE", "is no folder"),
    ("merge LOG", "required: --into"),
    ("merge --into LOG", "required: LOG"),
    ("merge none --into LOG", "the log 'none' does not exist"),
    ("merge LOG --into LOG", "cannot be merged into itself"),
    ("merge LOG --into FILE", "cannot write to"),
    ("prune LOG --keep 0", "not a whole number above 0"),
    ("prune none", "does not exist"),
    ("export LOG", "required: -o"),
    ("export LOG -o LOG", "is a directory"),
    ("export LOG -o none/x.jsonl", "there is no directory"),
    ("export LOG -o x.zip", "neither .jsonl nor .jsonl.gz"),
    ("export LOG -o x.jsonl --target cpu", "no records of target 'cpu'"),
    ("import none.jsonl --into LOG", "there is no file 'none.jsonl'"),
    ("import FILE --into LOG", "holds no tuning records"),
]


@pytest.mark.parametrize(("words", "reason"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistakes(
    cli: Run,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("# notes\n")
    log.rename("LOG")
    code, out, err = cli(*words.split())
    assert code == WRONG
    assert reason in err
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "LOG"]


def test_mistakes_as_json(cli: Run) -> None:
    code, out, _ = cli("list", "none", "--json")
    assert code == WRONG
    assert json.loads(out)["error"]["stage"] == "tuning log"
