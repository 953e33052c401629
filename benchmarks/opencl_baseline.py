"""graphopt on an OpenCL device beside what TVM's wheel does there, and beside the processor.

    python benchmarks/opencl_baseline.py --models squeezenet1_1 resnet18

The baseline is TVM as it comes: its ONNX importer, its default pipeline for GPUs with the schedules
that it has for all of them (DLight), its default OpenCL target, its virtual machine. Only the
runtime of the device is ours, because the wheel has none. Every engine is a process of its own;
they take turns on the same inputs, and outputs are compared with ONNX Runtime's. The figure is the
median of the paired ratios. Exit status: 1 if one of our results is wrong.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from catalogue import MODELS, Model

Array = np.ndarray[Any, Any]
ENGINES = ("opencl", "tvm", "cpu")
TOLERANCE = 1e-3
TURN_SECONDS = 0.3


def feeds_of(
    path: Path, shapes: dict[str, tuple[int, ...]], limits: dict[str, int]
) -> dict[str, Array]:
    """Random inputs for a model file."""
    model, rng = onnx.load(path), np.random.default_rng(7)
    weights = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        shape = shapes.get(value.name, tuple(dims))
        if kind.kind in "iu":
            feeds[value.name] = rng.integers(0, limits.get(value.name, 2), shape).astype(kind)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(kind)
    return feeds


def opened(engine: str, path: Path, feeds: dict[str, Array]) -> Any:
    """A function that runs the model once and gives its outputs in order."""
    if engine == "tvm":
        return _tvm(path, feeds)
    import graphopt

    shapes = {name: array.shape for name, array in feeds.items()}
    program = graphopt.compile(str(path), engine, shapes=shapes)
    return lambda: list(program.run(feeds).values())


def _tvm(path: Path, feeds: dict[str, Array]) -> Any:
    import tvm
    from tvm import relax
    from tvm.relax.backend import gpu_generic
    from tvm.relax.frontend.onnx import from_onnx

    from graphopt.runtime.opencl.loader import load

    load()
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    module = from_onnx(onnx.load(path), shape_dict=shapes, keep_params_in_input=False)
    target = tvm.target.Target({"kind": "opencl"}, host={"kind": "llvm"})
    with target:
        pipeline = gpu_generic.get_default_pipeline(target)
        built = tvm.compile(module, target=target, relax_pipeline=pipeline)
    device = tvm.opencl(0)
    machine = relax.VirtualMachine(built, device)
    order = [str(parameter.name) for parameter in module["main"].params]
    given = [tvm.runtime.tensor(feeds[name], device) for name in order]

    def run() -> list[Array]:
        found = machine["main"](*given)
        found = [found] if hasattr(found, "numpy") else list(found)
        return [each.numpy() for each in found]

    return run


def serve(pipe: Connection, engine: str, path: str, feeds: dict[str, Array]) -> None:
    """An engine's process: opens the model, then runs for each order it gets."""
    try:
        started = time.perf_counter()
        run = opened(engine, Path(path), feeds)
        opening = time.perf_counter() - started
        outputs = run()
        pipe.send(("ok", outputs, opening))
    except Exception as error:  # whatever a compiler raises ends the row, not the benchmark
        pipe.send(
            ("failed", f"{type(error).__name__}: {str(error).strip().splitlines()[-1:]}", 0.0)
        )
        return
    while pipe.recv():
        times: list[float] = []
        while sum(times) < TURN_SECONDS:
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        pipe.send(min(times))


def reference(path: Path, feeds: dict[str, Array]) -> list[Array]:
    """ONNX Runtime's outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


def error_of(outputs: list[Array], expected: list[Array]) -> float:
    """The largest error relative to an output's largest value."""
    return max(
        float(np.abs(got.astype(np.float64) - want).max() / max(float(np.abs(want).max()), 1e-30))
        for got, want in zip(outputs, expected, strict=True)
    )


def row(model: Model, folder: Path, rounds: int) -> dict[str, Any]:
    """One model on all engines."""
    path = model.provide(folder)
    if path is None:
        return {"model": model.name, "failed": {"all": "its package is not installed"}}
    feeds = feeds_of(path, dict(model.shapes), dict(model.limits))
    expected = reference(path, feeds)
    context = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {"model": model.name, "errors": {}, "failed": {}, "opening": {}}
    pipes, processes = {}, []
    for engine in ENGINES:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, engine, str(path), feeds))
        process.start()
        processes.append(process)
        theirs.close()
        status, outputs, opening = ours.recv()
        if status == "ok":
            pipes[engine] = ours
            found["errors"][engine] = error_of(outputs, expected)
            found["opening"][engine] = opening
        else:
            found["failed"][engine] = outputs
    times: dict[str, list[float]] = {engine: [] for engine in pipes}
    for _ in range(rounds):
        for engine, pipe in pipes.items():
            pipe.send(True)
            times[engine].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    found["seconds"] = {engine: median(values) for engine, values in times.items()}
    for engine in ("tvm", "cpu"):
        if engine in times and "opencl" in times:
            pairs = zip(times[engine], times["opencl"], strict=True)
            found[f"{engine}/opencl"] = median(theirs / ours for theirs, ours in pairs)
    return found


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["squeezenet1_1", "resnet18"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            if model.name in options.models:
                rows.append(row(model, Path(folder), options.rounds))
                print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(each.get("errors", {}).get("opencl", 1.0) > TOLERANCE for each in rows))


if __name__ == "__main__":
    sys.exit(main())
