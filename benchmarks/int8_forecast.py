"""The forecast of int8's gain by `graphopt inspect`, beside what is measured on this machine.

    python benchmarks/int8_forecast.py --models resnet18 squeezenet1_1 --targets cpu cpu:x86-64-v3

Both forms of each model are compiled for each target, and take turns. Exit status 1 if a measured
gain lies outside what was foretold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from catalogue import MODELS, Model, select
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.bench import sample_inputs

DEFAULT = ("resnet18", "mobilenet_v2", "squeezenet1_1", "minilm_l6")
ROUNDS = 15


def main() -> int:
    """Foretell, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [model.name for model in MODELS]
    parser.add_argument("--models", nargs="+", choices=names, default=list(DEFAULT))
    parser.add_argument("--targets", nargs="+", default=["cpu"], help="that run on this machine")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    arguments = parser.parse_args()
    table = Table(title="int8: times as fast as float32")
    for heading in ("model", "target", "foretold", "measured", "integer multiply-adds"):
        table.add_column(heading)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for model in select(arguments.models):
            path = model.provide(Path(folder))
            if path is None:
                wrong.append(f"{model.name}: package {model.package} is not installed")
                continue
            for target in arguments.targets:
                found = graphopt.inspect(path, target, shapes=model.shapes or None).int8
                if found is None:
                    wrong.append(f"{model.name}: there is no forecast for {target}")
                    continue
                gain = measured(model, path, target, arguments.threads)
                foretold = f"{found.least:.1f} to {found.most:.1f}"
                share = f"{found.share:.0%}"
                table.add_row(model.name, target, foretold, f"{gain:.2f}", share)
                if not found.least <= gain <= found.most:
                    wrong.append(f"{model.name} on {target}: the forecast is off")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for problem in wrong:
        console.print(f"[red]{problem}", highlight=False)
    return 1 if wrong else 0


def measured(model: Model, path: Path, target: str, threads: int | None) -> float:
    """The median over rounds of float seconds by int8 seconds."""
    proto = onnx.load(path)
    inputs = sample_inputs(proto, model.shapes, given=model.inputs(), limits=model.limits)
    options: dict[str, Any] = {"shapes": model.shapes or None, "threads": threads}
    quantized = graphopt.quantize(proto, [inputs], **options).model
    programs = [graphopt.compile(each, target, **options) for each in (proto, quantized)]
    ratios = []
    for _ in range(ROUNDS):
        first, second = (_seconds(program, inputs) for program in programs)
        ratios.append(first / second)
    return float(np.median(ratios))


def _seconds(program: graphopt.CompiledModel, inputs: Mapping[str, Any]) -> float:
    program.run(inputs)
    started = time.perf_counter()
    for _ in range(3):
        program.run(inputs)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
