"""Tunes for an hour under attack: python benchmarks/tuning_soak.py [--minutes 60] [--kills 5]

Runs `graphopt tune` again and again on one log. Meanwhile children of the measure server are
killed, crashed or stopped every few seconds, now and then the server is killed, five times the run
itself, and once its disk is full. The last third is one long run of which only children are
attacked. Exit status 1 if a bar is missed: nothing that was measured is lost or measured twice,
nothing outlives its run, an attack costs no more than one trial, memory stays flat, the log works.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pty
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import psutil
from catalogue import MODELS, Model
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import graphopt
from graphopt.samples import random_inputs
from graphopt.tuning.database import read
from graphopt.tuning.records import Record, RecordError, from_line

SHORT = ("resnet18", "mobilenet_v2", "squeezenet1_1", "vit_tiny", "minilm_l6")
# Twelve sets of shapes have so many kernels that only the time limit ends a run. The other one is
# for where the package of the first is not installed.
LONG: dict[str, list[dict[str, tuple[int, ...]]]] = {
    "ppocr_rec": [{"x": (1, 3, 48, width)} for width in range(160, 1120, 80)],
    "resnet50": [],
}
CALM = 0.65
"""From this share of the time on, one run is left alone but for its children."""
SIGNALS = {signal.SIGKILL: 0.5, signal.SIGSEGV: 0.44, signal.SIGSTOP: 0.06}
"""What children get, and how often: one that is stopped holds up the run for 15 to 120 seconds."""
DISK_BYTES = 64 << 20
MARK, SERVER = "GRAPHOPT_SOAK_RUN", "graphopt.tuning.measure.server"
GRACE, SURVIVE = 400.0, 5.0
"""Seconds that a run may take beyond its time limit (finals; stopped children), and that its
processes may outlive it."""
FLAT_SHARE, FLAT_MB, JUDGED = 0.05, 30.0, 180.0
"""Memory may grow by so much from the second to the last third of runs of so many seconds."""
AGREE = 1e-4


@dataclass(frozen=True)
class Growth:
    """Mean memory of one process in the second third of its samples, and what the last added."""

    model: str
    process: str
    minutes: float
    megabytes: float
    most: float
    grown: float
    per_100_trials: float

    @property
    def flat(self) -> bool:
        return self.grown < max(FLAT_MB, FLAT_SHARE * self.megabytes)


@dataclass(frozen=True)
class Run:
    """One run; said: trials that it reported before its end, recorded: those in the log.

    ended: "by itself", or what ended it. silence: seconds from its last record to its end.
    """

    model: str
    ended: str
    code: int
    seconds: float
    said: int
    recorded: int
    statuses: Counter[str]
    attacks: Counter[str]
    silence: float
    survivors: list[str]
    words: str

    @property
    def expected(self) -> bool:
        """Whether it ended as it should after what was done to it."""
        codes = {"by itself": 0, "killed": -9, "disk full": 2, "server killed": 2}
        words = {"disk full": "cannot append", "server killed": "server"}.get(self.ended, "")
        clear = words in self.words and "Traceback" not in self.words
        return clear and self.code == codes.get(self.ended)


class Witness:
    """Follows a log from outside and remembers every line that was ever in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.lines: list[bytes] = []
        self.latest = time.monotonic()

    def look(self) -> None:
        """Read what has come since the last look, but for a line that has no end yet."""
        for path in self._folder.glob("*/*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                new = file.read()
            if new := new[: new.rfind(b"\n") + 1]:
                self._read[path] = self._read.get(path, 0) + len(new)
                self.lines += new.splitlines(keepends=True)
                self.latest = time.monotonic()

    def lost(self) -> int:
        """How many of the lines are not in the log any more, byte for byte."""
        present: Counter[bytes] = Counter()
        for path in self._folder.glob("*/*.jsonl"):
            present.update(path.read_bytes().splitlines(keepends=True))
        return sum((Counter(self.lines) - present).values())


class Screen:
    """The terminal of a run, which is where it says how far it is while it goes."""

    def __init__(self) -> None:
        self._master, self.terminal = pty.openpty()
        self.text, self.trials, self.phase = "", 0, "start"
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self._master, 1 << 16):
                plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
                self.text = (self.text + plain)[-20_000:]
                for trials in re.findall(r"\b(\d+) of \d+ trials \(", self.text)[-1:]:
                    self.trials = int(trials)
                for phase in re.findall(r"tuning: (search|finals|done)\b", self.text)[-1:]:
                    self.phase = phase
        os.close(self._master)


