"""Between programs in memory and the parts of a .gopt file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from graphopt.artifact.bundle import Artifact
from graphopt.artifact.manifest import Entry, Host, Manifest, Parts, all_inputs
from graphopt.codegen.plan import TensorSpec
from graphopt.errors import ArtifactError
from graphopt.programs import AnyProgram, Segment, Specialisation, Staged, Weights
from graphopt.report import Report
from graphopt.specialisations import merge_specs

_ALIGNMENT = 64


def parts(programs: Sequence[AnyProgram]) -> tuple[Manifest, list[bytes], Weights]:
    """The manifest, modules and weights of a file with these programs, at least one.

    Weights that are the same memory are stored once. The same programs give the same parts.
    """
    plans: list[Specialisation] = []
    hosts: list[Host | None] = []
    host_reports: list[Report] = []

    def place(item: AnyProgram) -> tuple[str, int]:
        if isinstance(item, Specialisation):
            plans.append(item)
            return "entry", len(plans) - 1
        index = len(hosts)
        hosts.append(None)  # before those of its segments
        host_reports.append(item.own_report)
        segments = []
        for segment in item.segments:
            found = [place(inner) for inner in segment.items()]
            segments.append(
                Parts(
                    tuple(i for kind, i in found if kind == "entry"),
                    tuple(i for kind, i in found if kind == "host"),
                )
            )
        hosts[index] = Host(item.program, item.bound, tuple(segments))
        return "host", index

    for item in programs:
        place(item)
    offsets, weights = _concatenate([item.weights() for item in plans])
    entries = tuple(
        Entry(s.plan, s.target, s.architecture, s.features, offset, s.bound, s.needs)
        for s, offset in zip(plans, offsets, strict=True)
    )
    manifest = Manifest(
        inputs=merge_specs([s.inputs for s in programs]),
        outputs=merge_specs([s.outputs for s in programs]),
        entries=entries,
        versions=versions(),
        report={
            "entries": [_timeless(s.report).to_dict() for s in plans],
            "hosts": [_timeless(report).to_dict() for report in host_reports],
        },
        hosts=tuple(host for host in hosts if host is not None),
    )
    return manifest, [s.library() for s in plans], weights


def specialisations_of(
    artifact: Artifact, open_library: Callable[[memoryview], Any]
) -> list[AnyProgram]:
    """The programs of a verified file; `open_library` makes a module of a shared library's bytes.

    Raises:
        ArtifactError: the file's report is not one of ours.
    """
    manifest = artifact.manifest
    entry_reports = _reports(manifest, "entries", len(manifest.entries))
    host_reports = _reports(manifest, "hosts", len(manifest.hosts))

    def plan(index: int, specs: tuple[TensorSpec, ...]) -> Specialisation:
        entry = manifest.entries[index]
        return Specialisation(
            entry.plan,
            all_inputs(specs, entry.bound, entry.plan),
            entry.bound,
            lambda: artifact.entry_weights(index),
            entry_reports[index],
            entry.target,
            entry.architecture,
            entry.features,
            lambda: open_library(artifact.module(index)),
            lambda: bytes(artifact.modules[index]),
            entry.needs,
        )

    def staged(index: int, specs: tuple[TensorSpec, ...]) -> Staged:
        host = manifest.hosts[index]
        segments = []
        for spec, inside in zip(host.program.segments, host.segments, strict=True):
            items: list[AnyProgram] = [plan(i, spec.inputs) for i in inside.entries]
            items += [staged(i, spec.inputs) for i in inside.hosts]
            segment = Segment(spec, None)
            for item in items:
                segment.programs.get(item.key, lambda item=item: item, pin=True)  # type: ignore[misc]
            segments.append(segment)
        return Staged(
            host.program,
            all_inputs(specs, host.bound, host.program),
            host.bound,
            host_reports[index],
            tuple(segments),
        )

    return [
        *(plan(i, manifest.inputs) for i in manifest.root_entries()),
        *(staged(i, manifest.inputs) for i in manifest.root_hosts()),
    ]


def _reports(manifest: Manifest, kind: str, count: int) -> list[Report]:
    reports = manifest.report.get(kind, [])
    if not isinstance(reports, list) or len(reports) != count:
        raise ArtifactError("load", "The file's report does not fit its programs.")
    return [read_report(report) for report in reports]


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
    if not chosen:
        return [], np.zeros(0, np.uint8)
    if len(chosen) == 1:
        return offsets, chosen[0]
    joined = np.zeros(end, np.uint8)
    for block in chosen:
        offset = places[block.ctypes.data]
        joined[offset : offset + block.nbytes] = block
    return offsets, joined
