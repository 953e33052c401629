"""What Winograd's algorithm costs in accuracy: python benchmarks/winograd_error.py

Layers: each 3×3 kernel on normally distributed inputs and weights, against NumPy in float64.
Networks: each setting of `numerics` against ONNX's reference evaluator on the model in float64
(ONNX Runtime has no such convolution), and ONNX Runtime's float32 beside. The error is the largest
difference over the largest value of the exact result.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from catalogue import Model, select
from double import doubled, in_double
from onnx.reference import ReferenceEvaluator
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.bench import sample_inputs
from graphopt.bench.accuracy import relative_error
from graphopt.target import TargetSpec
from graphopt.tuning.measure.program import load, make_single
from graphopt.tuning.measure.reference import make_inputs, offers, reference
from schedules.interface import Op, TensorSig, Workload

LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
"""Channels, in and out, and height and width."""
NETWORKS = ("resnet18", "resnet50", "squeezenet1_1", "ppocr_det", "ppocr_rec")
SETTINGS = ("strict", "default", "relaxed")


def layer(channels: int, size: int) -> dict[str, float]:
    """The error of each kernel for such a layer."""
    target = TargetSpec.parse("cpu")
    traits, arch = target.traits(1), target.arch
    image = TensorSig((1, channels, size, size))
    attrs = (("strides", (1, 1)), ("padding", (1,) * 4), ("dilation", (1, 1)), ("groups", 1))
    weights = TensorSig((channels, channels, 3, 3))
    workload = Workload(Op("conv2d", (image, weights), image, attrs, (False, True)))
    arrays = make_inputs(workload)
    exact = reference(workload, arrays, traits, target.tvm_target(1), arch)
    found = {}
    for candidate in offers(workload, traits):
        single = make_single(workload, candidate, arrays, traits, target.tvm_target(1))
        result = load(single, target.tvm_target(1), arch).run()
        found[candidate.name] = relative_error(result, exact)
    return found


def network(entry: Model, folder: Path) -> dict[str, float] | None:
    """The error of each setting on a network; None if it is not installed."""
    path = entry.provide(folder)
    if path is None:
        return None
    model = onnx.load(path)
    feeds = sample_inputs(model, entry.shapes, given=entry.inputs(), limits=entry.limits)
    names = [value.name for value in model.graph.output]
    exactly = ReferenceEvaluator(in_double(model))
    results = exactly.run(names, {name: doubled(x) for name, x in feeds.items()})
    exact = dict(zip(names, results, strict=True))
    found = {}
    for numerics in SETTINGS:
        program = graphopt.compile(model, shapes=dict(entry.shapes) or None, numerics=numerics)
        found[numerics] = _worst(program.run(feeds), exact)
    found["ONNX Runtime"] = _worst(_onnxruntime(model, feeds), exact)
    return found


def _onnxruntime(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _worst(found: dict[str, Any], exact: dict[str, Any]) -> float:
    return max(relative_error(np.asarray(found[name]), exact[name]) for name in exact)


def table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    """One line per layer or network, one column per kernel or setting."""
    shown = Table(title=title)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    shown.add_column("")
    for name in names:
        shown.add_column(name.removeprefix("conv2d."), justify="right")
    for label, row in rows.items():
        shown.add_row(label, *(f"{row[name]:.1e}" if name in row else "–" for name in names))
    return shown


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help="of the catalogue")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    layers = {f"{channels} × {size}²": layer(channels, size) for channels, size in LAYERS}
    console.print(table("error of a layer", layers))
    networks = {}
    with tempfile.TemporaryDirectory(prefix="graphopt-models-") as folder:
        for entry in select(list(args.networks)) if args.networks else ():
            errors = network(entry, Path(folder))
            if errors is None:
                console.print(f"{entry.name} is left out: its package is not installed")
            else:
                networks[entry.name] = errors
    console.print(table("error of a network", networks))
    if args.json:
        args.json.write_text(json.dumps({"layers": layers, "networks": networks}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
