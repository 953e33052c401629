"""The comparison: every engine at its best settings, taking turns, judged against one reference."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import uses_external_data

from graphopt.bench.accuracy import output_errors
from graphopt.bench.inputs import Shapes, bind_shapes, is_dynamic, sample_inputs
from graphopt.bench.process import EngineError, EngineProcess, wait_until_idle
from graphopt.bench.result import EngineResult, Row
from graphopt.bench.worker import load_arrays, save_arrays
from graphopt.config import parse_constants
from graphopt.errors import OptionError
from graphopt.frontend.load import load_model
from graphopt.runtime.host import physical_cores
from graphopt.signature import bound_inputs, constant_arrays, require_values, signature_of
from graphopt.tolerance import usual_tolerance

Array = np.ndarray[Any, Any]

PEER_TOLERANCE = 1e-2  # a peer further off than this computes something else

_PROBE_ROUNDS = 3
_MAX_ITERATIONS = 1000
_PEERS = ("onnxruntime", "openvino")
_ENGINES = ("graphopt", *_PEERS, "ncnn", "mnn", "onnxruntime-cuda", "tensorrt")


@dataclass(frozen=True)
class CompileOptions:
    """How graphopt compiles the model; as the arguments of graphopt.compile."""

    target: str = "cpu"
    tuning_log: str | tuple[str, ...] | None = None
    numerics: str = "default"


@dataclass(frozen=True)
class _Job:
    """One model with its inputs on disk, ready for any engine."""

    model: Path
    bound: Path  # the same model with its input shapes fixed; `model` itself if they are
    inputs: Path
    input_names: Sequence[str]
    outputs: Sequence[str]
    shapes: Shapes
    constants: Mapping[str, Any]  # of the inputs that graphopt compiles in
    threads: int
    folder: Path

    def open(self, process: EngineProcess, engine: str, settings: Mapping[str, Any]) -> Any:
        """Let `process` open the model."""
        model = self.bound if settings.get("static") else self.model
        return process.ask(
            "open",
            engine=engine,
            model=str(model),
            threads=self.threads,
            outputs=list(self.outputs),
            settings=dict(settings),
            inputs=str(self.inputs),
            input_names=list(self.input_names),
        )

    def fetch(self, process: EngineProcess) -> dict[str, Array]:
        """Return the outputs of the process's last run."""
        path = self.folder / f"{process.name}-{process.pid}.npz"
        names = process.ask("outputs", path=str(path))["names"]
        return load_arrays(path, names)


@dataclass
class _Contestant:
    """An open engine during the comparison."""

    process: EngineProcess
    result: dict[str, Any]
    iterations: int = 1
    latencies: list[float] = field(default_factory=list)
    peak: int = 0

    def turn(self) -> float:
        """Run one turn; return its median iteration in seconds."""
        reply = self.process.ask("run", iterations=self.iterations)
        self.peak = reply["peak"]
        return float(median(reply["seconds"]))

    def warm_up(self, turn_seconds: float) -> None:
        """Run until a steady time is known; choose as many iterations as fill a turn."""
        self.iterations = 3
        seconds = self.turn()
        self.iterations = max(2, min(_MAX_ITERATIONS, round(turn_seconds / seconds)))
        self.turn()


def _settings(engine: str, dynamic: bool) -> list[dict[str, Any]]:
    """The settings worth trying for an engine, best guess first."""
    if engine == "graphopt":
        return [{}]
    if engine in ("ncnn", "mnn"):  # OpenMP's threads may spin for a moment between two kernels
        return [{"spinning": spin, "static": dynamic} for spin in (True, False)]
    # Fixed shapes help a peer's optimiser, but some models (untaken branches) only load without.
    shapes = [{"static": True}, {"static": False}] if dynamic else [{"static": False}]
    if engine == "onnxruntime":
        return [{"spinning": spin, **shape} for spin in (True, False) for shape in shapes]
    return shapes


def _reference(job: _Job) -> dict[str, Array]:
    with EngineProcess("reference", job.threads) as process:
        job.open(process, "reference", {})
        process.ask("run", iterations=1)
        return job.fetch(process)


def _compile(job: _Job, options: CompileOptions) -> tuple[Path, dict[str, Any]]:
    """Compile in a process of its own, as a user would before shipping; return the artifact."""
    out = job.folder / "model.gopt"
    with EngineProcess("graphopt", job.threads) as process:
        reply = process.ask(
            "compile",
            timeout=3600.0,
            model=str(job.model),
            out=str(out),
            shapes={name: list(shape) for name, shape in job.shapes.items()},
            constants=dict(job.constants),
            threads=job.threads,
            target=options.target,
            tuning_log=options.tuning_log,
            numerics=options.numerics,
        )
    return out, {"compile_seconds": reply["seconds"], "compile_peak_bytes": reply["peak"]}


