"""The zip's layout beyond 4 GiB, and the tree digest."""

from __future__ import annotations

import io
import zipfile
from hashlib import blake2b
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.artifact.container import (
    SEAL_BYTES,
    SEAL_MAGIC,
    UNSEALED_BYTES,
    Member,
    layout,
    read_directory,
    read_layout,
)
from graphopt.artifact.digest import LEAF_BYTES, tree_digest
from graphopt.errors import ArtifactError

GIB = 1 << 30


@pytest.mark.parametrize("size", [0, 5, 3 * GIB, 4 * GIB - 1, 4 * GIB, 9 * GIB + 7])
@pytest.mark.parametrize("module", [10, 5 * GIB])
def test_large_members_are_described_as_zip64(size: int, module: int) -> None:
    plan = layout(
        [
            Member("manifest.json", 100, 1),
            Member("entries/0/module.so", module, 2),
            Member("weights.bin", size, 3),
        ]
    )
    assert plan.offsets[-1] % 4096 == 0
    tail = plan.directory + SEAL_MAGIC + bytes(UNSEALED_BYTES)
    assert read_directory(plan.size, tail) == plan.directory_offset
    assert read_layout(plan.directory_offset, tail) == plan
    with pytest.raises(ArtifactError):
        read_directory(plan.size + 1, tail)
    # Python's reader agrees about everything, on a file that is mostly a hole.
    infos = zipfile.ZipFile(Sparse(plan.directory_offset, tail)).infolist()
    assert [info.file_size for info in infos] == [100, module, size]
    assert infos[2].header_offset == plan.offsets[2] - len(plan.headers[2])


class Sparse(io.RawIOBase):
    """A file of zeros that ends with `tail`."""

    def __init__(self, hole: int, tail: bytes) -> None:
        self._hole, self._tail, self._at = hole, tail, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._at, 2: self._hole + len(self._tail)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        zeros = bytes(max(0, self._hole - self._at))  # readers look at the last 64 KiB at most
        data = (zeros + self._tail[max(0, self._at - self._hole) :])[: None if size < 0 else size]
        self._at += len(data)
        return data


def test_the_seal_has_a_fixed_size() -> None:
    assert SEAL_BYTES == 136


@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from([0, 1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 2 * LEAF_BYTES + 9]),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    threads=st.integers(1, 4),
)
def test_the_digest_depends_on_content_only(size: int, cuts: list[float], threads: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    view = memoryview(data)[:size]
    at = [0, *sorted(int(cut * size) for cut in cuts), size]
    pieces = [view[low:high] for low, high in pairwise(at)]
    assert tree_digest(pieces, threads) == tree_digest([view], 1)


def test_the_digest_tells_structure_apart() -> None:
    leaf = bytes(LEAF_BYTES)
    digests = {
        tree_digest([memoryview(data)], 2)
        for data in (b"", b"\0", leaf, leaf + b"\0", leaf + leaf, b"\1" + leaf, leaf + b"\1")
    }
    assert len(digests) == 7
    assert blake2b(b"", digest_size=32).digest() not in digests
