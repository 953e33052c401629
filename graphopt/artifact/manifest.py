"""The manifest of a `.gopt`: what is inside, as strictly read JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.artifact import strict_json as sj
from graphopt.artifact.device_json import needs_from_json, needs_to_json
from graphopt.artifact.encryption import CIPHER, SALT_BYTES, Encryption
from graphopt.artifact.host_json import host_from_json, host_to_json
from graphopt.artifact.plan_json import (
    bound_from_json,
    bound_to_json,
    plan_from_json,
    plan_to_json,
    spec_from_json,
    spec_to_json,
)
from graphopt.codegen.device_needs import DeviceNeeds
from graphopt.codegen.host_program import HostProgram
from graphopt.codegen.plan import BoundInput, Plan, TensorSpec
from graphopt.errors import ArtifactError

SCHEMA = 4
"""Version of the manifest. A reader refuses every other one."""

ABI = 1
"""Version of the context that a module's `run` and `serve` take (codegen/abi.py)."""


@dataclass(frozen=True)
class Entry:
    """One compiled program: a specialisation for input shapes and values, threads and a target.

    Attributes:
        plan: memory and kernel calls, with every dimension bound.
        target: the target key it was compiled for.
        architecture: by LLVM's name ("x86_64", "aarch64", "riscv64").
        features: CPU features its code needs, by LLVM's names ("avx512f", "neon").
        weights_offset: where its weights (plan.weight_bytes of them) begin in the weights
            member, a multiple of 64. Entries may share weights.
        bound: inputs whose values are compiled in, in the manifest's order; the plan has only
            the others.
        needs: of the device that runs its kernels; None for the processor.
    """

    plan: Plan
    target: str
    architecture: str
    features: tuple[str, ...]
    weights_offset: int
    bound: tuple[BoundInput, ...] = ()
    needs: DeviceNeeds | None = None


@dataclass(frozen=True)
class Parts:
    """The programs of one segment of a host program: indices of entries and of other hosts."""

    entries: tuple[int, ...]
    hosts: tuple[int, ...]


@dataclass(frozen=True)
class Host:
    """One specialisation that is run step by step.

    Attributes:
        bound: as for Entry.
        segments: the programs of each of the program's segments. Hosts are later ones.
    """

    program: HostProgram
    bound: tuple[BoundInput, ...]
    segments: tuple[Parts, ...]


