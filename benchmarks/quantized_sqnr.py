"""End-to-end accuracy of int8 programs: python benchmarks/quantized_sqnr.py [--models …]

The SQNR of each model's outputs to the float model, which ONNX Runtime computes with optimisations
off, on seeded data apart from the calibration data: of graphopt's program and of ONNX Runtime (with
optimisations on and off) for the file of graphopt's quantizer and for that of ONNX Runtime's own.
Exit status 1 if graphopt is more than 1 dB below ONNX Runtime with optimisations off on the same
file, or with each engine on its own tool's file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from catalogue import Model, select
from ort_quantizer import quantize_with_ort
from quantized import MODELS
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.bench import sample_inputs

CALIBRATION, COMPARED = 8, 8
BAR = 1.0  # dB
COLUMNS = (
    "ours: graphopt", "ours: ORT", "ours: ORT optimised",
    "ORT's: graphopt", "ORT's: ORT", "ORT's: ORT optimised",
)  # fmt: skip

Feeds = dict[str, np.ndarray[Any, Any]]
Engine = Callable[[Feeds], Mapping[str, Any]]


def main() -> int:
    """Measure each model and print; 1 below the bar."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title="SQNR to the float model, dB")
    for heading in ("model", *COLUMNS):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    figures, problems = {}, []
    for model in select(arguments.models):
        with tempfile.TemporaryDirectory() as folder:
            found = measured(model, Path(folder), arguments.threads)
        if found is None:
            problems.append(f"{model.name}: package {model.package} is not installed")
            continue
        figures[model.name] = found
        table.add_row(model.name, *(f"{found[c]:.1f}" if c in found else "–" for c in COLUMNS))
        problems += [f"{model.name}: {text}" for text in below(found)]
    console.print(table)
    for problem in problems:
        console.print(f"[red]{problem}", highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if problems else 0


def below(found: Mapping[str, float]) -> list[str]:
    """Which comparisons graphopt loses by more than the bar."""
    pairs = (
        ("ours: graphopt", "ours: ORT"),
        ("ORT's: graphopt", "ORT's: ORT"),
        ("ours: graphopt", "ORT's: ORT"),
    )
    return [
        f"{mine} has {found[mine]:.1f} dB, {theirs} {found[theirs]:.1f} dB"
        for mine, theirs in pairs
        if theirs in found and found[mine] < found[theirs] - BAR
    ]


def measured(model: Model, folder: Path, threads: int | None) -> dict[str, float] | None:
    """SQNR by column; without ONNX Runtime's file where its tool fails."""
    path = model.provide(folder)
    if path is None:
        return None
    proto = onnx.load(path)
    batches = [
        sample_inputs(proto, model.shapes, given=model.inputs(), limits=model.limits, seed=seed)
        for seed in range(CALIBRATION + COMPARED)
    ]
    calibration, compared = batches[:CALIBRATION], batches[CALIBRATION:]
    files = {"ours": folder / "ours.onnx"}
    graphopt.quantize(path, calibration, shapes=model.shapes or None, threads=threads).save(
        files["ours"]
    )
    try:
        quantize_with_ort(path, folder / "theirs.onnx", calibration)
        files["ORT's"] = folder / "theirs.onnx"
    except Exception as error:  # its tool may fail in any way
        print(f"{model.name}: ONNX Runtime's quantizer: {error}", file=sys.stderr)
    exact = [_onnxruntime(path, False)(feeds) for feeds in compared]
    found = {}
    for name, file in files.items():
        program = graphopt.compile(file, shapes=model.shapes or None, threads=threads)
        engines: dict[str, Engine] = {
            "graphopt": program.run,
            "ORT": _onnxruntime(file, False),
            "ORT optimised": _onnxruntime(file, True),
        }
        for engine, run in engines.items():
            found[f"{name}: {engine}"] = sqnr(exact, [run(feeds) for feeds in compared])
    return found


def sqnr(exact: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> float:
    """Of the worst float output, over all batches, in dB."""
    worst = np.inf
    for name, first in exact[0].items():
        if first.dtype.kind != "f":
            continue
        a = np.concatenate([each[name].ravel() for each in exact]).astype(np.float64)
        b = np.concatenate([each[name].ravel() for each in other]).astype(np.float64)
        noise = float(np.sum((a - b) ** 2))
        worst = min(worst, 10 * np.log10(np.sum(a**2) / noise) if noise else np.inf)
    return float(worst)


def _onnxruntime(path: Path, optimised: bool) -> Engine:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


if __name__ == "__main__":
    sys.exit(main())
