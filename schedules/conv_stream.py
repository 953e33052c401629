"""Fetching the packed weights of a convolution from far memory before they are needed.

Inside a network, the weights of a layer were last used one run ago: they come from the last-level
cache or from memory, and the hardware's prefetchers, which stop at every page and start anew with
every stream, reach half of the bandwidth there is. Each register tile therefore fetches its share
of what will be read next, spread over its steps, so that memory and arithmetic overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from schedules import nest
from schedules.conv_common import ceil_div
from schedules.interface import PrimExpr
from schedules.nest import Buffer, Stmt

LINE = 16
"""float32 values in a cache line."""


@dataclass(frozen=True)
class Stream:
    """The blocks of weights that come after the ones in use, fetched by `shares` tiles together.

    source: the packed weights. shares: tiles that use the same weights; each fetches its part.
    share: which of them this tile is. ahead: index into `source` of the block to fetch, for the
    coordinates of the block that is being read.
    """

    source: Buffer
    shares: int
    share: PrimExpr
    ahead: Callable[..., tuple[PrimExpr | int, ...]]


def streamed(
    steps: int,
    step: Callable[[PrimExpr], Stmt],
    width: int,
    stream: Stream | None,
    *block: PrimExpr | int,
) -> Stmt:
    """The loop over the `steps` channels of a block of weights, each of `width` values.

    Meanwhile the tile's share of another block is fetched, which `stream` finds for `block`.
    """
    if stream is None:
        return nest.serial(steps, step, "ii")
    lines = ceil_div(ceil_div(steps * width, LINE), stream.shares)
    at_once = ceil_div(lines, steps)
    groups = ceil_div(lines, at_once)
    while steps % groups:
        groups += 1
    per_group = steps // groups
    found = stream.ahead(*block)

    def group(g: PrimExpr) -> Stmt:
        first = (stream.share * groups + g) * at_once
        fetches = [
            nest.prefetch(stream.source, *found[:-1], found[-1] + (first + i) * LINE)
            for i in range(at_once)
        ]
        return nest.sequence(
            *fetches, nest.serial(per_group, lambda i: step(g * per_group + i), "ii")
        )

    return nest.serial(groups, group, "fetch")
