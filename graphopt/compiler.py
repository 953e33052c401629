"""compile(), stage by stage: the one file that sees them all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from graphopt.codegen.device_jobs import DeviceJobs
from graphopt.codegen.device_needs import DeviceNeeds
from graphopt.codegen.executable import c_control_object
from graphopt.codegen.jobs import Code, KernelJobs
from graphopt.codegen.plan import Plan
from graphopt.config import CompileConfig
from graphopt.frontend.importer import import_model, refuse_unknown
from graphopt.frontend.model import Array, OnnxModel
from graphopt.frontend.partition import Staged, needs_host, partition
from graphopt.frontend.prepare import prepare, prepare_segment
from graphopt.frontend.shapes import graph_inputs, static_shape
from graphopt.lowering.emit import Emitted
from graphopt.lowering.lower import Lowered, LoweringOptions, Problem, lower_choice, pose
from graphopt.lowering.prices import Advisor, Offer, unadvised
from graphopt.lowering.weights import WeightPool
from graphopt.passes.base import Pass, PassReport, run_pipeline
from graphopt.passes.pipeline import pipeline_of
from graphopt.passes.quantized import INTEGER_RULES
from graphopt.report import FloatRow, KernelRow, PassRow, Report
from schedules.interface import Numerics, TargetTraits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """A model compiled for one set of input shapes.

    module: the tvm runtime Module with `run` and `serve` (of a device with `run` and `part`),
    compiled to machine code when a function is first looked up; None where there is `code`, from
    which files with that module are made. needs: of a device, None for a CPU. pool: has the packed
    constants.
    """

    plan: Plan
    module: Any
    code: Code | None
    needs: DeviceNeeds | None
    pool: WeightPool
    report: Report

    @property
    def weights(self) -> Array:
        """The packed constants, uint8 at a 64-byte aligned address; copied together each time."""
        return self.pool.block()


@dataclass(frozen=True)
class CutModel:
    """A model that one straight-line program cannot do, cut into parts; `report` has no kernels."""

    parts: Staged
    report: Report


@dataclass(frozen=True)
class BuiltChoice:
    """A program of chosen kernels; module and needs as for Program."""

    emitted: Emitted
    module: Any
    needs: DeviceNeeds | None


Preparation: TypeAlias = Callable[
    [OnnxModel, Mapping[str, tuple[int, ...]], Mapping[str, Array]], OnnxModel
]


def compile_model(
    model: OnnxModel,
    config: CompileConfig,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, Array] | None = None,
    pool: WeightPool | None = None,
    linked: bool = False,
    preparation: Preparation = prepare,
    advisor: Advisor = unadvised,
) -> Program | CutModel:
    """Compile `model` for one set of input shapes, or cut it into parts to be compiled alone.

    Args:
        shapes: of the inputs that the model leaves unbound; others may be repeated.
        constants: inputs that act as shapes, axes, counts or modes, with their values; they are
            no inputs of the program.
        pool: packed constants shared with other programs of the same model.
        linked: make object files, which a linker will join, in place of a module in memory.
        preparation: prepare() or, for a part, prepare_segment().
        advisor: knows kernels that were measured.

    Raises:
        ModelError: the model is invalid or uses something unsupported, or the shapes do not fit.
        CompileError: a later stage failed.
    """
    stages = _Stages()
    constants = constants or {}
    with stages("prepare"):
        prepared = preparation(model, shapes, constants)
    report = Report(
        target=config.target.key(config.threads),
        threads=config.threads,
        shapes={
            **{name: tuple(value.shape) for name, value in constants.items()},
            **{v.name: static_shape(v.type) or () for v in graph_inputs(prepared.proto.graph)},
        },
        constants={name: value.tolist() for name, value in constants.items()},
        seconds=stages.seconds,
        nodes=len(prepared.proto.graph.node),
        operations=0,
        groups=0,
        kernels=0,
        layout_changes=0,
        arena_bytes=0,
        weight_bytes=0,
        constant_bytes=0,
        passes=(),
        calls=(),
        warnings=(),
    )
    if needs_host(prepared):
        with stages("prepare"):
            parts = partition(prepared)
            refuse_unknown(segment.model for segment in parts.segments)
        return CutModel(parts, report)
    pool = WeightPool() if pool is None else pool
    return _compiled(prepared, config, pool, linked, report, stages, advisor)


def _compiled(
    prepared: OnnxModel,
    config: CompileConfig,
    pool: WeightPool,
    linked: bool,
    report: Report,
    stages: _Stages,
    advisor: Advisor,
) -> Program:
    traits = config.target.traits(config.threads)
    with stages("import"):
        graph = import_model(prepared)
    with stages("passes"):
        graph, passes = run_pipeline(graph, _passes(traits), config.dump_ir)
    with stages("lowering"):
        problem = pose(graph, traits, _options(config), advisor)
        chosen = problem.choice()
    lowered, code, module, needs = _built(problem, chosen, config, pool, linked, stages)
    emitted = lowered.emitted
    report = replace(
        report,
        operations=lowered.operations,
        groups=lowered.groups,
        kernels=len(emitted.kernels),
        layout_changes=emitted.layout_changes,
        arena_bytes=emitted.plan.arena_bytes,
        weight_bytes=emitted.plan.weight_bytes,
        constant_bytes=lowered.constant_bytes,
        passes=tuple(_pass_row(each) for each in passes),
        calls=tuple(
            KernelRow(use.site, use.kernel, use.candidate, use.origin, use.nodes)
            for use in emitted.uses
        ),
        floats=tuple(
            FloatRow(refused.nodes, refused.reason)
            for each in passes
            for refused in each.refusals
            if refused.rule in INTEGER_RULES
        ),
    )
    return Program(emitted.plan, module, code, needs, pool, report)


def _built(
    problem: Problem,
    chosen: Mapping[int, Offer],
    config: CompileConfig,
    pool: WeightPool,
    linked: bool,
    stages: _Stages,
) -> tuple[Lowered, Code | None, Any, DeviceNeeds | None]:
    """The plan of a choice, what files are made of if `linked`, else its module; needs."""
    flush_subnormals = config.numerics != "strict"
    with _jobs(config, linked) as jobs:
        with stages("lowering"):
            lowered = lower_choice(problem, chosen, jobs, pool)
        plan = lowered.emitted.plan
        with stages("codegen"):
            if linked:
                return lowered, jobs.code(plan, flush_subnormals), None, jobs.needs()
            return lowered, None, jobs.module(plan, flush_subnormals), jobs.needs()


def _jobs(config: CompileConfig, machine_code: bool) -> KernelJobs | DeviceJobs:
    target = config.target
    if target.device is not None:
        return DeviceJobs(target.device_target())
    return KernelJobs(target.tvm_target(config.threads), target.arch, machine_code)


def compile_choice(
    problem: Problem, chosen: Mapping[int, Offer], config: CompileConfig, pool: WeightPool
) -> BuiltChoice:
    """A posed problem with one offer for each group, built in memory: for the tuner."""
    lowered, _, module, needs = _built(problem, chosen, config, pool, False, _Stages())
    return BuiltChoice(lowered.emitted, module, needs)


def c_control(plan: Plan, config: CompileConfig, symbols: Mapping[str, str]) -> bytes:
    """An object file with a plan's control flow as C functions, as c_control_object() says."""
    target, arch = config.target.tvm_target(config.threads), config.target.arch
    return c_control_object(plan, target, arch, symbols, config.numerics != "strict")


