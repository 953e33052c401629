"""What quantization costs in accuracy, beside ONNX Runtime's and NNCF's quantizers.

    python benchmarks/quantization_accuracy.py --cache out/accuracy
    python benchmarks/quantization_accuracy.py --tasks magika --quantizers graphopt nncf --seeds 1

Four pretrained models, each with calibration samples that the seed chooses and held-out samples
that are the same for all. Every quantizer gets the same calibration samples and the same prepared
model (see peer_model()), and every model, the float one too, runs in ONNX Runtime on one thread.
Shown are error rates over all seeds, and differences with their paired 95 % intervals (see
paired.py). With --cache, what is done is not done again as long as graphopt's quantizer is as it
was. Exit status 1 if a bar is missed: graphopt's defaults cost more than half a point, or are worse
than a peer by more than chance explains.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from accuracy_table import table
from nncf_quantizer import is_installed, quantize_with_nncf
from ort_quantizer import quantize_with_ort, write_prepared
from paired import difference, error_rate
from quantization_tasks import Array, Feeds, Predict, Sample, Task, mistakes
from quantized_share import quantized_share
from rich.console import Console
from task_digits import Digits
from task_files import FileTypes
from task_text import TextLines
from task_voice import Voice

import graphopt
from graphopt.artifact.atomic import replacing
from graphopt.frontend.load import load_model
from graphopt.frontend.prepare import prepare

TASKS: tuple[Task, ...] = (Digits(), TextLines(), Voice(), FileTypes())
FLOAT = "float32"
OURS: dict[str, dict[str, Any]] = {
    "graphopt": {},
    "graphopt-w4": {"config": "int4-weights"},
    "graphopt-w4a8": {"weight_bits": 4},
}
"""Options of graphopt.quantize(); the first one has the defaults, which the bars are about."""
ORT = {"ort-minmax": "MinMax", "ort-entropy": "Entropy", "ort-percentile": "Percentile"}
NNCF = {"nncf": "performance", "nncf-mixed": "mixed", "nncf-transformer": "transformer"}
QUANTIZERS = (*OURS, *ORT, *NNCF)
MOST = 0.5
"""Points that graphopt's defaults may cost."""


def peer_model(source: Path, task: Task) -> onnx.ModelProto:
    """The float model as every peer gets it: inputs bound, branches taken, constants folded.

    Without that, neither peer can quantize a model with control flow.
    """
    bound = {name: np.asarray(value) for name, value in task.constants.items()}
    return prepare(load_model(source), task.shapes, bound).proto


def quantized(
    name: str,
    task: Task,
    source: Path,
    data: Sequence[Feeds],
    out: Path,
    options: Mapping[str, Any],
) -> None:
    """Write a model as the quantizer called `name` makes it; `options` are for graphopt's."""
    if name in OURS:
        result = graphopt.quantize(
            source, data, shapes=task.shapes, constants=dict(task.constants), threads=1,
            **{**OURS[name], **options},
        )  # fmt: skip
        result.save(out)
        return
    ready = out.with_suffix(".ready.onnx")
    onnx.save(peer_model(source, task), ready)
    if name in ORT:
        from onnxruntime.quantization import CalibrationMethod

        quantize_with_ort(ready, out, data, calibrate_method=CalibrationMethod[ORT[name]])
    else:
        prepared = out.with_suffix(".prepared.onnx")
        write_prepared(ready, prepared)
        quantize_with_nncf(prepared, out, data, NNCF[name])


def predictor(path: Path, constants: Mapping[str, Any]) -> Predict:
    """A model in ONNX Runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    fixed = {name: np.asarray(value) for name, value in constants.items() if name in wanted}

    def predict(feeds: Feeds) -> Mapping[str, Array]:
        return dict(zip(names, session.run(names, {**feeds, **fixed}), strict=True))

    return predict


def measured(
    name: str, task: Task, seed: int, samples: Sequence[Sample], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a model decides, the seconds that quantizing took, and what is in integers."""
    with tempfile.TemporaryDirectory(prefix="graphopt-accuracy-") as folder:
        source = task.model(Path(folder))
        assert source is not None
        path, seconds, share = source, 0.0, {}
        if name != FLOAT:
            data = task.calibration(seed)
            path = Path(folder) / "quantized.onnx"
            started = time.perf_counter()
            quantized(name, task, source, data, path, options)
            seconds = time.perf_counter() - started
            share = asdict(quantized_share(onnx.load(path), data[0], name == "graphopt-w4"))
        predict = predictor(path, task.constants)
        decided = [task.decide(predict, sample) for sample in samples]
    return {"decided": decided, "seconds": seconds, "share": share}


def digest(name: str, task: Task, samples: Sequence[Sample], options: Mapping[str, Any]) -> str:
    """Of the samples, and of the code that a result follows from."""
    here = Path(__file__).parent
    files = [Path(inspect.getfile(type(task))), here / "digits.py"]
    if name in ORT or name in NNCF:
        files.append(here / "ort_quantizer.py")
    if name in NNCF:
        files.append(here / "nncf_quantizer.py")
    if name in OURS:
        package = Path(graphopt.__file__).parent
        files += [*(package / "compression").rglob("*.py"), package / "quantizing.py"]
    found = hashlib.sha256(json.dumps(dict(options), sort_keys=True).encode())
    for path in sorted(files):
        found.update(path.read_bytes())
    for sample in samples:
        for array in sample.feeds.values():
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:12]


