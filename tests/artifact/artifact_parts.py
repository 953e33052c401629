"""The parts of a small but complete `.gopt` with the toy program; keys; forged files."""

from __future__ import annotations

import io
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.append(str(Path(__file__).parents[1] / "runtime"))

from toy_program import toy_code, toy_plan, toy_weights

from graphopt.artifact.bundle import Artifact, to_bytes
from graphopt.artifact.container import SEAL_MAGIC, UNSEALED_BYTES, Member, layout
from graphopt.artifact.digest import DIGEST_BYTES, tree_digest
from graphopt.artifact.manifest import Entry, Manifest
from graphopt.artifact.signature import trusted_key
from graphopt.runtime.host import host_arch

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


@dataclass(frozen=True)
class Parts:
    """What `save` takes."""

    manifest: Manifest
    modules: list[bytes]
    weights: Any


def make_parts(n: int = 1000, modules: list[bytes] | None = None, **changes: Any) -> Parts:
    """One entry with the toy program; `changes` go into the entry."""
    plan = toy_plan(n)
    entry = {
        "plan": plan,
        "target": "x86_64-sse2",
        "architecture": host_arch(),
        "features": (),
        "weights_offset": 0,
        **changes,
    }
    manifest = Manifest(
        inputs=plan.inputs,
        outputs=plan.outputs,
        entries=(Entry(**entry),),
        versions={"graphopt": "0.1.0", "tvm": "0.27.0.post1", "tvm_ffi": "0.1.14.post1"},
        report={"passes": [{"name": "fold", "rewrites": 3}], "warnings": ["größer"]},
    )
    return Parts(manifest, [toy_code(n)] if modules is None else modules, toy_weights(n))


def same(artifact: Artifact, parts: Parts) -> bool:
    """Whether these parts were loaded, the weights read-only and aligned."""
    return (
        [bytes(module) for module in artifact.modules] == parts.modules
        and np.array_equal(artifact.weights, parts.weights)
        and not artifact.weights.flags.writeable
        and artifact.weights.ctypes.data % 64 == 0
    )


@dataclass(frozen=True)
class Pair:
    """A key pair in PEM files."""

    private: Path
    public: Path

    @property
    def raw(self) -> bytes:
        return trusted_key(self.public)


def make_pair(folder: Path, name: str) -> Pair:
    """A new Ed25519 key."""
    key = Ed25519PrivateKey.generate()
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.pub.pem")
    pair.private.write_bytes(key.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    pair.public.write_bytes(key.public_key().public_bytes(PEM, SPKI))
    return pair


def packed(parts: Parts) -> bytes:
    """The bytes of the parts' file."""
    return to_bytes(parts.manifest, parts.modules, parts.weights)


def contents(parts: Parts) -> list[tuple[str, bytes]]:
    """The members of the parts' file."""
    with zipfile.ZipFile(io.BytesIO(packed(parts))) as file:
        return [(name, file.read(name)) for name in file.namelist()]


def sealed(data: bytes) -> bytes:
    """`data` with the digest that belongs to it, as a forger would make it."""
    digest = tree_digest([memoryview(data)[:-UNSEALED_BYTES]], 1)
    return data[:-DIGEST_BYTES] + digest


def forged(members: list[tuple[str, bytes]]) -> bytes:
    """A file with our structure, a right digest, and any members."""
    plan = layout([Member(name, len(data), zlib.crc32(data)) for name, data in members])
    data = b"".join(
        header + content for header, (_, content) in zip(plan.headers, members, strict=True)
    )
    return sealed(data + plan.directory + SEAL_MAGIC + bytes(UNSEALED_BYTES))
