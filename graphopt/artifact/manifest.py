"""The manifest of a `.gopt`: what is inside, as strictly read JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.artifact import strict_json as sj
from graphopt.artifact.plan_json import (
    bound_from_json,
    bound_to_json,
    plan_from_json,
    plan_to_json,
    spec_from_json,
    spec_to_json,
)
from graphopt.codegen.plan import BoundInput, Plan, TensorSpec
from graphopt.errors import ArtifactError

SCHEMA = 1
"""Version of the manifest. A reader refuses every other one."""

ABI = 1
"""Version of the context that a module's `run` and `serve` take (codegen/abi.py)."""


@dataclass(frozen=True)
class Entry:
    """One compiled program: a specialisation for input shapes and values, threads and a target.

    Attributes:
        plan: memory and kernel calls, with every dimension bound.
        target: the target key it was compiled for.
        architecture: by LLVM's name ("x86_64", "aarch64").
        features: CPU features its code needs, by LLVM's names ("avx512f", "neon").
        weights_offset: where its weights (plan.weight_bytes of them) begin in the weights
            member, a multiple of 64. Entries may share weights.
        bound: inputs whose values are compiled in, in the manifest's order; the plan has only
            the others.
    """

    plan: Plan
    target: str
    architecture: str
    features: tuple[str, ...]
    weights_offset: int
    bound: tuple[BoundInput, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What a `.gopt` holds.

    Attributes:
        inputs, outputs: as users see them; None where a dimension is unbound, () where the
            specialisations differ in rank.
        entries: the programs; entry i is the member `entries/<i>/module.so`.
        versions: package → version that made the file ("graphopt", "tvm", "tvm_ffi").
        report: passes, kernels and warnings; any JSON object.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    entries: tuple[Entry, ...]
    versions: Mapping[str, str]
    report: Mapping[str, Any]


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
        "versions": dict(manifest.versions),
        "report": manifest.report,
        # Reserved: key id and algorithm of the signature (its bytes go into the seal at the end
        # of the file), and the scheme by which members are encrypted.
        "signature": None,
        "encryption": None,
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
            "versions",
            "report",
            "signature",
            "encryption",
        ),
    )
    sj.empty(document["signature"], "$.signature")
    sj.empty(document["encryption"], "$.encryption")
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
    )
    if not manifest.entries:
        raise sj.refuse("$.entries", "there is no program")
    taken = {bound.name for bound in manifest.entries[0].bound}
    names = [spec.name for spec in manifest.inputs if spec.name in taken]
    for index, entry in enumerate(manifest.entries):
        if [bound.name for bound in entry.bound] != names:
            raise sj.refuse(f"$.entries[{index}].bound", "the names are not those of some inputs")
        _check_same_signature(manifest.inputs, entry_inputs(manifest, entry), index, "inputs")
        _check_same_signature(manifest.outputs, entry.plan.outputs, index, "outputs")
    return manifest


def entry_inputs(manifest: Manifest, entry: Entry) -> tuple[TensorSpec, ...]:
    """All inputs of an entry, those with compiled-in values too, in the manifest's order."""
    bound = {b.name: TensorSpec(b.name, b.dtype, b.shape) for b in entry.bound}
    rest = iter(entry.plan.inputs)
    found = [bound.pop(spec.name, None) or next(rest, None) for spec in manifest.inputs]
    return (*(spec for spec in found if spec is not None), *bound.values(), *rest)


def _entry_to_json(entry: Entry) -> dict[str, Any]:
    return {
        "plan": plan_to_json(entry.plan),
        "target": entry.target,
        "architecture": entry.architecture,
        "features": list(entry.features),
        "weights_offset": entry.weights_offset,
        "bound": [bound_to_json(bound) for bound in entry.bound],
    }


def _entry_from_json(value: Any, where: str) -> Entry:
    fields = sj.record(
        value, where, ("plan", "target", "architecture", "features", "weights_offset", "bound")
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
    )


def _check_same_signature(
    generic: tuple[TensorSpec, ...], bound: tuple[TensorSpec, ...], index: int, kind: str
) -> None:
    """An entry specialises the model's inputs and outputs: it renames and retypes nothing."""
    where = f"$.entries[{index}].plan.{kind}"
    if [spec.name for spec in generic] != [spec.name for spec in bound]:
        raise sj.refuse(where, "the names differ from the manifest's")
    for ours, theirs in zip(bound, generic, strict=True):
        # () also stands for specialisations that differ in rank.
        fits = not theirs.shape or (
            len(ours.shape) == len(theirs.shape)
            and all(size in (None, n) for n, size in zip(ours.shape, theirs.shape, strict=True))
        )
        if ours.dtype != theirs.dtype or not fits:
            raise sj.refuse(
                where,
                f"{ours.name} is {ours.dtype}{list(ours.shape)} "
                f"where the manifest has {theirs.dtype}{list(theirs.shape)}",
            )
