"""Saves and loads a `.gopt`. Nothing of a file is used before all of it has been verified."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.artifact import manifest as manifest_json
from graphopt.artifact.aligned import ALIGNMENT, empty_aligned
from graphopt.artifact.atomic import replacing
from graphopt.artifact.container import (
    MANIFEST,
    SEAL_MAGIC,
    UNSEALED_BYTES,
    WEIGHTS,
    Member,
    layout,
    module_name,
)
from graphopt.artifact.digest import tree_digest
from graphopt.artifact.encryption import Cipher, Secret, new_encryption
from graphopt.artifact.machine import require_fit, unfit_reason
from graphopt.artifact.manifest import Manifest
from graphopt.artifact.reading import Sealed, hash_threads, read_sealed
from graphopt.artifact.signature import UNSIGNED, Sign
from graphopt.errors import ArtifactError


@dataclass(frozen=True, eq=False)
class Artifact:
    """A verified `.gopt`.

    Attributes:
        manifest: what is inside.
        modules: entry i's shared library, a private copy of the verified bytes.
        weights: uint8 [n], read-only, 64-byte aligned; mapped from the file unless encrypted.
        digest: hexadecimal digest of the whole file.
    """

    manifest: Manifest
    modules: tuple[memoryview, ...]
    weights: NDArray[np.uint8]
    digest: str

    def entry_weights(self, index: int) -> NDArray[np.uint8]:
        """The weights of entry `index`: uint8 [plan.weight_bytes], a view."""
        entry = self.manifest.entries[index]
        return self.weights[entry.weights_offset : entry.weights_offset + entry.plan.weight_bytes]

    def module(self, index: int) -> memoryview:
        """Entry `index`'s shared library.

        Raises:
            ArtifactError: this machine cannot run it.
        """
        entry = self.manifest.entries[index]
        require_fit(entry.architecture, entry.features)
        return self.modules[index]


def save(
    path: str | os.PathLike[str],
    manifest: Manifest,
    modules: Sequence[bytes],
    weights: NDArray[Any] | bytes,
    secret: Secret | None = None,
    encrypt_modules: bool = True,
) -> str:
    """Write a `.gopt` and return its digest (hexadecimal). Same parts, same bytes.

    Args:
        path: replaced atomically.
        modules: one shared library per entry of the manifest.
        weights: all entries' weights, contiguous, any dtype.
        secret: encrypts the weights and, unless `encrypt_modules` is False, the modules. Then the
            bytes differ each time.

    Raises:
        ArtifactError: the file cannot be written (an old one stays), or the parts contradict.
        OptionError: there is a secret, and the `cryptography` package is missing.
    """
    parts, digest = _seal(manifest, modules, weights, secret, encrypt_modules)
    with replacing(path, "save") as file:
        for part in parts:
            file.write(part)
    return digest


def to_bytes(manifest: Manifest, modules: Sequence[bytes], weights: NDArray[Any] | bytes) -> bytes:
    """The bytes that `save` would write."""
    return b"".join(_seal(manifest, modules, weights)[0])


def sign(source: str | os.PathLike[str], output: str | os.PathLike[str], sign: Sign) -> None:
    """Write the file again with a signature, which replaces one that it has.

    Raises:
        ArtifactError: the file is damaged or altered, or `output` cannot be written.
    """
    sealed = read_sealed(source)
    with replacing(output, "sign") as file:
        for part in (sealed.head, sealed.weights, sealed.tail[:-UNSEALED_BYTES]):
            file.write(part)
        file.write(sign(sealed.signed) + sealed.digest)


def _seal(
    manifest: Manifest,
    modules: Sequence[bytes],
    weights: NDArray[Any] | bytes,
    secret: Secret | None = None,
    encrypt_modules: bool = True,
) -> tuple[list[memoryview], str]:
    """The file in pieces, and its digest."""
    if len(modules) != len(manifest.entries):
        raise ArtifactError(
            "save", f"{len(modules)} modules for {len(manifest.entries)} entries of the manifest."
        )
    flat = memoryview(weights if isinstance(weights, bytes) else _as_bytes(weights).data)
    _check_weights(manifest, flat.nbytes, "save")
    encryption = None if secret is None else new_encryption(secret, encrypt_modules)
    described = manifest_json.encode(replace(manifest, encryption=encryption))
    contents = [*(memoryview(module) for module in modules), flat]
    if encryption is not None:
        cipher = Cipher(secret, encryption, described)
        first = 0 if encryption.modules else len(modules)
        for index in range(first, len(contents)):
            contents[index] = memoryview(cipher.encrypted(index, contents[index]))
    contents = [memoryview(described), *contents]
    names = [MANIFEST, *(module_name(i) for i in range(len(modules))), WEIGHTS]
    plan = layout(
        [
            Member(name, content.nbytes, zlib.crc32(content))
            for name, content in zip(names, contents, strict=True)
        ]
    )
    parts = [
        part
        for header, content in zip(plan.headers, contents, strict=True)
        for part in (memoryview(header), content)
    ]
    parts.append(memoryview(plan.directory + SEAL_MAGIC))
    digest = tree_digest(parts, hash_threads())
    return [*parts, memoryview(UNSIGNED + digest)], digest.hex()


def load(
    source: str | os.PathLike[str] | bytes,
    trusted: Sequence[bytes] = (),
    secret: Secret | None = None,
) -> Artifact:
    """Read and verify a `.gopt` for this machine, as read().

    Raises:
        ArtifactError: as read(), or no entry can run on this machine.
        OptionError: as read().
    """
    artifact = read(source, trusted, secret)
    entries = artifact.manifest.entries
    reasons = [unfit_reason(entry.architecture, entry.features) for entry in entries]
    if reasons and all(reasons):
        raise ArtifactError(
            "load",
            "The program cannot run here: " + "; ".join(dict.fromkeys(filter(None, reasons))) + ".",
            hint="Compile the model for this machine.",
        )
    return artifact


def read(
    source: str | os.PathLike[str] | bytes,
    trusted: Sequence[bytes] = (),
    secret: Secret | None = None,
) -> Artifact:
    """Read and verify a `.gopt` for any machine, given as a path or as its bytes.

    From a path the weights are mapped privately and shared with other processes' page cache,
    unless they are encrypted: do not change the file in place while it is in use (saving replaces
    files, which is safe). Modules, manifest and all structure are private copies, and those copies
    are what is verified.

    Args:
        trusted: public keys, 32 bytes each; if there are any, one of them must have signed.
        secret: of an encrypted file.

    Raises:
        ArtifactError: unreadable, truncated, altered, not signed by a trusted key, or of another
            version.
        OptionError: the file is encrypted and the secret is missing or of the other kind.
    """
    sealed = read_sealed(source, trusted)
    described, *modules = sealed.members()
    manifest = manifest_json.decode(bytes(described))
    if len(modules) != len(manifest.entries):
        raise ArtifactError(
            "load", f"The file has {len(modules)} modules for {len(manifest.entries)} entries."
        )
    modules, weights = _opened(sealed, manifest, bytes(described), modules, secret)
    _check_weights(manifest, len(weights), "load")
    return Artifact(manifest, tuple(modules), weights, sealed.digest.hex())


def _opened(
    sealed: Sealed,
    manifest: Manifest,
    described: bytes,
    modules: list[memoryview],
    secret: Secret | None,
) -> tuple[list[memoryview], NDArray[np.uint8]]:
    """Modules and weights, decrypted where they are encrypted."""
    if manifest.encryption is None:
        return modules, _aligned(sealed.weights)
    cipher = Cipher(secret, manifest.encryption, described)
    if manifest.encryption.modules:
        modules = [cipher.decrypted(i, m).data for i, m in enumerate(modules)]
    return modules, cipher.decrypted(len(modules), sealed.weights)


def _as_bytes(weights: NDArray[Any]) -> NDArray[np.uint8]:
    if not weights.flags.c_contiguous:
        raise ArtifactError("save", "The weights are not contiguous.")
    return weights.reshape(-1).view(np.uint8)


def _check_weights(manifest: Manifest, size: int, stage: str) -> None:
    for index, entry in enumerate(manifest.entries):
        if entry.weights_offset + entry.plan.weight_bytes > size:
            raise ArtifactError(
                stage, f"Entry {index} needs more weights than the {size} bytes there are."
            )


def _aligned(weights: memoryview) -> NDArray[np.uint8]:
    array = np.frombuffer(weights, np.uint8)
    if array.ctypes.data % ALIGNMENT:  # given as bytes, not mapped from a file
        copy = empty_aligned(array.size)
        copy[:] = array
        copy.flags.writeable = False
        return copy
    return array