class Soak:
    """Runs on one log, what is done to them, and what comes of it."""

    def __init__(self, folder: Path, mounted: bool, threads: int, seed: int) -> None:
        self._folder, self._log, self._mounted = folder, folder / "log", mounted
        self._threads, self._random, self._next = threads, random.Random(seed), 0.0
        self.events: list[tuple[float, str]] = []
        self.witness = Witness(self._log)
        self.runs: list[Run] = []
        self.growths: list[Growth] = []

    def run(self, model: Model, shapes: Iterable[Mapping[str, Any]], limit: float) -> None:
        """One run to its end; events that are due are done to it."""
        words = [f"{n}={','.join(map(str, d))}" for each in shapes for n, d in each.items()]
        command = [sys.executable, "-m", "graphopt.cli.main", "tune", "--json"]
        command += [str(model.provide(self._folder)), "--log", str(self._log)]
        command += ["--threads", str(self._threads), "--trials", "100000"]
        command += ["--time-limit", f"{limit:.0f}"]
        command += [word for each in words for word in ("--shape", each)]
        mark, screen = f"{os.getpid()}.{len(self.runs)}", Screen()
        # Wide and high enough for rich to leave nothing out.
        more = {MARK: mark, "COLUMNS": "200", "LINES": "100", "TERM": "xterm-256color"}
        output, started, first = self._folder / "told", time.monotonic(), len(self.witness.lines)
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, env={**os.environ, **more}, stdout=file, stderr=screen.terminal
            )
        os.close(screen.terminal)
        attacks: Counter[str] = Counter()
        try:
            ended = self._attack(process, screen, model.name, attacks, started + limit + GRACE)
        finally:
            process.kill()  # nothing if it has ended
        code, seconds = process.wait(), time.monotonic() - started
        self.witness.look()
        silence = time.monotonic() - self.witness.latest
        survivors = _survivors(mark)
        told, said = output.read_text(), screen.trials
        with contextlib.suppress(ValueError):  # it was killed, and said nothing
            outcome = json.loads(told)
            said = outcome.get("trials", said)
            told = outcome["error"]["message"] if "error" in outcome else outcome["reason"]
        told += screen.text[screen.text.find("Traceback") :] if "Traceback" in screen.text else ""
        records = [r for line in self.witness.lines[first:] if (r := _record(line))]
        kernels = len({(r.workload_key, r.trace_key) for r in records if not r.final})
        statuses = Counter("final" if r.final else _status(r) for r in records)
        numbers = (code, seconds, said, kernels, statuses, attacks, silence, survivors, told)
        self.runs.append(Run(model.name, ended, *numbers))

    def _attack(
        self,
        process: subprocess.Popen[bytes],
        screen: Screen,
        model: str,
        attacks: Counter[str],
        deadline: float,
    ) -> str:
        """Attack a run until it ends; says what ended it."""
        driver, first, killed = psutil.Process(process.pid), len(self.witness.lines), 0.0
        samples: dict[tuple[str, int], list[tuple[float, int, float]]] = {}
        ended, sampled = "by itself", 0.0
        while process.poll() is None and ended == "by itself":
            time.sleep(0.2)
            self.witness.look()
            now, lines, server = time.monotonic(), len(self.witness.lines), _server(driver)
            if now > sampled + 5 and screen.phase == "search":  # finals load programs on purpose
                sampled = now
                for name, each in (("driver", driver), ("server", server)):
                    # Resident, not unique: what the server shares with its children is its own.
                    with contextlib.suppress(psutil.Error, AttributeError):  # gone, or None
                        sample = (now, lines, each.memory_info().rss / 1e6)
                        samples.setdefault((name, each.pid), []).append(sample)
            if server is not None and now > self._next:
                self._next = now + self._random.uniform(2, 8)
                attacks.update(_hurt(server, self._random))
            if now > deadline:
                ended = "hung"
            # Not before the run has measured something.
            if server is None or lines == first or not self.events or self.events[0][0] > now:
                continue
            _, event = self.events.pop(0)
            attacks[event] += 1
            if event == "server":
                killed = now
                server.kill()
            elif event == "disk":
                ended = self._fill(process)
            else:
                process.kill()
                ended = "killed"
        for (name, _), found in samples.items():
            self.growths += _growth(model, name, found)
        # In the finals, there is no second server.
        after = process.poll() == 2 and ended == "by itself" and time.monotonic() < killed + 30
        return "server killed" if after else ended

    def _fill(self, process: subprocess.Popen[bytes]) -> str:
        """Leave the run no room until it ends."""
        filler = self._log / "filler"
        if self._mounted:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
        else:
            size = 3000 + max(path.stat().st_size for path in self._log.glob("*/*.jsonl"))
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "hung"
        finally:
            filler.unlink(missing_ok=True)
        return "disk full"


