"""The zip around a `.gopt`: one canonical form, written and read to the byte.

Any unzip tool opens it, but the reader accepts only what the writer makes: from the names, sizes
and checksums in the central directory it builds all headers anew and compares them with the file.
So there are no gaps, hidden members, second meanings or compressed members to reason about.
Field layouts are from PKWARE's APPNOTE 6.3.10, sections 4.3 to 4.5.

The zip's comment, the last bytes of the file, is the seal:

    magic (8) | signature (96, zeros without one) | digest (32) of all bytes before the signature
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.artifact.digest import DIGEST_BYTES
from graphopt.errors import ArtifactError

PAGE = 4096
MANIFEST = "manifest.json"
WEIGHTS = "weights.bin"

SEAL_MAGIC = b"GOPTSEAL"
SIGNATURE_BYTES = 96
SEAL_BYTES = len(SEAL_MAGIC) + SIGNATURE_BYTES + DIGEST_BYTES
UNSEALED_BYTES = SIGNATURE_BYTES + DIGEST_BYTES
"""The digest covers the file without this many last bytes: a signature signs the digest."""

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<4sIQI")
_DATE = (1 << 5) | 1  # 1980-01-01, the earliest a zip can say
_LIMIT = 0xFFFFFFFF
_MAX_DIRECTORY = 1 << 20
_ENTRY_NAME = re.compile(r"entries/(0|[1-9][0-9]{0,4})/module\.so")


@dataclass(frozen=True)
class Member:
    """A stored file of the zip: `size` bytes with the CRC-32 `crc`."""

    name: str
    size: int
    crc: int


@dataclass(frozen=True)
class Layout:
    """Where everything lies. `headers[i]` ends where member i's bytes begin, at `offsets[i]`."""

    members: tuple[Member, ...]
    headers: tuple[bytes, ...]
    offsets: tuple[int, ...]
    directory: bytes  # central directory and end records, up to and without the comment
    directory_offset: int

    @property
    def size(self) -> int:
        """Size of the whole file in bytes."""
        return self.directory_offset + len(self.directory) + SEAL_BYTES


def module_name(index: int) -> str:
    """Name of the member that holds entry `index`'s compiled module."""
    return f"entries/{index}/module.so"


def layout(members: Sequence[Member]) -> Layout:
    """The one layout of these members in this order; the weights begin on a page."""
    headers, offsets, central, position = [], [], [], 0
    for member in members:
        start = position
        header = _local_header(member, start)
        headers.append(header)
        offsets.append(start + len(header))
        central.append(_central_header(member, start))
        position = offsets[-1] + member.size
    directory = b"".join(central)
    return Layout(
        members=tuple(members),
        headers=tuple(headers),
        offsets=tuple(offsets),
        directory=directory + _end_records(len(members), len(directory), position),
        directory_offset=position,
    )


def read_directory(size: int, tail: bytes) -> int:
    """Where the central directory begins, from the file's size and (at least) its last KiB.

    Raises:
        ArtifactError: there is no seal, or the end records are not those of a `.gopt`.
    """
    end_at = len(tail) - SEAL_BYTES - _END.size
    if end_at < 0 or tail[-SEAL_BYTES:-UNSEALED_BYTES] != SEAL_MAGIC:
        raise _damaged("its end is missing: it is truncated, altered or not a .gopt")
    magic, disk, first, here, total, length, offset, comment = _END.unpack_from(tail, end_at)
    if magic != b"PK\5\6" or disk or first or here != total or comment != SEAL_BYTES:
        raise _damaged("its end record is altered")
    records = _END.size
    if _LIMIT in (length, offset):
        records += _END64.size + _LOCATOR64.size
        if len(tail) < records + SEAL_BYTES:
            raise _damaged("its end record is altered")
        fields = _END64.unpack_from(tail, len(tail) - SEAL_BYTES - records)
        if fields[0] != b"PK\6\6":
            raise _damaged("its end record is altered")
        length, offset = fields[8], fields[9]
    if length > _MAX_DIRECTORY:
        raise _damaged(f"its directory of {length} bytes is too large")
    if offset + length + records + SEAL_BYTES != size:
        raise _damaged("bytes are missing or were added")
    return int(offset)