def cached(
    folder: Path | None, name: str, task: Task, seed: int, samples: Sequence[Sample],
    options: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """measured(), or what an earlier run left in `folder`."""
    if folder is None:
        return measured(name, task, seed, samples, options)
    mine = options if name in OURS else {}
    path = (
        folder
        / f"{task.name}-{name}-{seed}-{len(samples)}-{digest(name, task, samples, mine)}.json"
    )
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(measured(name, task, seed, samples, mine))
        with replacing(path, "benchmark") as file:
            file.write(text.encode())
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def evaluate(
    task: Task, names: Sequence[str], seeds: int, count: int, folder: Path | None,
    options: Mapping[str, Any], console: Console,
) -> dict[str, Any]:  # fmt: skip
    """Everything about one task."""
    samples = task.samples(count)
    exact = cached(folder, FLOAT, task, 0, samples, {})["decided"]
    right = [sample.truth for sample in samples]
    errors = {FLOAT: [_mistakes(exact, right)]}
    changes, rows, failures = {}, {}, {}
    for name in names:
        found = []
        try:
            for seed in range(seeds):
                found.append(cached(folder, name, task, seed, samples, options))
                console.print(f"{task.name}: {name}, seed {seed}", style="dim", highlight=False)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {str(error)[:300]}"
            console.print(f"[red]{task.name}: {name} failed: {failures[name]}", highlight=False)
            continue
        errors[name] = [_mistakes(each["decided"], right) for each in found]
        changes[name] = [_mistakes(each["decided"], exact) for each in found]
        rows[name] = {
            "errors": error_rate(errors[name]),
            "drop": asdict(difference(errors[name], errors[FLOAT])),
            "changed": error_rate(changes[name]),
            "seconds to quantize": float(np.mean([each["seconds"] for each in found])),
            **found[0]["share"],
        }
    ours = next(iter(OURS))
    for name in rows:
        if ours in rows and name != ours:
            rows[name]["graphopt less it"] = asdict(difference(errors[ours], errors[name]))
    decisions = sum(total for _, total in errors[FLOAT][0])
    return {
        "unit": task.unit, "samples": len(samples), "decisions": decisions, "seeds": seeds,
        "float32": error_rate(errors[FLOAT]), "rows": rows, "failures": failures,
    }  # fmt: skip


def _mistakes(decided: Sequence[Any], right: Sequence[Any]) -> list[tuple[int, int]]:
    return [mistakes(a, b) for a, b in zip(decided, right, strict=True)]


def missed(results: Mapping[str, Any]) -> list[str]:
    """Bars that graphopt's defaults miss, in words."""
    ours, found = next(iter(OURS)), []
    for task, result in results.items():
        rows = result["rows"]
        if ours in result["failures"]:
            found.append(f"{task}: {result['failures'][ours]}")
        if ours not in rows:
            continue
        if rows[ours]["drop"]["mean"] > MOST:
            found.append(f"{task}: a drop of {rows[ours]['drop']['mean']:.2f} points")
        for peer in (*ORT, *NNCF):
            if peer in rows and rows[peer]["graphopt less it"]["low"] > 0:
                found.append(f"{task}: worse than {peer}")
    return found


def main() -> int:
    """Measure what is asked for."""
    tasks = [task.name for task in TASKS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=list(QUANTIZERS))
    parser.add_argument("--seeds", type=int, default=3, help="calibration sets (default: 3)")
    parser.add_argument("--samples", type=int, default=1000, help="held out (default: 1000)")
    parser.add_argument("--cache", type=Path, help="folder that keeps results between runs")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument(
        "--options", type=json.loads, default={}, metavar="JSON",
        help='fields of QuantizationConfig for graphopt\'s rows, such as {"correct_bias": true}',
    )  # fmt: skip
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    results = {}
    names = [name for name in arguments.quantizers if name not in NNCF or is_installed()]
    if len(names) < len(arguments.quantizers):
        console.print("[yellow]skipped NNCF: it is not installed (pip install nncf)")
    for task in (each for each in TASKS if each.name in arguments.tasks):
        with tempfile.TemporaryDirectory(prefix="graphopt-accuracy-") as folder:
            if task.model(Path(folder)) is None:
                console.print(f"[yellow]skipped {task.name}: a package is not installed")
                continue
        results[task.name] = evaluate(
            task, names, arguments.seeds, arguments.samples, arguments.cache, arguments.options,
            console,
        )  # fmt: skip
        print(f"\n{table(task.name, results[task.name])}\n", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    bars = missed(results)
    for text in bars:
        console.print(f"[red]missed: {text}")
    return 1 if bars or not results else 0


if __name__ == "__main__":
    sys.exit(main())
