"""A model's programs: straight-line ones, and host programs with the programs of their segments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from graphopt.codegen.device_needs import DeviceNeeds
from graphopt.codegen.host_program import TENSOR, HostProgram, SegmentSpec
from graphopt.codegen.plan import BoundInput, Plan, TensorSpec
from graphopt.report import Report, merged
from graphopt.specialisations import MAX_SPECIALISATIONS, Key, OnceCache

Weights = np.ndarray[Any, Any]


def key_for(inputs: tuple[TensorSpec, ...], bound: tuple[BoundInput, ...]) -> Key:
    """What a program with these inputs is specialised for."""
    shapes = tuple(
        tuple(dim or 0 for dim in spec.shape) if spec.kind == TENSOR else () for spec in inputs
    )
    return Key(shapes, tuple(each.values for each in bound))


@dataclass(frozen=True, eq=False)
class Specialisation:
    """A model's straight-line program for one set of input shapes and values.

    Attributes:
        inputs: all of the model's, in its order, those compiled in too.
        bound: inputs whose values are compiled in; the plan has only the others.
        weights: gives uint8 [plan.weight_bytes] or longer, 64-byte aligned. Programs compiled here
            share a block that grows, the latest of which holds what the earlier ones need too.
        target, architecture, features: as in the manifest's Entry.
        module: gives the runtime module with `run` and `serve`.
        library: gives the same as the bytes of a shared library; it may need a linker.
        needs: of the device that it runs on; None for the processor.
        kernels: object files of its kernels; none where it was not compiled in this process.
    """

    plan: Plan
    inputs: tuple[TensorSpec, ...]
    bound: tuple[BoundInput, ...]
    weights: Callable[[], Weights]
    report: Report
    target: str
    architecture: str
    features: tuple[str, ...]
    module: Callable[[], Any]
    library: Callable[[], bytes]
    needs: DeviceNeeds | None = None
    kernels: tuple[bytes, ...] = ()

    @property
    def key(self) -> Key:
        """What it is specialised for."""
        return key_for(self.inputs, self.bound)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The program's outputs."""
        return self.plan.outputs

    @property
    def threads(self) -> int:
        """Workers it was compiled for; a device needs one, which waits."""
        return self.plan.threads if self.needs is None else 1


@dataclass(frozen=True, eq=False)
class Staged:
    """A model's program for one set of input shapes and values that is run step by step.

    Attributes:
        inputs, bound: as for Specialisation; the program has only the inputs that are not bound.
        own_report: of what was done before the model was cut.
        segments: in the order of `program.segments`.
    """

    program: HostProgram
    inputs: tuple[TensorSpec, ...]
    bound: tuple[BoundInput, ...]
    own_report: Report
    segments: tuple[Segment, ...]

    @property
    def key(self) -> Key:
        """What it is specialised for."""
        return key_for(self.inputs, self.bound)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The program's outputs; a dimension is None where it depends on data."""
        return self.program.outputs

    @property
    def threads(self) -> int:
        """Workers it was compiled for."""
        return self.own_report.threads

    @property
    def report(self) -> Report:
        """What was done for all segments so far."""
        parts = [
            (f"segment{index}" if position == 0 else f"segment{index}@{position}", item.report)
            for index, segment in enumerate(self.segments)
            for position, item in enumerate(segment.items())
        ]
        return merged(self.own_report, parts)

    @property
    def grows(self) -> bool:
        """Whether parts are compiled only when they are called."""
        return any(
            segment.grows
            or any(isinstance(item, Staged) and item.grows for item in segment.items())
            for segment in self.segments
        )

    def empty_segments(self) -> list[Segment]:
        """Segments for which nothing is compiled yet, those of segments too."""
        found = [segment for segment in self.segments if not segment.items()]
        for segment in self.segments:
            for item in segment.items():
                if isinstance(item, Staged):
                    found += item.empty_segments()
        return found


AnyProgram: TypeAlias = "Specialisation | Staged"


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a model with its programs so far, one for each set of input shapes and values.

    Attributes:
        build: compiles it for another set; None where there is no compiler.
        grows: what it needs is found out only when it is called.
    """

    spec: SegmentSpec
    build: Callable[[Key], AnyProgram] | None
    grows: bool = False
    programs: OnceCache[Key, AnyProgram] = field(
        default_factory=lambda: OnceCache(MAX_SPECIALISATIONS)
    )

    def items(self) -> list[AnyProgram]:
        """What is there now."""
        return [item for _, item in self.programs.items()]