def _server(driver: Any) -> Any:
    """The measure server of a run; None while there is none."""
    with contextlib.suppress(psutil.Error):
        return next((c for c in driver.children() if SERVER in c.cmdline()), None)
    return None


def _hurt(server: Any, rng: random.Random) -> list[str]:
    """Send a signal to a child of the server; its name, nothing if there is no child."""
    with contextlib.suppress(psutil.Error):
        if children := [c for c in server.children() if c.status() != psutil.STATUS_ZOMBIE]:
            (how,) = rng.choices(list(SIGNALS), list(SIGNALS.values()))
            rng.choice(children).send_signal(how)
            return [how.name]
    return []


def _survivors(mark: str) -> list[str]:
    """Processes of a run that are there some seconds after its end; ends them."""
    deadline = time.monotonic() + SURVIVE
    while True:
        found = [
            process
            for process in psutil.process_iter(["environ", "status", "cmdline"])
            if (process.info["environ"] or {}).get(MARK) == mark
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]
        if not found or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return [" ".join(process.info["cmdline"] or ["?"])[:80] for process in found]


def _growth(model: str, name: str, samples: Sequence[tuple[float, int, float]]) -> list[Growth]:
    """What became of the memory of a process; nothing if it did not live for long."""
    start, seconds = samples[0][0], samples[-1][0] - samples[0][0]
    second = [s for s in samples if 1 / 3 <= (s[0] - start) / max(seconds, 1e-9) < 2 / 3]
    last = [s for s in samples if (s[0] - start) / max(seconds, 1e-9) >= 2 / 3]
    if seconds < JUDGED or not second:
        return []
    before, after = (fmean(megabytes for *_, megabytes in third) for third in (second, last))
    trials = fmean(lines for _, lines, _ in last) - fmean(lines for _, lines, _ in second)
    slope = 100 * (after - before) / max(trials, 1.0)
    most = max(megabytes for *_, megabytes in samples)
    return [Growth(model, name, seconds / 60, before, most, after - before, slope)]


def _record(line: bytes) -> Record | None:
    with contextlib.suppress(RecordError, UnicodeDecodeError):
        return from_line(line.decode())
    return None


def _status(record: Record) -> str:
    return "no reference" if record.reason.startswith("no reference") else record.status


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Make `folder`, a file system of its own if that is allowed; whether it was."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "graphopt-soak", str(folder)]
    mounted = False
    with contextlib.suppress(FileNotFoundError):
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def schedule(rng: random.Random, seconds: float, kills: int) -> list[tuple[float, str]]:
    """What to do to runs and when: spread evenly, all before the calm."""
    start, until = time.monotonic(), 0.95 * CALM * seconds
    events = [(start + 0.5 * until, "disk")]
    for kind, count in (("kill -9", kills), ("server", max(1, round(seconds / 300)))):
        events += [(start + until * (i + rng.random()) / count, kind) for i in range(count)]
    return sorted(events)


def difference(model: Model, folder: Path, shapes: Any, threads: int) -> float:
    """How far the outputs with the log are from those without; infinite if it is of no use."""
    path = model.provide(folder)
    plain = graphopt.compile(path, shapes=shapes, threads=threads, tuning_log=())
    tuned = graphopt.compile(path, shapes=shapes, threads=threads, tuning_log=folder / "log")
    if not tuned.report.origins().get("tuned"):
        return float("inf")
    inputs = random_inputs(plain.inputs, plain.shapes[0])
    found = tuned.run(inputs)
    expected = plain.run(inputs).items()
    apart = [np.abs(found[name] - array).max() / np.abs(array).max() for name, array in expected]
    return float(np.max(apart))  # NaN if one is


