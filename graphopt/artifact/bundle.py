"""Saves and loads a `.gopt`. Nothing of a file is used before all of it has been verified."""

from __future__ import annotations

import mmap
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.artifact import manifest as manifest_json
from graphopt.artifact.atomic import replacing
from graphopt.artifact.container import (
    MANIFEST,
    SEAL_BYTES,
    SEAL_MAGIC,
    SIGNATURE_BYTES,
    UNSEALED_BYTES,
    WEIGHTS,
    Layout,
    Member,
    layout,
    module_name,
    read_directory,
    read_layout,
)
from graphopt.artifact.digest import DIGEST_BYTES, tree_digest
from graphopt.artifact.machine import require_fit, unfit_reason
from graphopt.artifact.manifest import Manifest
from graphopt.errors import ArtifactError

_ALIGNMENT = 64
_TAIL_BYTES = 1 << 10  # more than the end records and the seal
_MAX_HASH_THREADS = 4


@dataclass(frozen=True, eq=False)
class Artifact:
    """A verified `.gopt`.

    Attributes:
        manifest: what is inside.
        modules: entry i's shared library, a private copy of the verified bytes.
        weights: uint8 [n], read-only, 64-byte aligned.
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
) -> str:
    """Write a `.gopt` and return its digest (hexadecimal). Same parts, same bytes.

    Args:
        path: replaced atomically.
        modules: one shared library per entry of the manifest.
        weights: all entries' weights, contiguous, any dtype.

    Raises:
        ArtifactError: the file cannot be written (an old one stays), or the parts contradict.
    """
    parts, digest = _seal(manifest, modules, weights)
    with replacing(path, "save") as file:
        for part in parts:
            file.write(part)
    return digest


def to_bytes(manifest: Manifest, modules: Sequence[bytes], weights: NDArray[Any] | bytes) -> bytes:
    """The bytes that `save` would write."""
    return b"".join(_seal(manifest, modules, weights)[0])


def _seal(
    manifest: Manifest, modules: Sequence[bytes], weights: NDArray[Any] | bytes
) -> tuple[list[memoryview], str]:
    """The file in pieces, and its digest."""
    if len(modules) != len(manifest.entries):
        raise ArtifactError(
            "save", f"{len(modules)} modules for {len(manifest.entries)} entries of the manifest."
        )
    flat = memoryview(weights if isinstance(weights, bytes) else _as_bytes(weights).data)
    _check_weights(manifest, flat.nbytes, "save")
    contents = [
        memoryview(manifest_json.encode(manifest)),
        *(memoryview(module) for module in modules),
        flat,
    ]
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
    digest = tree_digest(parts, _hash_threads())
    return [*parts, memoryview(bytes(SIGNATURE_BYTES) + digest)], digest.hex()


def load(source: str | os.PathLike[str] | bytes) -> Artifact:
    """Read and verify a `.gopt`, given as a path or as its bytes.

    From a path the weights are mapped privately and shared with other processes' page cache: do
    not change the file in place while it is in use (saving replaces files, which is safe).
    Modules, manifest and all structure are private copies, and those copies are what is verified.

    Raises:
        ArtifactError: unreadable, truncated, altered, of another version, or no entry can run on
            this machine.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        size, buffer = _from_bytes(source)
    else:
        size, buffer = _from_file(source)
    directory_offset = read_directory(size, bytes(buffer[max(0, size - _TAIL_BYTES) :]))
    tail = bytes(buffer[directory_offset:])
    found = read_layout(directory_offset, tail)
    weights_at = found.offsets[-1]
    head = bytes(buffer[:weights_at])
    weights = buffer[weights_at:directory_offset]
    digest = _verify(head, weights, tail, found)

    views = [memoryview(head)[start:][: member.size] for start, member in _inner(found)]
    manifest = manifest_json.decode(bytes(views[0]))
    if len(views) - 1 != len(manifest.entries):
        raise ArtifactError(
            "load", f"The file has {len(views) - 1} modules for {len(manifest.entries)} entries."
        )
    _check_weights(manifest, len(weights), "load")
    reasons = [unfit_reason(entry.architecture, entry.features) for entry in manifest.entries]
    if reasons and all(reasons):
        raise ArtifactError(
            "load",
            "The program cannot run here: " + "; ".join(dict.fromkeys(filter(None, reasons))) + ".",
            hint="Compile the model for this machine.",
        )
    return Artifact(manifest, tuple(views[1:]), _aligned(weights), digest.hex())


def _verify(head: bytes, weights: memoryview, tail: bytes, found: Layout) -> bytes:
    for header, offset in zip(found.headers, found.offsets, strict=True):
        if head[offset - len(header) : offset] != header:
            raise ArtifactError("load", "The file is refused: a member's header is altered.")
    if any(tail[-UNSEALED_BYTES:-DIGEST_BYTES]):
        raise ArtifactError(
            "load",
            "The file carries a signature, which this version of graphopt cannot check.",
            hint="Use the graphopt version that signed it, or an unsigned file.",
        )
    sealed = memoryview(tail)[:-UNSEALED_BYTES]
    digest = tree_digest([memoryview(head), weights, sealed], _hash_threads())
    if not compare_digest(digest, tail[-DIGEST_BYTES:]):
        raise ArtifactError(
            "load",
            "The file is refused: its content does not match its digest; it is damaged or altered.",
            hint="Get or compile the file again.",
        )
    return digest


def _inner(found: Layout) -> list[tuple[int, Member]]:
    """All members but the weights, which come last."""
    return list(zip(found.offsets, found.members, strict=True))[:-1]


def _from_bytes(source: bytes | bytearray | memoryview) -> tuple[int, memoryview]:
    view = memoryview(source)
    if not view.contiguous:
        raise ArtifactError("load", "The bytes of the file are not contiguous in memory.")
    # A private copy: what the caller does to a mutable buffer later must not matter.
    view = memoryview(source if isinstance(source, bytes) else view.tobytes())
    return len(view), view


def _from_file(path: str | os.PathLike[str]) -> tuple[int, memoryview]:
    try:
        # Not blocking: opening a FIFO would wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactError("load", f"{os.fspath(path)} is not a regular file.")
            if status.st_size < SEAL_BYTES:
                raise ArtifactError("load", f"{os.fspath(path)} is truncated or not a .gopt.")
            mapping = mmap.mmap(handle, status.st_size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError("load", f"Cannot read {os.fspath(path)}: {reason}.") from error
    return status.st_size, memoryview(mapping)


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
    if array.ctypes.data % _ALIGNMENT:  # given as bytes, not mapped from a file
        room = np.empty(array.size + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        copy = room[start : start + array.size]
        copy[:] = array
        copy.flags.writeable = False
        return copy
    return array


def _hash_threads() -> int:
    return min(_MAX_HASH_THREADS, len(os.sched_getaffinity(0)))