def _open(stack: ExitStack, job: _Job, engine: str, settings: dict[str, Any]) -> _Contestant:
    spinning = engine in ("ncnn", "mnn") and settings["spinning"]
    process = stack.enter_context(EngineProcess(engine, job.threads, spinning))
    reply = job.open(process, engine, settings)
    result = {
        "name": engine,
        "version": reply["version"],
        "settings": settings,
        "load_seconds": reply["seconds"],
    }
    if engine != "graphopt":  # loading is where these compile
        result["compile_seconds"] = reply["seconds"]
        result["compile_peak_bytes"] = reply["peak"]
    return _Contestant(process, result)


def _open_best(stack: ExitStack, job: _Job, engine: str, turn_seconds: float) -> _Contestant:
    """Open `engine` with each of its settings and keep the fastest; EngineError if none loads."""
    opened: list[_Contestant] = []
    error: EngineError | None = None
    for settings in _settings(engine, job.bound != job.model):
        with ExitStack() as attempt:
            try:
                contestant = _open(attempt, job, engine, settings)
                wait_until_idle(other.process for other in opened)
                contestant.warm_up(turn_seconds)
            except EngineError as failure:
                error = error or failure
                continue
            stack.push(attempt.pop_all())
            opened.append(contestant)
    if not opened:
        assert error is not None
        raise error
    if len(opened) == 1:
        return opened[0]
    times = _rounds(opened, _PROBE_ROUNDS, [])
    best = min(zip(times, opened, strict=True), key=lambda pair: median(pair[0]))[1]
    for contestant in opened:
        if contestant is not best:
            contestant.process.close()
    return best


def _rounds(
    contestants: Sequence[_Contestant], count: int, failures: list[str]
) -> list[list[float]]:
    """Let the contestants take turns `count` times; return each one's latencies."""
    times: list[list[float]] = [[] for _ in contestants]
    for index in range(count):
        order = list(range(len(contestants)))
        # Alternate who goes first, so that a drifting clock favours nobody.
        for position in order if index % 2 == 0 else reversed(order):
            others = [c.process for c in contestants]
            if not wait_until_idle(others):
                busy = "an engine keeps the CPU busy outside its turn"
                if busy not in failures:
                    failures.append(busy)
            times[position].append(contestants[position].turn())
    return times


def _prepare(
    path: Path,
    shapes: Shapes | None,
    constants: Mapping[str, Any] | None,
    inputs: Mapping[str, Array] | None,
    threads: int,
    folder: Path,
    limits: Mapping[str, int] | None,
) -> _Job:
    source = load_model(path)
    model, signature = source.proto, signature_of(source)
    given = constant_arrays(signature, parse_constants(constants)[0]) if constants else {}
    inputs = {**given, **(inputs or {})}
    needed = bound_inputs(source, signature, ())
    require_values(needed, inputs)
    feeds = sample_inputs(model, shapes, given=inputs, limits=limits)
    bound = path
    # Weights in files of their own are too large to copy for a peer's convenience.
    if is_dynamic(model) and not any(map(uses_external_data, model.graph.initializer)):
        bound = folder / "bound.onnx"
        onnx.save(bind_shapes(model, feeds), bound)
    names = save_arrays(folder / "inputs.npz", feeds)
    outputs = [value.name for value in model.graph.output]
    # Only the shapes that the model leaves open: the rest it knows itself.
    open_shapes = {name: feeds[name].shape for name in names} if is_dynamic(model) else {}
    bound_values = {name: feeds[name].tolist() for name in needed}
    stored = folder / "inputs.npz"
    return _Job(path, bound, stored, names, outputs, open_shapes, bound_values, threads, folder)


