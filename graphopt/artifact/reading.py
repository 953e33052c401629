"""Reads the bytes of a `.gopt` and vouches for them; their meaning is bundle.py's."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest

from graphopt.artifact.container import (
    SEAL_BYTES,
    UNSEALED_BYTES,
    Layout,
    read_directory,
    read_layout,
)
from graphopt.artifact.digest import DIGEST_BYTES, tree_digest
from graphopt.artifact.signature import message, require_signature
from graphopt.errors import ArtifactError

_TAIL_BYTES = 1 << 10  # more than the end records and the seal
_MAX_HASH_THREADS = 4


@dataclass(frozen=True, eq=False)
class Sealed:
    """A file whose structure, digest and signature are right.

    Attributes:
        head: all members but the weights, with the headers; a private copy.
        weights: as stored; of a file, mapped.
        tail: directory and seal; a private copy.
        layout: where the members lie.
    """

    head: memoryview
    weights: memoryview
    tail: memoryview
    layout: Layout

    @property
    def digest(self) -> bytes:
        """Of all bytes before the signature."""
        return bytes(self.tail[-DIGEST_BYTES:])

    @property
    def signature(self) -> bytes:
        """The signature's field of the seal."""
        return bytes(self.tail[-UNSEALED_BYTES:-DIGEST_BYTES])

    @property
    def signed(self) -> bytes:
        """What a signature of the file signs."""
        return message(self.head, self.tail[:-UNSEALED_BYTES], self.digest)

    def members(self) -> list[memoryview]:
        """All members but the weights, which come last."""
        found = list(zip(self.layout.offsets, self.layout.members, strict=True))[:-1]
        return [self.head[start : start + member.size] for start, member in found]


def read_sealed(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview, trusted: Sequence[bytes] = ()
) -> Sealed:
    """Read a file and check all of it but what the manifest means.

    Args:
        trusted: public keys, 32 bytes each; if there are any, one of them must have signed.

    Raises:
        ArtifactError: unreadable, truncated, altered, or not signed by a trusted key.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        size, buffer = _from_bytes(source)
    else:
        size, buffer = _from_file(source)
    directory_offset = read_directory(size, bytes(buffer[max(0, size - _TAIL_BYTES) :]))
    tail = memoryview(bytes(buffer[directory_offset:]))
    found = read_layout(directory_offset, bytes(tail))
    weights_at = found.offsets[-1]
    head = memoryview(bytes(buffer[:weights_at]))
    sealed = Sealed(head, buffer[weights_at:directory_offset], tail, found)
    for header, offset in zip(found.headers, found.offsets, strict=True):
        if head[offset - len(header) : offset] != header:
            raise ArtifactError("load", "The file is refused: a member's header is altered.")
    # Before the weights, which may be gigabytes, are looked at.
    require_signature(sealed.signature, sealed.signed, trusted)
    digest = tree_digest([head, sealed.weights, tail[:-UNSEALED_BYTES]], hash_threads())
    if not compare_digest(digest, sealed.digest):
        raise ArtifactError(
            "load",
            "The file is refused: its content does not match its digest; it is damaged or altered.",
            hint="Get or compile the file again.",
        )
    return sealed


def hash_threads() -> int:
    """How many threads compute a digest."""
    return min(_MAX_HASH_THREADS, len(os.sched_getaffinity(0)))


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