@dataclass(frozen=True)
class Manifest:
    """What a `.gopt` holds.

    Attributes:
        inputs, outputs: as users see them; None where a dimension is unbound, () where the
            specialisations differ in rank.
        entries: the programs; entry i is the member `entries/<i>/module.so`.
        versions: package → version that made the file ("graphopt", "tvm", "tvm_ffi").
        report: passes, kernels and warnings; any JSON object.
        hosts: host programs. Entries and hosts that are no part of a segment specialise the model.
        encryption: how weights and modules are encrypted, if they are.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    entries: tuple[Entry, ...]
    versions: Mapping[str, str]
    report: Mapping[str, Any]
    hosts: tuple[Host, ...] = ()
    encryption: Encryption | None = None

    def root_entries(self) -> tuple[int, ...]:
        """Entries that are no part of a segment."""
        inner = {i for host in self.hosts for parts in host.segments for i in parts.entries}
        return tuple(i for i in range(len(self.entries)) if i not in inner)

    def root_hosts(self) -> tuple[int, ...]:
        """Hosts that are no part of a segment."""
        inner = {i for host in self.hosts for parts in host.segments for i in parts.hosts}
        return tuple(i for i in range(len(self.hosts)) if i not in inner)


def encode(manifest: Manifest) -> bytes:
    """UTF-8 JSON; the same manifest gives the same bytes.

    Raises:
        ArtifactError: the report is not plain JSON, or the manifest would not be readable again.
    """
    document = {
        "schema": SCHEMA,
        "abi": ABI,
        "inputs": [spec_to_json(spec) for spec in manifest.inputs],
        "outputs": [spec_to_json(spec) for spec in manifest.outputs],
        "entries": [_entry_to_json(entry) for entry in manifest.entries],
        "hosts": [_host_to_json(host) for host in manifest.hosts],
        "versions": dict(manifest.versions),
        "report": manifest.report,
        "encryption": _encryption_to_json(manifest.encryption),
    }
    try:
        text = json.dumps(
            document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError("save", f"The report is not plain JSON: {error}.") from error
    try:
        decode(text)
    except ArtifactError as error:
        raise ArtifactError("save", f"The program cannot be described: {error.reason}") from error
    return text


def decode(text: bytes) -> Manifest:
    """Read a manifest; anything missing, unknown, of another type or out of range is refused.

    Raises:
        ArtifactError: with the place and the reason.
    """
    document = sj.parse(text)
    if not isinstance(document, dict) or "schema" not in document:
        raise sj.refuse("$", "it has no schema version")
    # The versions come first: a newer file may rightly have fields that this reader ignores.
    for name, ours in (("schema", SCHEMA), ("abi", ABI)):
        theirs = sj.integer(document.get(name), f"$.{name}")
        if theirs != ours:
            raise ArtifactError(
                "load",
                f"The file has {name} version {theirs}; this graphopt reads version {ours}.",
                hint="Compile the model again with this graphopt, or install the one that made it.",
            )
    document = sj.record(
        document,
        "$",
        (
            "schema",
            "abi",
            "inputs",
            "outputs",
            "entries",
            "hosts",
            "versions",
            "report",
            "encryption",
        ),
    )
    versions = document["versions"]
    if not isinstance(versions, dict):
        raise sj.refuse("$.versions", "expected an object")
    if not isinstance(document["report"], dict):
        raise sj.refuse("$.report", "expected an object")
    manifest = Manifest(
        inputs=sj.items(document["inputs"], "$.inputs", spec_from_json),
        outputs=sj.items(document["outputs"], "$.outputs", spec_from_json),
        entries=sj.items(document["entries"], "$.entries", _entry_from_json),
        versions={name: sj.text(text, f"$.versions.{name}") for name, text in versions.items()},
        report=document["report"],
        hosts=sj.items(document["hosts"], "$.hosts", _host_from_json),
        encryption=_encryption_from_json(document["encryption"], "$.encryption"),
    )
    _check_parts(manifest)
    roots = [
        (f"$.entries[{i}]", manifest.entries[i].bound, manifest.entries[i].plan)
        for i in manifest.root_entries()
    ] + [
        (f"$.hosts[{i}]", manifest.hosts[i].bound, manifest.hosts[i].program)
        for i in manifest.root_hosts()
    ]
    if not roots:
        raise sj.refuse("$.entries", "there is no program")
    taken = {bound.name for bound in roots[0][1]}
    names = [spec.name for spec in manifest.inputs if spec.name in taken]
    for where, bound, program in roots:
        _check_program(manifest.inputs, manifest.outputs, names, bound, program, where)
    return manifest


def all_inputs(
    specs: tuple[TensorSpec, ...],
    bound: tuple[BoundInput, ...],
    program: Plan | HostProgram,
) -> tuple[TensorSpec, ...]:
    """All inputs of a program, those with compiled-in values too, in the order of `specs`."""
    given = {b.name: TensorSpec(b.name, b.dtype, b.shape) for b in bound}
    rest = iter(program.inputs)
    found = [given.pop(spec.name, None) or next(rest, None) for spec in specs]
    return (*(spec for spec in found if spec is not None), *given.values(), *rest)


def _check_parts(manifest: Manifest) -> None:
    """Every part of a segment is there, is used once, and fits the segment."""
    used: set[tuple[str, int]] = set()
    for index, host in enumerate(manifest.hosts):
        where = f"$.hosts[{index}].segments"
        if len(host.segments) != len(host.program.segments):
            raise sj.refuse(where, f"{len(host.program.segments)} are needed")
        for number, (parts, spec) in enumerate(
            zip(host.segments, host.program.segments, strict=True)
        ):
            at = f"{where}[{number}]"
            programs: list[tuple[tuple[BoundInput, ...], Plan | HostProgram]] = []
            for kind, indices, count in (
                ("entry", parts.entries, len(manifest.entries)),
                ("host", parts.hosts, len(manifest.hosts)),
            ):
                for i in indices:
                    if i >= count or (kind, i) in used or (kind == "host" and i <= index):
                        raise sj.refuse(at, f"{kind} {i} cannot be its part")
                    used.add((kind, i))
            programs += [
                (manifest.entries[i].bound, manifest.entries[i].plan) for i in parts.entries
            ]
            programs += [(manifest.hosts[i].bound, manifest.hosts[i].program) for i in parts.hosts]
            for bound, program in programs:
                _check_program(spec.inputs, spec.outputs, list(spec.bound), bound, program, at)


def _check_program(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    names: list[str],
    bound: tuple[BoundInput, ...],
    program: Plan | HostProgram,
    where: str,
) -> None:
    if [each.name for each in bound] != names:
        raise sj.refuse(f"{where}.bound", "the names are not those of some inputs")
    _check_same_signature(inputs, all_inputs(inputs, bound, program), f"{where}.plan.inputs")
    _check_same_signature(outputs, program.outputs, f"{where}.plan.outputs")


def _host_to_json(host: Host) -> dict[str, Any]:
    return {
        "program": host_to_json(host.program),
        "bound": [bound_to_json(bound) for bound in host.bound],
        "segments": [
            {"entries": list(parts.entries), "hosts": list(parts.hosts)} for parts in host.segments
        ],
    }


def _host_from_json(value: Any, where: str) -> Host:
    fields = sj.record(value, where, ("program", "bound", "segments"))

    def parts(item: Any, at: str) -> Parts:
        lists = sj.record(item, at, ("entries", "hosts"))
        return Parts(
            sj.items(lists["entries"], f"{at}.entries", sj.integer),
            sj.items(lists["hosts"], f"{at}.hosts", sj.integer),
        )

    return Host(
        host_from_json(fields["program"], f"{where}.program"),
        sj.items(fields["bound"], f"{where}.bound", bound_from_json),
        sj.items(fields["segments"], f"{where}.segments", parts),
    )


def _encryption_to_json(encryption: Encryption | None) -> dict[str, Any] | None:
    if encryption is None:
        return None
    return {
        "cipher": CIPHER,
        "key": encryption.key,
        "salt": encryption.salt.hex(),
        "modules": encryption.modules,
    }


def _encryption_from_json(value: Any, where: str) -> Encryption | None:
    if value is None:
        return None
    fields = sj.record(value, where, ("cipher", "key", "salt", "modules"))
    if fields["cipher"] != CIPHER:
        raise sj.refuse(f"{where}.cipher", f"it is not {CIPHER}")
    kind, salt = fields["key"], sj.text(fields["salt"], f"{where}.salt")
    if kind not in ("passphrase", "key-file"):
        raise sj.refuse(f"{where}.key", "it is neither 'passphrase' nor 'key-file'")
    if len(salt) != 2 * SALT_BYTES or set(salt) - set("0123456789abcdef"):
        raise sj.refuse(f"{where}.salt", f"it is not {SALT_BYTES} bytes in hexadecimal")
    return Encryption(kind, bytes.fromhex(salt), sj.flag(fields["modules"], f"{where}.modules"))


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    return {
        "plan": plan_to_json(entry.plan),
        "target": entry.target,
        "architecture": entry.architecture,
        "features": list(entry.features),
        "weights_offset": entry.weights_offset,
        "bound": [bound_to_json(bound) for bound in entry.bound],
        "device": None if entry.needs is None else needs_to_json(entry.needs),
    }


def _entry_from_json(value: Any, where: str) -> Entry:
    fields = sj.record(
        value,
        where,
        ("plan", "target", "architecture", "features", "weights_offset", "bound", "device"),
    )
    offset = sj.integer(fields["weights_offset"], f"{where}.weights_offset")
    if offset % 64:
        raise sj.refuse(f"{where}.weights_offset", f"{offset} is not a multiple of 64")
    return Entry(
        plan=plan_from_json(fields["plan"], f"{where}.plan"),
        target=sj.text(fields["target"], f"{where}.target"),
        architecture=sj.text(fields["architecture"], f"{where}.architecture"),
        features=sj.items(fields["features"], f"{where}.features", sj.text),
        weights_offset=offset,
        bound=sj.items(fields["bound"], f"{where}.bound", bound_from_json),
        needs=sj.optional(fields["device"], f"{where}.device", needs_from_json),
    )


def _check_same_signature(
    generic: tuple[TensorSpec, ...], bound: tuple[TensorSpec, ...], where: str
) -> None:
    """An entry specialises the model's inputs and outputs: it renames and retypes nothing."""
    if [spec.name for spec in generic] != [spec.name for spec in bound]:
        raise sj.refuse(where, "the names differ from the manifest's")
    for ours, theirs in zip(bound, generic, strict=True):
        # () also stands for specialisations that differ in rank.
        fits = not theirs.shape or (
            len(ours.shape) == len(theirs.shape)
            and all(size in (None, n) for n, size in zip(ours.shape, theirs.shape, strict=True))
        )
        if (ours.dtype, ours.kind) != (theirs.dtype, theirs.kind) or not (fits or not ours.shape):
            raise sj.refuse(
                where,
                f"{ours.name} is {ours.dtype}{list(ours.shape)} "
                f"where the manifest has {theirs.dtype}{list(theirs.shape)}",
            )