def bench(
    model: str | Path,
    *,
    vs: Sequence[str] = _PEERS,
    beside: Sequence[str] = (),
    shapes: Shapes | None = None,
    constants: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Array] | None = None,
    limits: Mapping[str, int] | None = None,
    threads: int | None = None,
    rounds: int = 10,
    turn_seconds: float = 0.15,
    options: CompileOptions | None = None,
    artifact: str | Path | None = None,
    files: Mapping[str, Path] | None = None,
    subject: str = "graphopt",
    tolerance: float | None = None,
    name: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Row:
    """Compare `subject` with the peers `vs` on the ONNX file `model`; failures end up in the row.
    Engines `beside` are measured as well, but the row does not fail with them.

    Every engine runs in a process of its own with `threads` threads. After loading, they take
    turns of about `turn_seconds`, `rounds` times, in alternating order; each turn begins when no
    process uses the CPU, and with one untimed run. Outputs of the last run are compared with
    ONNX Runtime's without optimisations. `inputs` replaces the seeded inputs, `limits` bounds
    seeded integers, `constants` gives values of inputs that are compiled in; `artifact` is a
    .gopt of this model to use instead of compiling; `files` are ONNX files with the same inputs and
    outputs that some engines get instead of `model`.

    Raises:
        OptionError: unknown engine, or no round to measure.
        InputError: a shape is missing, or an input does not fit.
    """
    for engine in (subject, *vs, *beside):
        if engine not in _ENGINES:
            known = ", ".join(_ENGINES)
            raise OptionError("bench", f"unknown engine {engine!r}", hint=f"known: {known}")
    if rounds < 1:
        raise OptionError("bench", f"rounds must be at least 1, not {rounds}")
    threads = threads or physical_cores()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as folder, ExitStack() as stack:
        job = _prepare(Path(model), shapes, constants, inputs, threads, Path(folder), limits)
        progress("reference")
        reference: dict[str, Array] = {}
        try:
            reference = _reference(job)
        except EngineError as error:
            failures.append(f"reference: {error.reason}")
        contestants: dict[str, _Contestant] = {}
        finished: dict[str, EngineResult] = {}
        for engine in (subject, *vs, *beside):
            progress(f"load {engine}")
            compiled: dict[str, Any] = {}
            ours = job
            try:
                if files and engine in files:
                    ours = _instead(job, files[engine])
                if engine == "graphopt":
                    path = Path(artifact) if artifact else None
                    if path is None:
                        path, compiled = _compile(ours, options or CompileOptions())
                    ours = _with_model(job, path)
                wait_until_idle(c.process for c in contestants.values())
                contestant = _open_best(stack, ours, engine, turn_seconds)
                contestant.result.update(compiled)
                contestants[engine] = contestant
            except EngineError as error:
                reason = error.reason + (f" ({error.hint})" if error.hint else "")
                if engine not in beside:
                    failures.append(f"{engine}: {reason}")
                finished[engine] = EngineResult(engine, failure=reason, **compiled)
        progress("measure")
        finished |= _measure(job, contestants, rounds, reference, failures)
    usual = usual_tolerance(onnx.load(model, load_external_data=False))
    own = usual if tolerance is None else tolerance
    for engine, result in finished.items():
        limit = own if engine == subject else max(PEER_TOLERANCE, own)
        wrong = [
            f"output {output!r} is wrong, error {error:.1e} > {limit:.0e}"
            for output, error in result.errors.items()
            if not error <= limit
        ]
        if engine not in beside:
            failures += [f"{engine}: {each}" for each in wrong]
        elif wrong:
            finished[engine] = replace(result, failure=wrong[0])
    return Row(
        name or Path(model).stem,
        threads,
        finished[subject],
        tuple(finished[peer] for peer in vs),
        tuple(failures),
        tuple(finished[engine] for engine in beside),
    )


def _with_model(job: _Job, path: Path) -> _Job:
    return replace(job, model=path, bound=path)


def _instead(job: _Job, path: Path) -> _Job:
    """The job on another file, which is bound to the same shapes if the job's own is."""
    if job.bound == job.model:
        return _with_model(job, path)
    bound = job.folder / f"bound-{path.name}"
    onnx.save(bind_shapes(onnx.load(path), load_arrays(job.inputs, job.input_names)), bound)
    return replace(job, model=path, bound=bound)


def _measure(
    job: _Job,
    contestants: Mapping[str, _Contestant],
    rounds: int,
    reference: Mapping[str, Array],
    failures: list[str],
) -> dict[str, EngineResult]:
    """Run the rounds and compare the outputs; an engine that dies here fails the row."""
    playing = list(contestants.values())
    latencies: list[list[float]] = [[] for _ in playing]
    try:
        latencies = _rounds(playing, rounds, failures)
    except EngineError as error:
        failures.append(f"{error.stage}: {error.reason}")
    results: dict[str, EngineResult] = {}
    for (engine, contestant), times in zip(contestants.items(), latencies, strict=True):
        errors: dict[str, float] = {}
        try:
            errors = output_errors(job.fetch(contestant.process), reference)
        except EngineError as error:
            failures.append(f"{engine}: {error.reason}")
            errors = dict.fromkeys(reference, math.inf)
        results[engine] = EngineResult(
            **contestant.result,
            latencies=tuple(times),
            run_peak_bytes=contestant.peak,
            errors=errors,
        )
    return results