def read_layout(directory_offset: int, tail: bytes) -> Layout:
    """The layout of a file whose bytes from `directory_offset` to the end are `tail`.

    Every byte of `tail` but the seal is accounted for. The local headers lie elsewhere in the
    file: the caller compares them with `headers`.

    Raises:
        ArtifactError: names the member at fault where there is one.
    """
    members: list[Member] = []
    at = 0
    while tail[at : at + 4] == b"PK\1\2":
        if at + _CENTRAL.size > len(tail):
            raise _damaged("its directory is truncated")
        fields = _CENTRAL.unpack_from(tail, at)
        flags, method, crc, packed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
        name_length, extra_length, comment_length = fields[10:13]
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_length
        at = extra_at + extra_length + comment_length
        if at > len(tail):
            raise _damaged("its directory is truncated")
        name = tail[name_at:extra_at].decode("utf-8", "replace")
        _check_name(name, {member.name for member in members})
        if flags & 1:
            raise _damaged(f"member {name!r} is encrypted")
        if method:
            raise _damaged(f"member {name!r} is compressed; a .gopt stores its members")
        if _LIMIT in (packed, size):
            if extra_length < 20:
                raise _damaged(f"the sizes of member {name!r} are missing")
            size, packed = struct.unpack_from("<QQ", tail, extra_at + 4)
        if size != packed:
            raise _damaged(f"member {name!r} claims {size} bytes and has {packed}")
        members.append(Member(name, size, crc))
    expected = [MANIFEST, *(module_name(i) for i in range(len(members) - 2)), WEIGHTS]
    if [member.name for member in members] != expected:
        raise _damaged(f"its members are {[member.name for member in members]}, not {expected}")
    made = layout(members)
    if made.directory_offset != directory_offset or made.directory != tail[:-SEAL_BYTES]:
        raise _damaged("its directory is not the one graphopt writes for these members")
    return made


def _check_name(name: str, seen: set[str]) -> None:
    if name in seen:
        raise _damaged(f"member {name!r} is there twice")
    if name.startswith(("/", "\\")) or "\\" in name or ":" in name or ".." in name.split("/"):
        raise _damaged(f"member {name!r} points outside of the file's own folder")
    if name not in (MANIFEST, WEIGHTS) and not _ENTRY_NAME.fullmatch(name):
        raise _damaged(f"member {name!r} does not belong there")


def _local_header(member: Member, start: int) -> bytes:
    name = member.name.encode("utf-8")
    big = member.size >= _LIMIT
    extra = struct.pack("<HHQQ", 1, 16, member.size, member.size) if big else b""
    if member.name == WEIGHTS:
        # An extra field that other tools skip (0xD935, as Android's zipalign writes it) pads the
        # header, so that the weights can be mapped into memory where they lie.
        used = start + _LOCAL.size + len(name) + len(extra) + 6
        padding = -used % PAGE
        extra += struct.pack("<HHH", 0xD935, 2 + padding, PAGE) + bytes(padding)
    size = _LIMIT if big else member.size
    return (
        _LOCAL.pack(
            *(b"PK\3\4", 45 if big else 20, 0, 0, 0, _DATE),
            *(member.crc, size, size, len(name), len(extra)),
        )
        + name
        + extra
    )


def _central_header(member: Member, start: int) -> bytes:
    name = member.name.encode("utf-8")
    values, size, offset = [], member.size, start
    if member.size >= _LIMIT:
        values, size = [member.size, member.size], _LIMIT
    if start >= _LIMIT:
        values, offset = [*values, start], _LIMIT
    extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    version = 45 if values else 20
    return (
        _CENTRAL.pack(
            *(b"PK\1\2", 3 << 8 | version, version, 0, 0, 0, _DATE),
            *(member.crc, size, size, len(name), len(extra), 0, 0, 0, 0o100644 << 16, offset),
        )
        + name
        + extra
    )


def _end_records(count: int, length: int, offset: int) -> bytes:
    records = b""
    if offset >= _LIMIT:
        records = _END64.pack(
            *(b"PK\6\6", _END64.size - 12, 3 << 8 | 45, 45, 0, 0),
            *(count, count, length, offset),
        ) + _LOCATOR64.pack(b"PK\6\7", 0, offset + length, 1)
    small = min(offset, _LIMIT)
    return records + _END.pack(b"PK\5\6", 0, 0, count, count, length, small, SEAL_BYTES)


def _damaged(reason: str) -> ArtifactError:
    return ArtifactError(
        "load", f"The file is refused: {reason}.", hint="Get or compile the file again."
    )
