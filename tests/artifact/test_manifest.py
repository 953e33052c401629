"""The manifest: reads back what was written, and refuses everything else with place and reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from artifact_parts import Parts, make_parts

from graphopt.artifact.manifest import decode, encode
from graphopt.codegen.plan import BoundInput, TensorSpec
from graphopt.errors import ArtifactError


def test_round_trip(parts: Parts) -> None:
    assert decode(encode(parts.manifest)) == parts.manifest
    assert encode(decode(encode(parts.manifest))) == encode(parts.manifest)


def test_unbound_dimensions_are_none(parts: Parts) -> None:
    inputs = (replace(parts.manifest.inputs[0], shape=(None,)), parts.manifest.inputs[1])
    manifest = replace(parts.manifest, inputs=inputs)
    assert decode(encode(manifest)).inputs[0].shape == (None,)


def test_entries_specialise_the_models_signature(parts: Parts) -> None:
    for spec, reason in (
        (TensorSpec("x", "float32", (999,)), "x is float32"),
        (TensorSpec("x", "float64", (1000,)), "x is float32"),
        (TensorSpec("X", "float32", (1000,)), "names differ"),
    ):
        manifest = replace(parts.manifest, inputs=(spec, parts.manifest.inputs[1]))
        with pytest.raises(ArtifactError, match=reason):
            encode(manifest)


RATE = BoundInput("rate", "int64", (2,), (-(2**63), 2**63 - 1))
LOUD = BoundInput("loud", "bool", (), (1,))


def test_bound_inputs_stand_in_the_models_order(parts: Parts) -> None:
    x, k = parts.manifest.inputs
    inputs = (
        TensorSpec("rate", "int64", (2,)),
        x,
        TensorSpec("loud", "bool", ()),
        k,
    )
    entry = replace(parts.manifest.entries[0], bound=(RATE, LOUD))
    manifest = replace(parts.manifest, inputs=inputs, entries=(entry,))
    assert decode(encode(manifest)) == manifest
    for bound in ((LOUD, RATE), (RATE,), (RATE, RATE, LOUD), (RATE, replace(LOUD, name="k"))):
        broken = replace(manifest, entries=(replace(entry, bound=bound),))
        with pytest.raises(ArtifactError, match=r"bound|names differ"):
            encode(broken)
    two = replace(manifest, entries=(entry, replace(entry, bound=(RATE,))))
    with pytest.raises(ArtifactError, match=r"entries\[1\].bound"):
        encode(two)


def encrypt(d: Any, **changes: Any) -> None:
    fields = {"cipher": "AES-256-GCM", "key": "key-file", "salt": "00" * 16, "modules": True}
    d["encryption"] = {**fields, **changes}


def bind(document: dict[str, Any], **changes: Any) -> None:
    """Add an input `n`, int8 [2], bound to (1, 2), with `changes`."""
    document["inputs"].append({"name": "n", "dtype": "int8", "shape": [2], "kind": "tensor"})
    bound = {"name": "n", "dtype": "int8", "shape": [2], "values": [1, 2], **changes}
    document["entries"][0]["bound"] = [bound]


def test_bound_inputs_are_read() -> None:
    assert decode(edit(bind)).entries[0].bound == (BoundInput("n", "int8", (2,), (1, 2)),)


def edit(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The manifest's JSON after `change`."""
    document = json.loads(encode(make_parts(16, [b""]).manifest))
    change(document)
    return json.dumps(document).encode()


