"""One spatial axis of a window: which taps of which outputs lie inside the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from schedules import nest
from schedules.interface import PrimExpr


@dataclass(frozen=True)
class Axis:
    """Output o and tap k read position o·stride − before + k·dilation of `size`."""

    size: int
    out: int
    kernel: int
    stride: int
    before: int
    after: int
    dilation: int

    def valid(self, first: int, count: int, tap: int) -> tuple[int, int]:
        """Range [low, high) of i < count for which output first + i reads inside with `tap`."""
        inside = [
            i
            for i in range(count)
            if 0 <= (first + i) * self.stride - self.before + tap * self.dilation < self.size
        ]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)

    def interior(self, first: int, count: int) -> bool:
        """Whether all taps of outputs first … first + count − 1 read inside."""
        last = (first + count - 1) * self.stride + (self.kernel - 1) * self.dilation
        return first * self.stride >= self.before and last - self.before < self.size

    def taps(self, output: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
        """First tap that reads inside at `output`, and how many do."""
        if self.interior(0, self.out):
            return nest.integer(0), nest.integer(self.kernel)
        start = output * self.stride
        first = (tirx.max(self.before - start, 0) + self.dilation - 1) // self.dilation
        room = tirx.max(self.size + self.before - start, 0)
        last = tirx.min((room + self.dilation - 1) // self.dilation, self.kernel)
        return first, tirx.max(last - first, 0)

    def padded_taps(self, output: PrimExpr) -> PrimExpr:
        """How many taps lie inside the image or its padding (windows may hang over both)."""
        room = self.size + self.before + self.after - output * self.stride
        return tirx.min((tirx.max(room, 0) + self.dilation - 1) // self.dilation, self.kernel)


@dataclass(frozen=True)
class Run:
    """`count` tiles of `width` outputs, the first at `start`; `interior`: all taps read inside."""

    start: int
    count: int
    width: int
    interior: bool


class Windowed(Protocol):
    """An axis whose windows may hang over the image's border."""

    @property
    def out(self) -> int:
        """Number of outputs."""
        ...

    def interior(self, first: int, count: int) -> bool:
        """Whether all taps of outputs first … first + count − 1 read inside."""
        ...


def runs(axis: Windowed, width: int) -> tuple[Run, ...]:
    """Tiles of at most `width` that cover the axis; neighbouring interior ones share one run."""
    tiles: list[Run] = []
    for start in range(0, axis.out, width):
        size = min(width, axis.out - start)
        tile = Run(start, 1, size, axis.interior(start, size))
        last = tiles[-1] if tiles else None
        if last and last.interior and tile.interior and last.width == size:
            tiles[-1] = Run(last.start, last.count + 1, size, True)
        else:
            tiles.append(tile)
    return tuple(tiles)
