"""What compiling costs: time and peak memory, beside ONNX Runtime's session and both when running.

    python benchmarks/compile_cost.py --models resnet50

Memory is the peak resident size of a process that does only this. Exit status 1 if ResNet-50
takes longer than its bar of 60 s, or a model fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from catalogue import MODELS, select
from rich.console import Console
from rich.table import Table

from graphopt.bench import CompileOptions, EngineResult, bench

BARS = {"resnet50": 60.0}  # seconds


def main() -> int:
    """Compile each model once; print the costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [model.name for model in MODELS]
    parser.add_argument("--models", nargs="+", choices=names, default=["resnet50"])
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--no-records", action="store_true", help="use no tuning records")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    view = Table(title="cost of compiling and running")
    for heading in ("model", "engine"):
        view.add_column(heading)
    for heading in ("compile s", "compile MB", "load s", "run MB"):
        view.add_column(heading, justify="right")
    figures: list[dict[str, object]] = []
    problems: list[str] = []
    options = CompileOptions(tuning_log=() if arguments.no_records else None)
    with tempfile.TemporaryDirectory() as folder:
        for model in select(arguments.models):
            path = model.provide(Path(folder))
            if path is None:
                problems.append(f"{model.name}: package {model.package} is not installed")
                continue
            row = bench(
                path,
                vs=("onnxruntime",),
                shapes=model.shapes,
                inputs=model.inputs(),
                limits=model.limits,
                threads=arguments.threads,
                rounds=1,
                turn_seconds=0.05,
                options=options,
                name=model.name,
            )
            problems += [f"{model.name}: {failure}" for failure in row.failures]
            bar = BARS.get(model.name)
            if bar is not None and row.subject.compile_seconds > bar:
                problems.append(f"{model.name}: compiled in more than {bar:.0f} s")
            for result in (row.subject, *row.peers):
                figures.append({"model": model.name, **asdict(result)})
                view.add_row(model.name, *_cells(result))
    console.print(view)
    for problem in problems:
        console.print(f"[red]{problem}", highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if problems else 0


def _cells(result: EngineResult) -> tuple[str, ...]:
    return (
        result.name,
        f"{result.compile_seconds:.2f}",
        f"{result.compile_peak_bytes / 2**20:.0f}",
        f"{result.load_seconds:.2f}",
        f"{result.run_peak_bytes / 2**20:.0f}",
    )


if __name__ == "__main__":
    sys.exit(main())
