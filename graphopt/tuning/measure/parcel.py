"""Programs in the form in which they are sent to the machine that runs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.artifact.device_json import needs_to_json
from graphopt.artifact.plan_json import plan_to_json
from graphopt.codegen.device_demands import demands
from graphopt.codegen.device_program import build_code
from graphopt.codegen.embedding import library_section
from graphopt.codegen.linker import find_linker, shared_library
from graphopt.codegen.plan import Plan
from graphopt.codegen.remote import Footprint, remote_library
from graphopt.target import TargetSpec


@dataclass(frozen=True)
class DeviceForm:
    """What a server needs to know of a program for its device.

    Attributes:
        program: JSON, an object of plan and needs as .gopt files have them.
        calls: kernel calls of a run.
        output_bytes: of all outputs, one after another.
    """

    program: str
    calls: int
    output_bytes: int


Form = Footprint | DeviceForm


def form_of(fields: dict[str, Any]) -> Form:
    """The form of which dataclasses.asdict() gave these."""
    return DeviceForm(**fields) if "program" in fields else Footprint(**fields)


@dataclass(frozen=True)
class Parcel:
    """A program: a shared library, and what is needed to run it."""

    library: bytes
    form: Form


def parcel(plan: Plan, kernels: Mapping[str, Any], spec: TargetSpec, threads: int) -> Parcel:
    """A program for another machine.

    Args:
        kernels: lowered for `spec`, by the names that plan.calls uses.
        threads: of the processor, if that runs them.

    Raises:
        CompileError: it cannot be linked.
    """
    linker = find_linker(spec.arch)
    if spec.device is None:
        target = spec.tvm_target(threads)
        library = remote_library(plan, kernels, target, spec.arch, linker)
        return Parcel(library, Footprint.of(plan))
    device = spec.device_target()
    code = build_code(plan, kernels, device)
    section = library_section(device.kind, code.device) if code.device else b""
    needs = needs_to_json(demands(kernels, device))
    program = json.dumps({"plan": plan_to_json(plan), "needs": needs})
    form = DeviceForm(program, len(plan.calls), _output_bytes(plan))
    return Parcel(shared_library(code.objects, linker, section), form)


def _output_bytes(plan: Plan) -> int:
    return sum(
        int(np.prod([size or 0 for size in spec.shape], dtype=np.int64))
        * np.dtype(spec.dtype).itemsize
        for spec in plan.outputs
    )