def plan(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["entries"][0]["plan"]
    return found


CASES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer schema": (
        lambda d: d.update(schema=5),
        "schema version 5; this .* reads version 4",
    ),
    "newer ABI": (lambda d: d.update(abi=7), "abi version 7"),
    "newer schema with unknown fields": (lambda d: d.update(schema=9, more=1), "schema version 9"),
    "no schema": (lambda d: d.pop("schema"), "no schema version"),
    "schema is true": (lambda d: d.update(schema=True), "expected an integer, got bool"),
    "unknown field": (lambda d: d.update(extra=1), "unknown 'extra'"),
    "missing field": (lambda d: d.pop("versions"), "missing versions"),
    "encryption": (lambda d: d.update(encryption="x"), r"\$.encryption: expected an object"),
    "cipher": (lambda d: encrypt(d, cipher="DES"), "AES-256-GCM"),
    "kind of key": (lambda d: encrypt(d, key="none"), "passphrase"),
    "salt": (lambda d: encrypt(d, salt="00"), "16 bytes"),
    "salt no hexadecimal": (lambda d: encrypt(d, salt="g" * 32), "16 bytes"),
    "modules": (lambda d: encrypt(d, modules=1), r"modules: expected"),
    "no entries": (lambda d: d.update(entries=[]), "no program"),
    "entries no list": (lambda d: d.update(entries={}), "expected a list"),
    "report no object": (lambda d: d.update(report=[]), "expected an object"),
    "version no string": (
        lambda d: d["versions"].update(tvm=1),
        r"versions.tvm: expected",
    ),
    "weights offset": (lambda d: d["entries"][0].update(weights_offset=8), "multiple of 64"),
    "negative offset": (lambda d: d["entries"][0].update(weights_offset=-64), "outside 0"),
    "feature no string": (lambda d: d["entries"][0].update(features=[1]), r"features\[0\]"),
    "no bound": (lambda d: d["entries"][0].pop("bound"), "missing bound"),
    "bound name": (lambda d: bind(d, name="m"), "names"),
    "bound type": (lambda d: bind(d, dtype="bfloat16"), "cannot be compiled in"),
    "bound other type": (lambda d: bind(d, dtype="uint8"), "n is uint8"),
    "bound shape": (lambda d: bind(d, shape=[3]), "2 values for a tensor"),
    "bound range": (lambda d: bind(d, values=[1, 128]), r"values\[1\]: 128 is outside"),
    "bound value": (lambda d: bind(d, values=[1, 1.5]), "got float"),
    "bound field": (lambda d: bind(d, more=1), "unknown 'more'"),
    "unknown plan field": (lambda d: plan(d).update(x=1), r"entries\[0\].plan: unknown 'x'"),
    "unknown dtype": (lambda d: plan(d)["inputs"][0].update(dtype="object"), "element type"),
    "unbound plan": (lambda d: plan(d)["inputs"][0].update(shape=[None]), "unbound"),
    "negative size": (lambda d: plan(d)["inputs"][0].update(shape=[-1]), "outside 0"),
    "fractional size": (lambda d: plan(d)["inputs"][0].update(shape=[1.5]), "got float"),
    "same names": (lambda d: plan(d)["outputs"][1].update(name="y"), "same name"),
    "buffer space": (lambda d: plan(d)["buffers"][0].__setitem__(0, "stack"), "unknown space"),
    "buffer shape": (lambda d: plan(d)["buffers"][0].append(1), "expected .space, offset, bytes"),
    "input index": (lambda d: plan(d)["buffers"][0].__setitem__(1, 2), "no input 2"),
    "input size": (
        lambda d: plan(d)["buffers"][0].__setitem__(2, 65),
        "65 bytes for a tensor",
    ),
    "output index": (lambda d: plan(d)["buffers"][4].__setitem__(1, 9), "no output 9"),
    "arena beyond": (lambda d: plan(d)["buffers"][3].__setitem__(1, 64), "outside the arena"),
    "arena unaligned": (lambda d: plan(d)["buffers"][3].__setitem__(1, 4), "multiple of 64"),
    "weight beyond": (lambda d: plan(d)["buffers"][2].__setitem__(2, 65), "outside the weight"),
    "arena too large": (lambda d: plan(d).update(arena_bytes=1 << 52), "outside 0"),
    "argument index": (lambda d: plan(d)["calls"][0].update(args=[6]), r"args\[0\]: 6 is outside"),
    "same site": (lambda d: plan(d)["calls"][0].update(site="sum#0"), "same site"),
    "serial no bool": (lambda d: plan(d)["calls"][0].update(serial=1), "expected a boolean"),
    "flops negative": (lambda d: plan(d)["calls"][0].update(flops=-1), "finite number"),
    "threads": (lambda d: plan(d).update(threads=0), "outside 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_refused(name: str) -> None:
    change, reason = CASES[name]
    with pytest.raises(ArtifactError, match=reason):
        decode(edit(change))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not readable JSON"),
        (b"[]", "no schema version"),
        (b"\xff\xfe", "not readable JSON"),
        (b'{"schema": 1, "schema": 1}', "same key twice"),
        (b'{"schema": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (b'{"schema": ' + b"1" * 10_000 + b"}", "not readable JSON"),
    ],
)
def test_what_is_no_manifest_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        decode(text)


def test_a_manifest_that_could_not_be_read_is_not_written(parts: Parts) -> None:
    entry = parts.manifest.entries[0]
    broken = replace(entry, plan=replace(entry.plan, arena_bytes=64))
    with pytest.raises(ArtifactError, match=r"\[save\] .*outside the arena"):
        encode(replace(parts.manifest, entries=(broken,)))
    with pytest.raises(ArtifactError, match="not plain JSON"):
        encode(replace(parts.manifest, report={"time": float("nan")}))