def lower_chosen(
    problem: Problem, chosen: Mapping[int, Offer], config: CompileConfig, pool: WeightPool
) -> Emitted:
    """As compile_choice(), without machine code: for other machines."""
    with _jobs(config, machine_code=False) as jobs:
        return lower_choice(problem, chosen, jobs, pool).emitted


def pose_model(
    model: OnnxModel,
    config: CompileConfig,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, Array] | None = None,
    advisor: Advisor = unadvised,
    preparation: Preparation = prepare,
) -> list[Problem]:
    """What lowering would choose from, without compiling: for the tuner.

    One problem for a straight-line model; one per part of known shapes for a model that is cut.
    Arguments and errors as for compile_model().
    """
    prepared = preparation(model, shapes, constants or {})
    if needs_host(prepared):
        parts = partition(prepared)
        refuse_unknown(segment.model for segment in parts.segments)
        return [
            problem
            for part in parts.segments
            if part.static
            for problem in pose_model(
                part.model, config, {}, None, advisor, preparation=prepare_segment
            )
        ]
    traits = config.target.traits(config.threads)
    graph, _ = run_pipeline(import_model(prepared), _passes(traits), None)
    return [pose(graph, traits, _options(config), advisor)]


def _passes(traits: TargetTraits) -> tuple[Pass, ...]:
    return pipeline_of(halves=traits.gpu is not None and traits.gpu.fp16)


def _options(config: CompileConfig) -> LoweringOptions:
    return LoweringOptions(Numerics[config.numerics.upper()], config.max_weight_growth)


class _Stages:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        log.info("compiling: %s", name)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


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
