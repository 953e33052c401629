"""What quantization costs in accuracy, beside ONNX Runtime's quantizer on the same data.

    python benchmarks/quantization_accuracy.py
    python benchmarks/quantization_accuracy.py --tasks ppocr_rec --variants min-max mse

For each seed, every quantizer gets the same calibration data, and every model, the float one too,
the same held-out samples; all run in ONNX Runtime. Figures are means over all samples and seeds;
differences are paired, sample by sample, with their 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from quantization_tasks import TASKS, Feeds, Task
from rich.console import Console
from rich.table import Table

import graphopt

Array = np.ndarray[Any, Any]
Quantizer = Callable[[Path, Sequence[Feeds], Path, Mapping[str, Any]], None]

OURS: dict[str, dict[str, Any]] = {
    "graphopt": {},
    "min-max": {"method": "min-max"},
    "moving-average": {"method": "moving-average"},
    "percentile": {"method": "percentile"},
    "entropy": {"method": "entropy"},
    "mse": {"method": "mse"},
    "bias": {"correct_bias": True},
    "equalize": {"equalize": True},
    "smooth": {"smooth": 0.5},
    "adaround": {"rounding": "adaround"},
    "gptq": {"rounding": "gptq"},
    "min-sqnr-25": {"min_sqnr": 25.0},
    "int8-weights": {"config": "int8-weights"},
    "int4-weights": {"config": "int4-weights"},
    "int4-gptq": {"config": "int4-weights", "rounding": "gptq"},
}
"""Variants of graphopt.quantize(); the first one has all defaults."""
THEIRS = ("ort-minmax", "ort-entropy", "ort-percentile")
DEFAULT = ("graphopt", "ort-minmax", "ort-entropy", "ort-percentile")


def ours(options: Mapping[str, Any]) -> Quantizer:
    """graphopt.quantize() with options."""

    def quantize(
        model: Path, data: Sequence[Feeds], out: Path, constants: Mapping[str, Any]
    ) -> None:
        result = graphopt.quantize(model, data, constants=constants or None, **options)
        result.save(out)

    return quantize


def theirs(name: str) -> Quantizer:
    """ONNX Runtime's quantize_static as its documentation advises: preprocessed, per channel."""

    def quantize(
        model: Path, data: Sequence[Feeds], out: Path, constants: Mapping[str, Any]
    ) -> None:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._batches = iter(data)

            def get_next(self) -> Feeds | None:
                batch = next(self._batches, None)
                fixed = {name: np.asarray(value) for name, value in constants.items()}
                return None if batch is None else {**batch, **fixed}

        methods = {
            "ort-minmax": CalibrationMethod.MinMax,
            "ort-entropy": CalibrationMethod.Entropy,
            "ort-percentile": CalibrationMethod.Percentile,
        }
        ready = out.with_suffix(".ready.onnx")
        raised = onnx.version_converter.convert_version(
            onnx.load(model), max(13, onnx.load(model).opset_import[0].version)
        )
        onnx.save(raised, ready)
        quant_pre_process(str(ready), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[name],
        )

    return quantize


