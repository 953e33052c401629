"""The memory of a program while its plan is made: regions, regions inside others, lifetimes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from graphopt.codegen.plan import Buffer
from graphopt.lowering.memory import ALIGNMENT, Lifetime, place


@dataclass
class _Region:
    """A buffer of the plan to be.

    `offset` is an index for inputs and outputs, else in bytes: relative to `host` if the region
    lies inside another one, unknown yet for others in the arena.
    """

    space: str
    offset: int
    nbytes: int
    host: int | None = None
    first: int = 1 << 30
    last: int = -1
    writers: list[int] = field(default_factory=list)


class Storage:
    """Regions by number. What lies inside a region lives and is placed with it."""

    def __init__(self, alignment: int = ALIGNMENT) -> None:
        """Args:
        alignment: in bytes, of every region in the arena.
        """
        self._alignment = alignment
        self._regions: list[_Region] = []

    def add(self, space: str, offset: int, nbytes: int) -> int:
        """A region of its own; `space` and `offset` as in plan.Buffer, 0 in the arena."""
        self._regions.append(_Region(space, offset, nbytes))
        return len(self._regions) - 1

    def inside(self, host: int, offset: int, nbytes: int) -> int:
        """A region at `offset` bytes inside `host`, which must be in the arena."""
        assert self._regions[host].space == "arena", "only the arena has parts"
        assert offset % self._alignment == 0
        assert offset + nbytes <= self._regions[host].nbytes
        self._regions.append(_Region("arena", offset, nbytes, host))
        return len(self._regions) - 1

    def touch(self, region: int, call: int) -> None:
        """Note that call number `call` reads or writes `region`."""
        root = self._regions[self._root(region)[0]]
        root.first, root.last = min(root.first, call), max(root.last, call)

    def written(self, region: int, calls: Iterable[int]) -> None:
        """Note that `calls` write `region`."""
        self._regions[region].writers.extend(calls)

    def writers(self, region: int) -> tuple[int, ...]:
        """The calls that write `region`, or what it is a part of."""
        return tuple(dict.fromkeys(self._regions[region].writers))

    def buffers(self) -> tuple[tuple[Buffer, ...], int]:
        """All regions as the plan's buffers, with those in the arena placed, and its size."""
        roots = [r for r in self._regions if r.space == "arena" and r.host is None]
        offsets, total = place(
            [Lifetime(r.nbytes, r.first, r.last) for r in roots], self._alignment
        )
        for root, offset in zip(roots, offsets, strict=True):
            root.offset = offset
        found = []
        for index, region in enumerate(self._regions):
            root_index, inner = self._root(index)
            offset = self._regions[root_index].offset + inner
            found.append(Buffer(region.space, offset, region.nbytes))
        return tuple(found), total

    def _root(self, region: int) -> tuple[int, int]:
        """The region that `region` lies in, and where, in bytes."""
        inner = 0
        while (host := self._regions[region].host) is not None:
            inner += self._regions[region].offset
            region = host
        return region, inner
