"""int8 beside ONNX Runtime and OpenVINO: python benchmarks/quantized.py [--models …] [--json FILE]

Every model is quantized by graphopt, by ONNX Runtime's own tool and by OpenVINO's (NNCF, where it
is installed), from the same seeded data, and measured in these ways: all engines on each of the
files, and each engine on its own tool's (OpenVINO on whichever of the three it runs fastest).
Beside: what graphopt's float program takes, and how far the files are from the float model. Random
data shows latency; accuracy is quantization_accuracy.py's. Exit status as of compare.py.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from catalogue import Model, select
from nncf_quantizer import is_installed, quantize_with_nncf
from ort_quantizer import quantize_with_ort, write_prepared
from rich.console import Console
from rich.table import Table

import graphopt
from graphopt.bench import CompileOptions, Row, bench, sample_inputs
from graphopt.runtime.host import physical_cores
from graphopt.tolerance import QUANTIZED

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "squeezenet1_1",
    "minilm_l6",
    "ppocr_rec",
    "ppocr_det",
)
PEERS = ("onnxruntime", "openvino")
NAMES = {"graphopt": "our", "onnxruntime": "ORT's", "openvino": "NNCF's"}
TOOLS = tuple(NAMES)
"""By the engine that each quantizer belongs to."""
TRANSFORMERS = ("minilm_l6",)
"""What NNCF is to be told of."""
BATCHES = 8

Feeds = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Result:
    """One model: latency ratios by setting and peer, that to graphopt's float, SQNR of each tool's
    file in dB, and what failed.

    files: by tool, latency ratios on its file by peer. own: with each engine on its own tool's.
    """

    model: str
    milliseconds: float
    files: Mapping[str, Mapping[str, float]]
    own: Mapping[str, float]
    to_float: float
    sqnr: Mapping[str, float]
    failures: tuple[str, ...]


def batches(path: Path, model: Model) -> list[Feeds]:
    """Seeded inputs."""
    proto = onnx.load(path, load_external_data=False)
    return [
        sample_inputs(proto, model.shapes, given=model.inputs(), limits=model.limits, seed=seed)
        for seed in range(BATCHES)
    ]


def sqnr(reference: Path, path: Path, feeds: Feeds) -> float:
    """Signal to quantization noise of all outputs, both run by ONNX Runtime unoptimised, in dB."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    runs = [ort.InferenceSession(str(each), options).run(None, feeds) for each in (reference, path)]
    signal = sum(float(np.square(want.astype("f8")).sum()) for want in runs[0])
    pairs = zip(*runs, strict=True)
    noise = sum(float(np.square(want.astype("f8") - found).sum()) for want, found in pairs)
    return 10 * math.log10(signal / noise) if noise else math.inf


def medians(row: Row) -> dict[str, float]:
    """The subject's latency divided by each peer's."""
    return {name: spread.median for name, spread in row.ratios.items()}


def measure(model: Model, folder: Path, threads: int, rounds: int, records: bool) -> Result | None:
    """Quantize and measure one model; None if its package is not installed."""
    path = model.provide(folder)
    if path is None:
        return None
    data = batches(path, model)
    shapes, constants = dict(model.shapes), dict(model.constants)
    files = {tool: folder / f"{model.name}.{tool}.onnx" for tool in TOOLS}
    result = graphopt.quantize(path, data, shapes=shapes or None, constants=constants or None)
    result.save(files["graphopt"])
    quantize_with_ort(path, files["onnxruntime"], data)
    if is_installed():
        preset = "transformer" if model.name in TRANSFORMERS else "performance"
        prepared = folder / f"{model.name}.prepared.onnx"
        write_prepared(path, prepared)
        quantize_with_nncf(prepared, files["openvino"], data, preset)
    else:
        del files["openvino"]
    options = CompileOptions(tuning_log=None if records else ())

    def compared(file: Path, name: str, **more: Any) -> Row:
        return bench(
            file,
            vs=PEERS,
            shapes=shapes,
            inputs=data[0],
            threads=threads,
            rounds=rounds,
            options=options,
            name=f"{model.name}, {name}",
            tolerance=math.inf,
            **more,
        )

    rows = {tool: compared(file, f"{tool}'s file") for tool, file in files.items()}
    openvino = {
        tool: row.subject.latency / medians(row)["openvino"] for tool, row in rows.items() if row.ok
    }
    fastest = min(openvino, key=lambda tool: openvino[tool], default="graphopt")
    # Quantized differently, they differ by design: how far is told apart.
    own = compared(path, "each its own", files={**files, "openvino": files[fastest]})
    floats = bench(
        path,
        vs=(),
        shapes=shapes,
        inputs=data[0],
        threads=threads,
        rounds=rounds,
        options=options,
        name=f"{model.name}, float",
    )
    return Result(
        model.name,
        1e3 * own.subject.latency,
        {tool: medians(row) for tool, row in rows.items()},
        medians(own),
        floats.subject.latency / own.subject.latency,
        {tool: sqnr(path, file, data[0]) for tool, file in files.items()},
        tuple(failure for row in (*rows.values(), own, floats) for failure in row.failures)
        + tuple(failure for row in rows.values() for failure in too_far(row)),
    )


def too_far(row: Row) -> list[str]:
    """What is wrong with outputs, from one file, against ONNX Runtime's without optimisations.

    A network that random data drives to the edges of its ranges makes much of a single step: then
    all engines differ from the reference, and nobody may differ twice as much as the peers do.
    """
    limit = max(QUANTIZED, 2 * min(peer.error for peer in row.peers))
    if row.subject.error <= limit:
        return []
    return [f"{row.model}: outputs are off by {row.subject.error:.1e}, more than {limit:.1e}"]


def table(results: Sequence[Result]) -> Table:
    """All results, and the means of what is faster of the peers."""
    settings = {f"{NAMES[tool]} file": [r.files.get(tool, {}) for r in results] for tool in TOOLS}
    settings["own files"] = [r.own for r in results]
    head = [f"{name}: ÷ {short}" for name in settings for short in ("ORT", "OV")]
    quality = [f"dB {NAMES[tool]}" for tool in TOOLS]
    made = Table("model", "ms", *head, "× float", *quality)
    made.title = "int8: latency of graphopt ÷ peer (below 1: graphopt is faster)"
    for index, result in enumerate(results):
        ratios = [rows[index].get(peer) for rows in settings.values() for peer in PEERS]
        made.add_row(
            result.model,
            f"{result.milliseconds:.3g}",
            *("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            f"{result.to_float:.2f}",
            *(f"{result.sqnr[tool]:.1f}" if tool in result.sqnr else "–" for tool in TOOLS),
        )
    means = {
        name: geometric_mean([max(ratios.values()) for ratios in rows if ratios] or [1])
        for name, rows in settings.items()
    }
    made.caption = "geometric means ÷ the faster peer: " + ", ".join(
        f"{name} {mean:.2f}" for name, mean in means.items()
    )
    return made


def main() -> int:
    """Measure; print the table and the failures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-records", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    results = []
    with tempfile.TemporaryDirectory(prefix="graphopt-quantized-") as folder:
        for model in select(arguments.models):
            with console.status(model.name):
                found = measure(
                    model,
                    Path(folder),
                    arguments.threads,
                    arguments.rounds,
                    not arguments.no_records,
                )
            if found is None:
                console.print(f"[yellow]skipped {model.name}: {model.package} is not installed")
                continue
            results.append(found)
            for failure in found.failures:
                console.print(f"[red]{found.model}: {failure}", highlight=False)
    console.print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    return int(not results or any(result.failures for result in results))


if __name__ == "__main__":
    sys.exit(main())
