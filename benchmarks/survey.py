"""Any ONNX files on graphopt beside ONNX Runtime: python benchmarks/survey.py FILE_OR_FOLDER...

For each file: does it compile, does it agree with ONNX Runtime without optimisations, and how long
does each take. Dimensions that a model leaves open are tried from a short list until ONNX Runtime
accepts them, twice: the second set of shapes differs from the first where the model allows it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import isolation
import numpy as np
import onnx
from onnx import helper

from graphopt.bench import relative_error

Feeds = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Sizes to try for dimensions that are open: first ones, those of signals, others."""

    batches: Sequence[int]
    lengths: Sequence[int]
    others: Sequence[int]


FIRST = Sizes((1, 2), (16000, 512, 128, 2048), (224, 320, 48, 64, 80, 512, 128, 1))
SECOND = Sizes((2, 1), (17233, 576, 120, 1024), (256, 416, 96, 192, 120, 576, 1))

LIMITS = isolation.Limits(seconds=600, gigabytes=16)


@dataclass(frozen=True)
class Finding:
    """How one model did with one set of shapes. error: max |y - ref| / max |ref|."""

    shapes: dict[str, tuple[int, ...]]
    verdict: str
    error: float = 0.0
    compile_seconds: float = 0.0
    ratio: float = 0.0
    detail: str = ""


def reference_session(path: Path, optimised: bool) -> Any:
    """ONNX Runtime on one file, on two threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_to_try(model: onnx.ModelProto, sizes: Sizes) -> Iterator[Feeds]:
    """Random inputs, for each choice of the dimensions that the model leaves open."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    open_dims: dict[str, Sequence[int]] = {}
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        rest = sizes.lengths if len(dims) <= 2 else sizes.others
        for axis, dim in enumerate(dims):
            if dim.dim_value < 1:
                name = dim.dim_param or f"{value.name}.{axis}"
                open_dims.setdefault(name, sizes.batches if axis == 0 else rest)
    for choice in itertools.islice(itertools.product(*open_dims.values()), 400):
        chosen = dict(zip(open_dims, choice, strict=True))
        yield {value.name: _sample(value, chosen) for value in inputs}


def _sample(value: onnx.ValueInfoProto, chosen: dict[str, int]) -> np.ndarray[Any, Any]:
    kind = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.dim_value > 0 else chosen[dim.dim_param or f"{value.name}.{axis}"]
        for axis, dim in enumerate(kind.shape.dim)
    )
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    rng = np.random.default_rng(3)
    if dtype.kind == "f":
        return rng.uniform(-1, 1, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    # Whole numbers are most often lengths, rates or indices: one that is large, the rest small.
    if value.name in ("sr", "sample_rate"):
        return np.full(shape, 16000, dtype)
    if "len" in value.name:
        return np.full(shape, 16000, dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def find_feeds(path: Path, sizes: Sizes) -> tuple[Feeds, list[Any]] | None:
    """The first inputs that ONNX Runtime accepts, and its outputs; None if there are none."""
    model = onnx.load(path, load_external_data=False)
    session = reference_session(path, optimised=False)
    for feeds in feeds_to_try(model, sizes):
        try:
            return feeds, session.run(None, feeds)
        except Exception:  # onnxruntime raises many types; the next sizes may do
            continue
    return None


def compare(path: Path) -> list[Finding]:
    """What graphopt makes of one file, with the first and the second set of shapes."""
    import graphopt

    findings: list[Finding] = []
    program = None
    references = [
        isolation.run_one(partial(find_feeds, path, sizes), LIMITS) for sizes in (FIRST, SECOND)
    ]
    for found in references:
        if found.ended != "returned" or found.value is None:
            findings.append(Finding({}, "no reference", detail=found.detail))
            continue
        feeds, expected = found.value
        shapes = {name: array.shape for name, array in feeds.items()}
        if findings and findings[0].shapes == shapes:
            continue
        begin = time.perf_counter()
        try:
            program = program or graphopt.compile(path, threads=2)
            outputs = program.run(feeds)
        except graphopt.GraphoptError as error:
            verdict = "internal error" if error.stage == "internal" else "refused"
            findings.append(Finding(shapes, verdict, detail=str(error)))
            continue
        seconds = time.perf_counter() - begin
        worst = max(map(_error, outputs.values(), expected))
        verdict = "agrees" if worst <= 1e-4 else "DIFFERS"
        ratio = _ratio(program, path, feeds)
        findings.append(Finding(shapes, verdict, worst, seconds, ratio))
    return findings


def _error(got: Any, want: Any) -> float:
    return relative_error(got, want) if got.dtype == want.dtype else math.inf


def _ratio(program: Any, path: Path, feeds: Feeds) -> float:
    """Our median latency over ONNX Runtime's, taking turns in this process."""
    session = reference_session(path, optimised=True)
    ours: list[float] = []
    theirs: list[float] = []
    begin = time.perf_counter()
    while len(ours) < 5 or (len(ours) < 50 and time.perf_counter() - begin < 2):
        for times, call in ((ours, program.run), (theirs, partial(session.run, None))):
            time.sleep(0.02)  # until the other's threads have stopped spinning
            start = time.perf_counter()
            call(feeds)
            times.append(time.perf_counter() - start)
    return float(np.median(ours) / np.median(theirs))


def main() -> int:
    """Print one line per file and set of shapes; exit with 1 if any differs or fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="+", type=Path)
    options = parser.parse_args()
    files = [file for path in options.path for file in (sorted(path.rglob("*.onnx")) or [path])]

    import onnxruntime  # noqa: F401 (imported once, here, for all the forks)

    import graphopt.compiler  # noqa: F401

    bad = 0
    for file in files:
        outcome = isolation.run_one(partial(compare, file), LIMITS)
        if outcome.ended == "returned":
            findings = outcome.value
        else:
            findings = [Finding({}, outcome.ended, detail=outcome.detail)]
        for finding in findings:
            bad += finding.verdict not in ("agrees", "refused", "no reference")
            shapes = " ".join(f"{k}={','.join(map(str, v))}" for k, v in finding.shapes.items())
            print(
                f"{file.name:34s} {finding.verdict:12s} error {finding.error:7.1e} "
                f"compile {finding.compile_seconds:5.1f} s  ratio {finding.ratio:5.2f}  {shapes}",
                flush=True,
            )
            if finding.detail:
                print(f"    {' '.join(finding.detail.split())[:600]}", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
