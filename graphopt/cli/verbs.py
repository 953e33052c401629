"""The verbs: each calls one function of the API and shows what it returns."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.text import Text

import graphopt
from graphopt.cli import keys, options, render
from graphopt.cli.progress import spinner
from graphopt.errors import OptionError

OK, FAILED = 0, 1

Saver: TypeAlias = "Callable[[graphopt.CompiledModel], tuple[Path, ...]]"


class Screen:
    """Where results (stdout) and everything else (stderr) go."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console(soft_wrap=True, highlight=False)
        self.err = Console(stderr=True, soft_wrap=True, highlight=False)

    def show(self, result: dict[str, Any], *renderables: Any) -> None:
        """Print the JSON form or the readable one."""
        if self.as_json:
            self.out.file.write(json.dumps(_finite(result), allow_nan=False) + "\n")
            return
        for renderable in renderables:
            self.out.print(renderable)

    def busy(self, text: str) -> Any:
        """A spinner while the block runs."""
        return spinner(self.err, text)


def compile(args: argparse.Namespace, screen: Screen) -> int:  # noqa: A001 (the verb's name)
    """graphopt compile"""
    target = graphopt.TargetSpec.parse(args.target)
    # What is missing or wrong is said before the work, not after it.
    save = _library_saver(args, target) if args.emit == "c-library" else _file_saver(args, target)
    started = time.perf_counter()
    with screen.busy(f"compiling {args.model}"):
        model = graphopt.compile(
            args.model,
            target,
            shapes=options.specialisations(args.shape),
            constants=options.specialisations(args.constant, "--constant"),
            threads=args.threads,
            tuning_log=() if args.no_records else args.tuning_log,
            numerics=args.numerics,
            quantization=args.quantize,
            calibration=args.calibration,
            dump_ir=args.dump_ir,
            max_weight_growth=args.max_weight_growth,
            # The cache keeps linked programs, of which no other library can be made.
            cache=not args.no_cache and args.dump_ir is None and args.emit == "gopt",
        )
        files = save(model)
    nbytes = sum(file.stat().st_size for file in files)
    elapsed = time.perf_counter() - started
    reports = model.reports
    for account in reports:
        for warning in account.warnings:
            screen.err.print(f"warning: {warning}", markup=False)
    result = {
        "output": args.output,
        "files": [str(file) for file in files],
        "bytes": nbytes,
        "seconds": elapsed,
        "programs": [account.to_dict() for account in reports],
    }
    notes = []
    if model.quantization is not None:
        result["quantization"] = model.quantization.to_dict()
        notes.append(Text(model.quantization.headline))
    tables = [render.report(account) for account in reports]
    written = f"wrote {', '.join(map(str, files))} ({render.size(nbytes)}) in {elapsed:.1f} s"
    screen.show(result, *notes, *tables, written)
    return OK


def _file_saver(args: argparse.Namespace, target: graphopt.TargetSpec) -> Saver:
    """What saves a model to the .gopt file that `args` name."""
    from graphopt.codegen.linker import find_linker

    for flag, value in (("--name", args.name), ("--weights", args.weights)):
        if value is not None:
            raise OptionError(
                "options", f"{flag} is for C libraries.", hint="add --emit c-library."
            )
    path = options.writable(args.output)
    if path.exists() and Path(args.model).exists() and path.samefile(args.model):
        raise OptionError("options", f"'{path}' is the model itself.", hint="name another file.")
    find_linker(target.arch)

    def save(model: graphopt.CompiledModel) -> tuple[Path, ...]:
        model.save(path)
        return (path,)

    return save


def _library_saver(args: argparse.Namespace, target: graphopt.TargetSpec) -> Saver:
    """What saves a model as the C library that `args` name."""
    from graphopt.codegen.c_library.names import default_library_name
    from graphopt.shipping import check_options

    folder = options.folder(args.output)
    name = default_library_name(Path(args.model).stem) if args.name is None else args.name
    weights = args.weights or "embedded"
    check_options(target, name, weights)
    return lambda model: model.save_c_library(folder, name=name, weights=weights)


