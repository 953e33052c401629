"""Compiles variants of a program and lets them take turns: the finals of a tuning run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from graphopt.codegen.plan import Plan
from graphopt.codegen.remote import flat_inputs
from graphopt.compiler import BuiltChoice, compile_choice, lower_chosen
from graphopt.config import CompileConfig
from graphopt.errors import TuningError
from graphopt.lowering.emit import Emitted
from graphopt.lowering.lower import Problem
from graphopt.lowering.weights import WeightPool
from graphopt.runtime.device import open_device
from graphopt.runtime.device_memory import largest_piece
from graphopt.runtime.device_session import DeviceSession
from graphopt.runtime.session import Session
from graphopt.samples import random_inputs
from graphopt.tuning.finals import Profiler, Times, Variant
from graphopt.tuning.measure.client import Server
from graphopt.tuning.measure.fleet import Fleet
from graphopt.tuning.measure.parcel import parcel
from graphopt.tuning.measure.timing import take_turns

Array = np.ndarray[Any, Any]


def profiler(config: CompileConfig, fleet: Fleet | None) -> Profiler:
    """What runs variants of a program for the tuner: here, or on one machine of the fleet."""
    run = _here if fleet is None else _there

    def profile(
        server: Server, problem: Problem, variants: Sequence[Variant]
    ) -> tuple[list[Times], float]:
        return run(server, problem, variants, config)

    return profile


def _here(
    server: Server, problem: Problem, variants: Sequence[Variant], config: CompileConfig
) -> tuple[list[Times], float]:
    """Seconds of each group's kernel in each variant, and of the reference kernel."""
    before = server.reference_seconds()
    pool = WeightPool()  # shared: most variants pack most weights alike
    compiled = [compile_choice(problem, variant, config, pool) for variant in variants]
    weights = pool.block()
    sessions = [_session(choice, weights) for choice in compiled]
    inputs = _inputs(sessions[0].plan)
    times = take_turns([partial(_seconds, session, inputs) for session in sessions])
    for session in sessions:
        if isinstance(session, Session):
            session.close()
    found = [
        _by_group(choice.emitted, turns) for choice, turns in zip(compiled, times, strict=True)
    ]
    return found, 0.5 * (before + server.reference_seconds())


def _session(choice: BuiltChoice, weights: Array) -> Session | DeviceSession:
    plan = choice.emitted.plan
    if choice.needs is None:
        return Session(plan, choice.module, weights)
    return DeviceSession(
        plan, choice.module, weights, open_device(choice.needs, largest_piece(plan))
    )


def _seconds(
    session: Session | DeviceSession, inputs: Mapping[str, Array], repeats: int
) -> list[float]:
    return [row.seconds for row in session.profile(inputs, repeats).rows]


def _there(
    server: Server, problem: Problem, variants: Sequence[Variant], config: CompileConfig
) -> tuple[list[Times], float]:
    """As _here(), on another machine."""
    pool = WeightPool()
    emitted = [lower_chosen(problem, variant, config, pool) for variant in variants]
    parcels = [parcel(each.plan, each.kernels, config.target, config.threads) for each in emitted]
    pieces = [flat_inputs(emitted[0].plan, _inputs(emitted[0].plan)), pool.block()]
    pieces += [np.frombuffer(each.library, np.uint8) for each in parcels]
    with _shared(pieces) as (path, (inputs, weights, *libraries)):
        programs = [
            {"library": span, "form": asdict(each.form)}
            for span, each in zip(libraries, parcels, strict=True)
        ]
        times, reference = server.profile(path, programs, inputs=inputs, weights=weights)
    return [_by_group(each, turns) for each, turns in zip(emitted, times, strict=True)], reference


def _inputs(plan: Plan) -> dict[str, Array]:
    shapes = {spec.name: tuple(int(size or 0) for size in spec.shape) for spec in plan.inputs}
    return random_inputs(plan.inputs, shapes)


def _by_group(emitted: Emitted, turns: Sequence[Sequence[float]]) -> Times:
    """The median over the turns of what each group's kernels took."""
    times: dict[int, list[float]] = {}
    for calls in turns:
        taken: dict[int, float] = {}
        for use, seconds in zip(emitted.uses, calls, strict=True):
            if use.group >= 0:
                taken[use.group] = taken.get(use.group, 0.0) + seconds
        for group, seconds in taken.items():
            times.setdefault(group, []).append(seconds)
    return {group: median(values) for group, values in times.items()}


@contextmanager
def _shared(pieces: Sequence[Array]) -> Iterator[tuple[str, list[list[int]]]]:
    """A file in memory with these bytes that other processes can open, and where each piece is."""
    spans: list[list[int]] = []
    memory = os.memfd_create("graphopt-finals", os.MFD_CLOEXEC)
    with os.fdopen(memory, "wb") as file:
        try:
            for piece in pieces:
                begin = file.tell()
                file.write(piece.data)
                spans.append([begin, file.tell()])
            file.flush()
        except OSError as error:
            raise TuningError(
                "measure", f"no memory for the programs of the finals: {error.strerror}."
            ) from error
        yield f"/proc/{os.getpid()}/fd/{memory}", spans
