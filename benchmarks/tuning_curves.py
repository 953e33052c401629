"""Whether the cost model earns its keep: python benchmarks/tuning_curves.py [--models resnet18 …]

Tunes each model with equal trials in three ways: kernels drawn at random, chosen by a cost model
that starts cold, and by one that was taught by the records of the other models and by none of its
own. What each way would choose after a quarter, half and all of its trials is then measured again,
all together, five times in random order: the curves are of these times, so that nobody profits
from a lucky one. They are those of isolated kernels; layout changes are left out.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from catalogue import MODELS, Model
from rich.console import Console
from rich.table import Table

from graphopt.autotuning import pose
from graphopt.config import CompileConfig
from graphopt.frontend.load import load_model
from graphopt.lowering.lower import Problem
from graphopt.tuning.advice import advise
from graphopt.tuning.codec import workload_key
from graphopt.tuning.database import Writer, read
from graphopt.tuning.measure.client import Server, Trial
from graphopt.tuning.records import Record
from graphopt.tuning.tasks import standing
from graphopt.tuning.tuner import Budget, Tuner
from schedules.interface import Decisions, Workload

DEFAULT = ("resnet18", "mobilenet_v2", "squeezenet1_1", "vit_tiny", "minilm_l6", "ppocr_rec")
WAYS = ("random", "cold", "taught")
SHARES = (0.25, 0.5, 1.0)
ROUNDS = 5

Kernel = tuple[str, str, Decisions]
"""A workload's key, a candidate's name and decisions."""


@dataclass(frozen=True)
class Subject:
    """A model to be tuned."""

    entry: Model
    config: CompileConfig
    problems: Sequence[Problem]

    @property
    def key(self) -> str:
        return self.config.target.key(self.config.threads)

    @property
    def workloads(self) -> dict[str, Workload]:
        found = {p.group(i).workload for p in self.problems for i in p.offers}
        return {workload_key(workload): workload for workload in found}


def subject(entry: Model, path: Path, threads: int) -> Subject:
    """The model, ready to be tuned."""
    config = CompileConfig.of(threads=threads, shapes=dict(entry.shapes) or None)
    return Subject(entry, config, pose(load_model(path), config))


def tune(
    model: Subject, trials: int, log: Path, taught: Sequence[Record] = (), learn: bool = True
) -> list[Record]:
    """The records of a run, in order."""
    with Writer(log, model.key) as writer:
        tuner = Tuner(
            model.problems,
            model.config.target,
            model.config.threads,
            writer,
            taught,
            _no_finals,
            learn=learn,
        )
        tuner.run(Budget(trials))
    return read(log, model.key).records


def _no_finals(
    _server: Any, _problem: Any, variants: Sequence[Any]
) -> tuple[list[Mapping[int, float]], float]:
    return [{} for _ in variants], 1.0


def choice(model: Subject, records: Sequence[Record]) -> list[Kernel]:
    """The kernel of each group, by what these records know."""
    now = standing(model.problems, advise(records, model.key))
    return [(*name, now.decisions[name]) for name in now.chosen]


def measured_again(model: Subject, kernels: Iterable[Kernel]) -> dict[Kernel, float]:
    """Times of kernels, as multiples of the reference kernel's: the median of some."""
    distinct = list(dict.fromkeys(kernels))
    workloads = model.workloads
    found: dict[Kernel, list[float]] = {kernel: [] for kernel in distinct}
    with Server(model.config.target, model.config.threads) as server:
        for number in range(ROUNDS):
            random.Random(number).shuffle(distinct)
            trials = [Trial(workloads[key], name, how, 1e9) for key, name, how in distinct]
            for index, result in server.measure(trials):
                if result.status == "ok":
                    found[distinct[index]].append(result.ratio)
    return {kernel: median(ratios) for kernel, ratios in found.items()}


def curves(model: Subject, logs: Mapping[str, Sequence[Record]], trials: int) -> dict[str, Any]:
    """For each way, what its choices take after shares of the trials, over the untuned ones'."""
    untuned = choice(model, [])
    choices = {
        way: [choice(model, records[: round(share * trials)]) for share in SHARES]
        for way, records in logs.items()
    }
    every = [kernel for ways in choices.values() for chosen in ways for kernel in chosen]
    times = measured_again(model, [*untuned, *every])
    base = sum(times[kernel] for kernel in untuned)
    return {
        way: [sum(times[kernel] for kernel in chosen) / base for chosen in each]
        for way, each in choices.items()
    }


def main() -> int:
    """Tune each model three times; 1 if the cost model does not win."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=DEFAULT, help="of the catalogue")
    parser.add_argument("--trials", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console = Console()
    entries = {entry.name: entry for entry in MODELS}
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="graphopt-curves-") as name:
        folder = Path(name)
        models: dict[str, Subject] = {}
        for each in args.models:
            path = entries[each].provide(folder)
            if path is None:
                console.print(f"{each} is left out: its package is not installed")
            else:
                models[each] = subject(entries[each], path, args.threads)
        cold: dict[str, list[Record]] = {}
        for each, model in models.items():
            console.print(f"tuning {each}: cold")
            cold[each] = tune(model, args.trials, folder / f"{each}-cold")
        for each, model in models.items():
            console.print(f"tuning {each}: random, taught")
            others = [r for other, records in cold.items() if other != each for r in records]
            mine = set(model.workloads)
            taught = [record for record in others if record.workload_key not in mine]
            count = args.trials
            logs = {
                "random": tune(model, count, folder / f"{each}-random", learn=False),
                "cold": cold[each],
                "taught": tune(model, count, folder / f"{each}-taught", taught),
            }
            found[each] = curves(model, logs, count)
    return report(console, args, found)


def report(
    console: Console, args: argparse.Namespace, found: Mapping[str, Mapping[str, Sequence[float]]]
) -> int:
    """Print the curves; 1 if a way that should win does not."""
    table = Table(title="kernels' time ÷ untuned, after so many trials")
    for name in ("model", "kernels chosen", *(str(round(share * args.trials)) for share in SHARES)):
        table.add_column(name, justify="right" if name.isdigit() else "left")
    means = {
        way: [geometric_mean(ways[way][i] for ways in found.values()) for i in range(len(SHARES))]
        for way in WAYS
    }
    for name, ways in (*found.items(), ("mean", means)):
        for way in WAYS:
            table.add_row(name, way, *(f"{value:.3f}" for value in ways[way]))
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps({"curves": found, "means": means}))
    for better, worse in (("taught", "random"), ("cold", "random"), ("taught", "cold")):
        count = sum(ways[better][-1] < ways[worse][-1] for ways in found.values())
        console.print(f"{better} beats {worse} on {count} of {len(found)} models")
    wins = [
        (
            "the cost model, as it is shipped, beats random search on every model",
            all(ways["taught"][-1] < ways["random"][-1] for ways in found.values()),
        ),
        ("teaching beats a cold start", means["taught"][-1] < means["cold"][-1]),
    ]
    for text, met in wins:
        console.print(f"{text}: {'met' if met else 'missed'}")
    return 0 if all(met for _, met in wins) else 1


if __name__ == "__main__":
    sys.exit(main())