def main() -> int:
    """Tune, attack, count, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=5, help="of the run itself, with -9")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unmount even so
    known, rng = {model.name: model for model in MODELS}, random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="graphopt-soak-") as name:
        folder, seconds = Path(name), 60 * args.minutes
        with small_disk(folder / "log") as mounted:
            soak, start = Soak(folder, mounted, args.threads, args.seed), time.monotonic()
            soak.events = schedule(rng, seconds, args.kills)
            for each in itertools.cycle(SHORT):
                left = start + CALM * seconds - time.monotonic()
                if left < (-GRACE if soak.events else 15):
                    break
                soak.run(known[each], [], min(rng.uniform(60, 240), max(left, 60)))
            soak.events = []  # what was not done misses its bar
            long, shapes = next((n, s) for n, s in LONG.items() if known[n].locate())
            soak.run(known[long], shapes, max(20.0, start + seconds - time.monotonic()))
            for each in itertools.cycle(SHORT):  # where it has ended by itself all the same
                left = start + seconds - time.monotonic()
                if left < 60:
                    break
                soak.run(known[each], [], left)
            apart = {}
            for each in dict.fromkeys(run.model for run in soak.runs):
                given = shapes[0] if each == long and shapes else None
                apart[each] = difference(known[each], folder, given, args.threads)
            return report(args, soak, folder / "log", mounted, apart)


def report(
    args: argparse.Namespace, soak: Soak, log: Path, mounted: bool, apart: Mapping[str, float]
) -> int:
    """Print what happened, and what of it misses a bar; 1 if anything does."""
    contents, lost = read(log), soak.witness.lost()
    attacks = sum((run.attacks for run in soak.runs), Counter[str]())
    statuses = sum((run.statuses for run in soak.runs), Counter[str]())
    hurt = sum(attacks[each.name] for each in SIGNALS)
    blamed = statuses["crash"] + statuses["timeout"]
    unheld = statuses["no reference"]
    keys = Counter((r.workload_key, r.trace_key) for r in contents.records if not r.final)
    twice = sum(count - 1 for count in keys.values())
    missing = sum(max(0, run.said - run.recorded) for run in soak.runs)
    survivors = sum(len(run.survivors) for run in soak.runs)
    wrong = [f"{r.model}, {r.ended}: {r.words[:300]}" for r in soak.runs if not r.expected]
    torn, allowed = len(contents.skipped), attacks["kill -9"] + attacks["disk"]
    grown = sum(not growth.flat for growth in soak.growths)
    watched = max((growth.minutes for growth in soak.growths), default=0.0)
    wanted = args.minutes / 4 if args.minutes >= 15 else 0.0  # a short soak is to try this out
    disk = "a full tmpfs" if mounted else "RLIMIT_FSIZE, because nothing could be mounted"
    apart_most = float(np.max(list(apart.values())))
    bars: list[tuple[str, float, bool]] = [
        ("runs killed with -9", attacks["kill -9"], attacks["kill -9"] == args.kills),
        (f"disk full: {disk}", attacks["disk"], attacks["disk"] == 1),
        ("runs that did not end as they should", len(wrong), not wrong),
        ("processes that outlived their run", survivors, not survivors),
        ("lines of the log that were lost", lost, not lost),
        ("trials that were reported and not recorded", missing, not missing),
        (f"torn lines (at most {allowed})", torn, torn <= allowed),
        ("kernels measured twice", twice, not twice),
        (f"trials that died (attacks on children: {hurt})", blamed, blamed <= hurt),
        # These were never run: one dead child of another kind costs them all.
        ("trials recorded as failed for want of a reference", unheld, not unheld),
        (f"processes that grew (of {len(soak.growths)})", grown, not grown),
        ("longest watch on memory, minutes", watched, watched >= wanted),
        ("relative difference of outputs", apart_most, apart_most <= AGREE),
    ]
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(
        _table("runs", [{**vars(run), "words": run.words[:40]} for run in soak.runs]),
        _table("memory", [vars(growth) for growth in soak.growths]),
        _table(
            f"{len(soak.runs)} runs, {len(contents.records)} records",
            [{"": text, "found": n, "bar": "met" if met else "missed"} for text, n, met in bars],
        ),
        f"attacks: {_short(attacks)}; trials: {_short(statuses)}",
        *map(escape, wrong),
    )
    if args.json:
        plain: dict[str, Any] = {"bars": bars, "attacks": attacks, "statuses": statuses}
        plain["differences"] = apart
        plain["runs"] = [vars(run) for run in soak.runs]
        plain["memory"] = [vars(growth) for growth in soak.growths]
        args.json.write_text(json.dumps(plain, indent=1))
    return 0 if all(met for *_, met in bars) else 1


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title)
    for name in rows[0] if rows else ():
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*map(_short, row.values()))
    return table


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return f"{value:.3g}" if isinstance(value, float) else escape(str(value))


if __name__ == "__main__":
    sys.exit(main())
