"""Whether the cost model earns its keep: python benchmarks/tuning_curves.py [--model mobilenet_v2]

Tunes a model with equal trials in three ways: kernels drawn at random, chosen by a cost model that
starts cold, and by one that was taught by the records of other models (--taught-by). Prints the
expected latency after each batch, as isolated kernels give it: all three start from the same
kernels, and the finals, which none of them chooses by, are left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalogue import MODELS, Model
from rich.console import Console
from rich.table import Table

from graphopt.autotuning import pose
from graphopt.config import CompileConfig
from graphopt.frontend.load import load_model
from graphopt.tuning.database import Writer, read
from graphopt.tuning.records import Record
from graphopt.tuning.tuner import Budget, Tuner

Curve = list[tuple[int, float]]


def curve(
    path: Path, entry: Model, threads: int, trials: int, log: Path, **how: Any
) -> tuple[Curve, list[Record]]:
    """(trials, expected seconds) after each batch, and the records of the run."""
    shapes = dict(entry.shapes) or None
    config = CompileConfig.of(threads=threads, shapes=shapes)
    problems = pose(load_model(path), config)
    key = config.target.key(threads)
    taught: Sequence[Record] = how.pop("records", ())
    with Writer(log, key) as writer:
        tuner = Tuner(problems, config.target, threads, writer, taught, _no_finals, **how)
        outcome = tuner.run(Budget(trials))
    return [(count, seconds) for _, count, seconds in outcome.history], read(log, key).records


def _no_finals(
    _server: Any, _problem: Any, variants: Sequence[Any]
) -> tuple[list[Mapping[int, float]], float]:
    return [{} for _ in variants], 1.0


def main() -> int:
    """Tune three times and print the curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mobilenet_v2", help="of the catalogue")
    parser.add_argument("--taught-by", default="squeezenet1_1", help="of the catalogue")
    parser.add_argument("--trials", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    console = Console()
    entries = {entry.name: entry for entry in MODELS}
    with tempfile.TemporaryDirectory(prefix="graphopt-curves-") as name:
        folder = Path(name)
        paths = {}
        for model in (args.model, args.taught_by):
            path = entries[model].provide(folder)
            if path is None:
                parser.error(f"the package of {model} is not installed")
            paths[model] = path

        def run(model: str, label: str, **how: Any) -> tuple[Curve, list[Record]]:
            console.print(f"tuning {model}: {label}")
            log = folder / label
            return curve(paths[model], entries[model], args.threads, args.trials, log, **how)

        _, taught = run(args.taught_by, "teacher")
        found = {
            "random": run(args.model, "random", learn=False)[0],
            "cold model": run(args.model, "cold")[0],
            "taught model": run(args.model, "taught", records=taught)[0],
        }
    table = Table(title=f"{args.model}: expected ms of kernels after so many trials")
    for column in ("trials", *found):
        table.add_column(column, justify="right")
    counts = sorted({count for points in found.values() for count, _ in points})
    for count in counts:
        table.add_row(str(count), *(_at(points, count) for points in found.values()))
    console.print(table)
    return 0


def _at(points: Curve, count: int) -> str:
    seconds = [s for trials, s in points if trials == count]
    return f"{1e3 * seconds[-1]:.3f}" if seconds else ""


if __name__ == "__main__":
    sys.exit(main())