def decisions(path: Path, task: Task, seed: int, count: int) -> tuple[list[Any], list[Any]]:
    """What a model decides for each held-out sample, and what is right (None: not known)."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    constants = {name: np.asarray(value) for name, value in (task.constants or {}).items()}
    found, right = [], []
    for feeds, truth in task.samples(seed, count):
        given = {**feeds, **constants}
        outputs = session.run(names, {name: given[name] for name in wanted})
        found.append(task.decide(dict(zip(names, outputs, strict=True))))
        right.append(truth)
    return found, right


def scores(decided: Sequence[Any], right: Sequence[Any]) -> Array:
    """1 for each right decision, 0 for the others."""
    return np.asarray([float(a == b) for a, b in zip(decided, right, strict=True)])


def interval(differences: Array) -> tuple[float, float]:
    """The mean of paired differences and half of its 95 % interval."""
    half = 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(half)


def measure(
    task: Task, variants: Sequence[str], seeds: Sequence[int], count: int, console: Console
) -> dict[str, Any] | None:
    """Scores of all variants of a task; None if its packages are not installed."""
    found: dict[str, list[Array]] = {name: [] for name in ("float32", *variants)}
    failures: dict[str, str] = {}
    seconds: dict[str, float] = dict.fromkeys(variants, 0.0)
    with tempfile.TemporaryDirectory(prefix="graphopt-quantization-") as name:
        folder = Path(name)
        model = task.model(folder)
        if model is None:
            return None
        for seed in seeds:
            data = task.calibration(seed)
            exact, truths = decisions(model, task, seed, count)
            right = [a if b is None else b for a, b in zip(exact, truths, strict=True)]
            found["float32"].append(scores(exact, right))
            for variant in variants:
                if variant in failures:
                    continue
                out = folder / f"{variant}.onnx"
                quantizer = theirs(variant) if variant in THEIRS else ours(OURS[variant])
                started = time.perf_counter()
                try:
                    quantizer(model, data, out, task.constants or {})
                    seconds[variant] += time.perf_counter() - started
                    found[variant].append(scores(decisions(out, task, seed, count)[0], right))
                except Exception as error:
                    failures[variant] = f"{type(error).__name__}: {str(error)[:300]}"
                    continue
                mean = found[variant][-1].mean()
                console.print(f"{task.name} seed {seed} {variant}: {mean:.4f}", highlight=False)
    joined = {name: np.concatenate(each) for name, each in found.items() if each}
    reference = joined["float32"]
    rows = {}
    for name, each in joined.items():
        if name in failures:
            continue
        rows[name] = {
            "score": float(each.mean()),
            "against float32": interval(each - reference),
            "against ours": interval(joined[variants[0]] - each),
            "seconds to quantize": seconds.get(name, 0.0) / len(seeds),
        }
    return {
        "score": task.score_name, "samples": len(reference), "rows": rows, "failures": failures
    }  # fmt: skip


def table(name: str, found: Mapping[str, Any], first: str) -> Table:
    """One line per variant."""
    shown = Table(title=f"{name}: {found['score']}, {found['samples']} samples")
    for heading in ("variant", "score", "− float32", f"{first} − it", "seconds"):
        shown.add_column(heading, justify="left" if heading == "variant" else "right")
    for variant, row in found["rows"].items():
        (lost, half), (gain, width) = row["against float32"], row["against ours"]
        shown.add_row(
            variant,
            f"{row['score']:.2%}",
            f"{lost:+.2%} ± {half:.2%}" if variant != "float32" else "",
            f"{gain:+.2%} ± {width:.2%}" if variant not in ("float32", first) else "",
            f"{row['seconds to quantize']:.1f}" if variant != "float32" else "",
        )
    for variant, reason in found["failures"].items():
        shown.add_row(variant, f"failed: {reason}")
    return shown


def main() -> int:
    """Measure; 0 if every variant worked."""
    names = [task.name for task in TASKS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--variants", nargs="+", choices=(*OURS, *THEIRS), default=list(DEFAULT), metavar="NAME",
        help=f"the first is compared with the others: {', '.join((*OURS, *THEIRS))}",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="calibration sets (default: 3)")
    parser.add_argument("--samples", type=int, default=1000, help="held out, per seed")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    results, bad = {}, False
    for task in (each for each in TASKS if each.name in arguments.tasks):
        seeds = range(arguments.seeds)
        found = measure(task, arguments.variants, seeds, arguments.samples, console)
        if found is None:
            console.print(f"[yellow]skipped {task.name}: a package is not installed")
            continue
        console.print(table(task.name, found, arguments.variants[0]))
        results[task.name] = found
        bad = bad or bool(found["failures"])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
