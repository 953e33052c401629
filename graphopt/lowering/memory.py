"""Places tensors with limited lifetimes in one workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """A tensor's size in bytes and the first and last call that touch it, both inclusive."""

    nbytes: int
    first: int
    last: int


def align(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """`nbytes` rounded up to the alignment of every buffer, at least one unit."""
    return max(-(-nbytes // alignment), 1) * alignment


def place(tensors: Sequence[Lifetime], alignment: int = ALIGNMENT) -> tuple[list[int], int]:
    """Offsets for all tensors, and the workspace's size.

    Largest first, each at the lowest offset where nothing that lives at the same time overlaps
    (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
    """
    offsets = [0] * len(tensors)
    placed: list[tuple[int, int, Lifetime]] = []  # offset, end, tensor; sorted by offset
    total = 0
    order = sorted(range(len(tensors)), key=lambda i: (-tensors[i].nbytes, tensors[i].first, i))
    for index in order:
        tensor, size, offset = tensors[index], align(tensors[index].nbytes, alignment), 0
        for begin, end, other in placed:
            if other.last < tensor.first or tensor.last < other.first:
                continue
            if begin - offset >= size:
                break
            offset = max(offset, end)
        offsets[index] = offset
        placed.append((offset, offset + size, tensor))
        placed.sort(key=lambda entry: entry[0])
        total = max(total, offset + size)
    return offsets, total