def run(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt run"""
    path = options.writable(args.output) if args.output else None
    inputs = options.read_arrays(args.input)
    outputs = keys.loaded(args.program, args).run(inputs)
    if path is not None:
        options.write_arrays(path, outputs)
    result = {
        "output": None if path is None else str(path),
        "outputs": [
            {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
            for name, array in outputs.items()
        ],
    }
    screen.show(result, render.arrays(outputs))
    return OK


def verify(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt verify"""
    inputs = options.read_arrays(args.input) if args.input else None
    with screen.busy(f"verifying {args.model}"):
        result = graphopt.verify(
            keys.loaded(args.model, args) if args.model.endswith(".gopt") else args.model,
            args.against,
            inputs=inputs,
            shapes=options.one_specialisation(args.shape),
            constants=options.one_specialisation(args.constant, "--constant"),
            target=args.target,
            threads=args.threads,
            numerics=args.numerics,
            tolerance=args.tolerance,
            seed=args.seed,
        )
    verdict = "all outputs agree" if result.ok else "some outputs are wrong"
    screen.show(result.to_dict(), render.verification(result), f"inputs: {result.inputs}", verdict)
    return OK if result.ok else FAILED


def profile(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt profile"""
    from graphopt.samples import random_inputs

    model = keys.loaded(args.program, args)
    if args.input:
        inputs = options.read_arrays(args.input)
    else:
        shapes = options.one_specialisation(args.shape) or {}
        values = options.one_specialisation(args.constant, "--constant") or {}
        fitting = [
            (bound, constants)
            for bound, constants in zip(model.shapes, model.constants, strict=True)
            if shapes.items() <= bound.items()
            and all(n in constants and (constants[n] == v).all() for n, v in values.items())
        ]
        if not fitting:
            wanted = "shapes and constants" if values else "shapes"
            raise OptionError(
                "profile",
                f"the program has no specialisation for these {wanted}.",
                hint=f"it has: {'; '.join(model.specialisations)}.",
            )
        inputs = {**random_inputs(model.inputs, fitting[0][0]), **fitting[0][1]}
    with screen.busy(f"profiling {args.program}"):
        result = model.profile(inputs, args.repeats)
    top = None if args.all else 20
    screen.show(render.profile_json(result), render.profile(result, top))
    return OK


def inspect(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt inspect"""
    with screen.busy(f"reading {args.model}"):
        result = graphopt.inspect(
            args.model,
            args.target,
            options.one_specialisation(args.shape),
            options.one_specialisation(args.constant, "--constant"),
        )
    screen.show(result.to_dict(), *render.inspection(result))
    return OK if result.compiles else FAILED


def bench(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt bench"""
    from graphopt import bench as benchmark
    from graphopt.bench.compare import CompileOptions

    saved = Path(args.model).suffix == ".gopt"
    if saved and args.against is None:
        raise OptionError(
            "bench",
            "a saved program does not contain the model that the peers need.",
            hint="name the ONNX file: --against model.onnx",
        )
    peers = [name for name in args.vs.split(",") if name]
    with screen.busy(f"benchmarking {args.model}"):
        row = benchmark.bench(
            args.against if saved else args.model,
            vs=peers,
            shapes=options.one_specialisation(args.shape),
            constants=options.one_specialisation(args.constant, "--constant"),
            threads=args.threads,
            rounds=args.rounds,
            artifact=args.model if saved else None,
            options=CompileOptions(target=args.target, tuning_log=() if args.no_records else None),
        )
    notes = [f"failed: {failure}" for failure in row.failures]
    screen.show(benchmark.to_json([row]), benchmark.ratio_table([row], peers), *notes)
    return OK if row.ok else FAILED


def cxx_header(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt cxx-header"""
    from graphopt.artifact.atomic import replacing
    from graphopt.cxx_header import cxx_header as text

    path = options.writable(args.output)
    with replacing(path, "output") as file:
        file.write(text().encode())
    screen.show({"output": str(path)}, f"wrote {path}")
    return OK


def cache(args: argparse.Namespace, screen: Screen) -> int:
    """graphopt cache"""
    from graphopt.cache import default_cache

    store = default_cache()
    removed = store.clear() if args.action == "clear" else 0
    entries = store.entries()
    result = {
        "folder": str(store.folder),
        "limit": store.limit,
        "entries": [{"key": e.key, "bytes": e.nbytes, "used": e.used} for e in entries],
        "removed": removed,
    }
    notes = [f"removed {removed} entries"] if args.action == "clear" else []
    screen.show(result, *notes, render.cache(entries, str(store.folder), store.limit))
    return OK


def _finite(value: Any) -> Any:
    """`value` with non-finite numbers as strings, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
