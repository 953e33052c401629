"""How fast tuning is and what it brings: python benchmarks/tuning_speed.py [--model resnet18]

Runs `graphopt tune --fresh --trials 300` in a process of its own, start-up and finals included,
goes on to 1200 trials in a copy of the log (in several runs, because one ends when it expects no
more gain), and lets the untuned and both tuned programs take turns. Exit status 1 if a bar is
missed: at most 4 minutes, at least 90 % valid, at most 1.05 times the latency of 1200 trials.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from catalogue import MODELS
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.samples import random_inputs

SECONDS, VALID, RATIO = 240.0, 0.9, 1.05


@dataclass(frozen=True)
class Run:
    """One tuning run as its own process saw it, and how long that process lived."""

    seconds: float
    outcome: Mapping[str, Any]

    @property
    def valid(self) -> float:
        return float(self.outcome["ok"] / max(1, self.outcome["trials"]))


def tune(model: Path, log: Path, trials: int, threads: int, *more: str) -> Run:
    """`graphopt tune` in a process of its own."""
    command = [sys.executable, "-m", "graphopt.cli.main", "tune", str(model), "--log", str(log)]
    command += ["--trials", str(trials), "--threads", str(threads), "--json", *more]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return Run(time.perf_counter() - started, json.loads(done.stdout))


def tune_on(model: Path, log: Path, trials: int, threads: int, *more: str) -> Run:
    """Runs on one log, until they have made so many trials together or there are no more."""
    seconds, counts, outcome = 0.0, [0, 0, 0], dict[str, Any]()
    while counts[0] < trials:
        run = tune(model, log, trials - counts[0], threads, *more)
        outcome, seconds = dict(run.outcome), seconds + run.seconds
        made = [int(outcome[name]) for name in ("trials", "ok", "failed")]
        if not made[0]:
            break
        counts = [total + new for total, new in zip(counts, made, strict=True)]
    together = dict(zip(("trials", "ok", "failed"), counts, strict=True))
    return Run(seconds, outcome | together)


def turns(
    programs: Mapping[str, Path], rounds: int, seconds: float = 0.15
) -> dict[str, list[float]]:
    """Latencies of programs that take turns: the median of each turn."""
    loaded = {name: graphopt.load(path) for name, path in programs.items()}
    first = next(iter(loaded.values()))
    inputs = random_inputs(first.inputs, first.shapes[0])
    counts = {}
    for name, program in loaded.items():
        started = time.perf_counter()
        for _ in range(5):
            program.run(inputs)
        counts[name] = max(3, round(seconds / ((time.perf_counter() - started) / 5)))
    found: dict[str, list[float]] = {name: [] for name in loaded}
    for turn in range(rounds):
        order = list(loaded) if turn % 2 == 0 else list(loaded)[::-1]
        for name in order:
            samples = []
            for _ in range(counts[name]):
                started = time.perf_counter()
                loaded[name].run(inputs)
                samples.append(time.perf_counter() - started)
            found[name].append(float(np.median(samples)))
    return found


def ratio(found: Mapping[str, Sequence[float]], a: str, b: str) -> float:
    """Median of the paired ratios of two programs' latencies."""
    return median(x / y for x, y in zip(found[a], found[b], strict=True))


def main() -> int:
    """Tune, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", help="of the catalogue")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--more", type=int, default=1200, help="trials to compare with; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--keep", type=Path, help="folder for the logs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="graphopt-tuning-") as name:
        folder = args.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        entry = next(each for each in MODELS if each.name == args.model)
        model = entry.provide(folder)
        if model is None:
            parser.error(f"the package of {args.model} is not installed")
        dims = {name: ",".join(map(str, shape)) for name, shape in entry.shapes.items()}
        shapes = [word for n, d in dims.items() for word in ("--shape", f"{n}={d}")]
        short, long = folder / "short", folder / "long"
        runs = {"short": tune(model, short, args.trials, args.threads, "--fresh", *shapes)}
        logs: dict[str, Any] = {"untuned": (), "tuned": short}
        if args.more > args.trials:
            shutil.copytree(short, long)
            runs["long"] = tune_on(model, long, args.more - args.trials, args.threads, *shapes)
            logs["long"] = long
        programs = {}
        for label, log in logs.items():
            programs[label] = folder / f"{label}.gopt"
            compiled = graphopt.compile(
                model, shapes=entry.shapes or None, threads=args.threads, tuning_log=log
            )
            compiled.save(programs[label])
        found = turns(programs, args.rounds)
    return report(console, args, runs, found)


def report(
    console: Console,
    args: argparse.Namespace,
    runs: Mapping[str, Run],
    found: Mapping[str, Sequence[float]],
) -> int:
    """Print the figures; 1 if a bar is missed."""
    table = Table(title=f"tuning {args.model}, {args.threads} threads")
    for column in ("run", "trials", "valid", "seconds", "latency ms", "÷ untuned"):
        table.add_column(column, justify="left" if column == "run" else "right")
    latency = {name: 1e3 * median(times) for name, times in found.items()}
    table.add_row("untuned", "", "", "", f"{latency['untuned']:.3f}", "")
    for label, run in (("tuned", runs["short"]), ("long", runs.get("long"))):
        if run is not None:
            table.add_row(
                label,
                str(run.outcome["trials"]),
                f"{run.valid:.1%}",
                f"{run.seconds:.0f}",
                f"{latency[label]:.3f}",
                f"{ratio(found, label, 'untuned'):.3f}",
            )
    console.print(table)
    short = runs["short"]
    bars = [
        (f"{short.seconds:.0f} s of {SECONDS:.0f}", short.seconds <= SECONDS),
        (f"{short.valid:.1%} valid of {VALID:.0%}", short.valid >= VALID),
    ]
    if "long" in runs:
        beside = ratio(found, "tuned", "long")
        bars.append((f"{beside:.3f} times the latency of {args.more} trials", beside <= RATIO))
    for text, met in bars:
        console.print(f"{text}: {'met' if met else 'missed'}")
    if args.json:
        args.json.write_text(
            json.dumps(
                {
                    "runs": {k: {"seconds": r.seconds, **r.outcome} for k, r in runs.items()},
                    "latencies": {k: list(v) for k, v in found.items()},
                }
            )
        )
    return 0 if all(met for _, met in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
