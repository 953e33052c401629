"""compile(), stage by stage: the one file that sees them all."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.codegen.executable import build
from graphopt.codegen.plan import Plan
from graphopt.config import CompileConfig
from graphopt.frontend.importer import import_model
from graphopt.frontend.model import OnnxModel
from graphopt.frontend.prepare import prepare
from graphopt.lowering.lower import LoweringOptions, lower_graph
from graphopt.lowering.weights import WeightPool
from graphopt.passes.base import PassReport, run_pipeline
from graphopt.passes.pipeline import PIPELINE
from graphopt.report import KernelRow, PassRow, Report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """A model compiled for one set of input shapes.

    module: the tvm runtime Module with `run` and `serve`; LLVM makes machine code when a function
    is first looked up, or an object file written. weights: the packed constants, uint8 at a
    64-byte aligned address.
    """

    plan: Plan
    module: Any
    weights: np.ndarray[Any, Any]
    report: Report


def compile_program(
    model: OnnxModel,
    config: CompileConfig,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, np.ndarray[Any, Any]] | None = None,
    pool: WeightPool | None = None,
) -> Program:
    """Compile `model` for one set of input shapes.

    Args:
        shapes: of the inputs that the model leaves unbound; others may be repeated.
        constants: inputs that act as shapes, axes, counts or modes, with their values; they are
            no inputs of the program.
        pool: packed constants shared with other programs of the same model.

    Raises:
        ModelError: the model is invalid or uses something unsupported, or the shapes do not fit.
        CompileError: a later stage failed.
    """
    stages = _Stages()
    traits = config.target.traits(config.threads)
    target = config.target.tvm_target(config.threads)
    pool = WeightPool() if pool is None else pool
    with stages("prepare"):
        prepared = prepare(model, shapes, constants)
    with stages("import"):
        graph = import_model(prepared)
    with stages("passes"):
        graph, passes = run_pipeline(graph, PIPELINE, config.dump_ir)
    with stages("lowering"):
        options = LoweringOptions(config.numerics == "strict", config.max_weight_growth)
        lowered = lower_graph(graph, traits, target, pool, options)
    emitted = lowered.emitted
    with stages("codegen"):
        module = build(
            emitted.plan,
            emitted.kernels,
            target,
            config.target.arch,
            flush_subnormals=config.numerics != "strict",
        )
    with stages("weights"):
        weights = pool.block()
    report = Report(
        target=config.target.key(config.threads),
        threads=config.threads,
        shapes={
            **{name: tuple(value.shape) for name, value in (constants or {}).items()},
            **{spec.name: _static(spec.shape) for spec in emitted.plan.inputs},
        },
        constants={name: value.tolist() for name, value in (constants or {}).items()},
        seconds=stages.seconds,
        nodes=len(prepared.proto.graph.node),
        operations=lowered.operations,
        groups=lowered.groups,
        kernels=len(emitted.kernels),
        layout_changes=emitted.layout_changes,
        arena_bytes=emitted.plan.arena_bytes,
        weight_bytes=emitted.plan.weight_bytes,
        constant_bytes=lowered.constant_bytes,
        passes=tuple(_pass_row(report) for report in passes),
        calls=tuple(
            KernelRow(use.site, use.kernel, use.candidate, "default", use.nodes)
            for use in emitted.uses
        ),
        warnings=(),
    )
    return Program(emitted.plan, module, weights, report)


class _Stages:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        log.info("compiling: %s", name)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def _pass_row(report: PassReport) -> PassRow:
    refusals = tuple(
        f"{r.rule} at {', '.join(r.nodes) or r.site}: {r.reason}" for r in report.refusals
    )
    return PassRow(
        report.name,
        report.rewrites,
        refusals,
        report.seconds,
        report.bindings_before,
        report.bindings_after,
    )


def _static(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(extent or 0 for extent in shape)
