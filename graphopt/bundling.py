"""Between programs in memory and the parts of a .gopt file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from graphopt.artifact.bundle import Artifact
from graphopt.artifact.manifest import Entry, Manifest, entry_inputs
from graphopt.codegen.plan import BoundInput, Plan, TensorSpec
from graphopt.errors import ArtifactError
from graphopt.report import Report
from graphopt.specialisations import Key, merge_specs

Weights = np.ndarray[Any, Any]

_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class Specialisation:
    """A model's program for one set of input shapes and values, however it came to be.

    Attributes:
        inputs: all of the model's, in its order, those compiled in too.
        bound: inputs whose values are compiled in; the plan has only the others.
        weights: uint8 [plan.weight_bytes] or longer, 64-byte aligned.
        target, architecture, features: as in the manifest's Entry.
        module: gives the runtime module with `run` and `serve`.
        library: gives the same as the bytes of a shared library; it may need a linker.
        pooled: its weights are a block of the model's growing pool.
    """

    plan: Plan
    inputs: tuple[TensorSpec, ...]
    bound: tuple[BoundInput, ...]
    weights: Weights
    report: Report
    target: str
    architecture: str
    features: tuple[str, ...]
    module: Callable[[], Any]
    library: Callable[[], bytes]
    pooled: bool = False

    @property
    def key(self) -> Key:
        """What it is specialised for."""
        shapes = tuple(tuple(dim or 0 for dim in spec.shape) for spec in self.inputs)
        return Key(shapes, tuple(bound.values for bound in self.bound))


def parts(specialisations: Sequence[Specialisation]) -> tuple[Manifest, list[bytes], Weights]:
    """The manifest, modules and weights of a file with these programs, at least one.

    Weights that are the same memory are stored once. The same programs give the same parts.
    """
    offsets, weights = _concatenate([spec.weights for spec in specialisations])
    entries = tuple(
        Entry(s.plan, s.target, s.architecture, s.features, offset, s.bound)
        for s, offset in zip(specialisations, offsets, strict=True)
    )
    manifest = Manifest(
        inputs=merge_specs([s.inputs for s in specialisations]),
        outputs=merge_specs([s.plan.outputs for s in specialisations]),
        entries=entries,
        versions=versions(),
        report={"entries": [_timeless(s.report).to_dict() for s in specialisations]},
    )
    return manifest, [s.library() for s in specialisations], weights


def specialisations_of(
    artifact: Artifact, open_library: Callable[[memoryview], Any]
) -> list[Specialisation]:
    """The programs of a verified file; `open_library` makes a module of a shared library's bytes.

    Raises:
        ArtifactError: the file's report is not one of ours.
    """
    reports = artifact.manifest.report.get("entries")
    count = len(artifact.manifest.entries)
    if not isinstance(reports, list) or len(reports) != count:
        raise ArtifactError("load", "The file's report does not fit its programs.")

    def specialisation(index: int) -> Specialisation:
        entry = artifact.manifest.entries[index]
        return Specialisation(
            entry.plan,
            entry_inputs(artifact.manifest, entry),
            entry.bound,
            artifact.entry_weights(index),
            read_report(reports[index]),
            entry.target,
            entry.architecture,
            entry.features,
            lambda: open_library(artifact.module(index)),
            lambda: bytes(artifact.modules[index]),
        )

    return [specialisation(index) for index in range(count)]


def read_report(value: Any) -> Report:
    """A Report from what its to_dict() gave, after a trip through JSON.

    Raises:
        ArtifactError: fields are missing or unknown.
    """
    try:
        return Report.from_dict(value)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError("load", f"The file's report cannot be read: {error}.") from error


def versions() -> Mapping[str, str]:
    """Versions of the packages that shape a compiled program."""
    names = {"graphopt": "graphopt", "tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi"}
    found = {}
    for key, package in names.items():
        try:
            found[key] = version(package)
        except PackageNotFoundError:
            found[key] = "unknown"
    return found


def _timeless(report: Report) -> Report:
    """The report without durations, which differ each time the same model is compiled."""
    passes = tuple(dataclasses.replace(row, seconds=0.0) for row in report.passes)
    return dataclasses.replace(report, seconds={}, passes=passes)


def _concatenate(blocks: Sequence[Weights]) -> tuple[list[int], Weights]:
    """Offset of each block in one array that holds every distinct block once."""
    offsets: list[int] = []
    chosen: list[Weights] = []
    places: dict[int, int] = {}
    end = 0
    # Views that begin at one address are prefixes of the longest among them.
    longest: dict[int, Weights] = {}
    for block in blocks:
        start = block.ctypes.data
        if start not in longest or longest[start].nbytes < block.nbytes:
            longest[start] = block
    for block in blocks:
        start = block.ctypes.data
        if start not in places:
            places[start] = end
            chosen.append(longest[start])
            end += -(-longest[start].nbytes // _ALIGNMENT) * _ALIGNMENT
        offsets.append(places[start])
    if len(chosen) == 1:
        return offsets, chosen[0]
    joined = np.zeros(end, np.uint8)
    for block in chosen:
        offset = places[block.ctypes.data]
        joined[offset : offset + block.nbytes] = block
    return offsets, joined
