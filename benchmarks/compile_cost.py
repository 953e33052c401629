"""What compiling costs: time and peak memory, beside ONNX Runtime's session and both when running.

    python benchmarks/compile_cost.py --models resnet50

Memory is the peak resident size of a process that does only this. Then PP-OCR's text recogniser is
given one width of text after another, each of which it has to compile for: seconds until the first
result. Exit status 1 if ResNet-50 takes longer than its bar of 60 s, the recogniser's second width
longer than its bar of 5 s, or a model fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from catalogue import MODELS, select
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.bench import CompileOptions, EngineResult, bench

BARS = {"resnet50": 60.0}  # seconds
WIDTHS = (320, 480, 640)  # of the text recogniser's input, in pixels
SECOND_WIDTH_BAR = 5.0  # seconds


def main() -> int:
    """Compile each model once; print the costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [model.name for model in MODELS]
    parser.add_argument("--models", nargs="+", choices=names, default=["resnet50"])
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--no-records", action="store_true", help="use no tuning records")
    parser.add_argument("--no-widths", action="store_true", help="without the text recogniser")
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
        if not arguments.no_widths:
            problems += _widths(Path(folder), arguments.threads, figures, view)
    console.print(view)
    for problem in problems:
        console.print(f"[red]{problem}", highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if problems else 0


def _widths(
    folder: Path, threads: int | None, figures: list[dict[str, object]], view: Table
) -> list[str]:
    """Compile the text recogniser for each width when it first comes; returns what is wrong."""
    (model,) = select(["ppocr_rec"])
    path = model.provide(folder)
    if path is None:
        return [f"{model.name}: package {model.package} is not installed"]
    recogniser = graphopt.compile(path, threads=threads, cache=False)
    seconds = []
    for width in WIDTHS:
        started = time.perf_counter()
        recogniser.run({"x": np.zeros((1, 3, 48, width), np.float32)})
        seconds.append(time.perf_counter() - started)
        figures.append({"model": model.name, "width": width, "seconds": seconds[-1]})
        view.add_row(f"{model.name}, width {width}", "graphopt", f"{seconds[-1]:.2f}", "", "", "")
    late = seconds[1] > SECOND_WIDTH_BAR
    return [f"{model.name}: the second width took {seconds[1]:.1f} s"] if late else []


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
