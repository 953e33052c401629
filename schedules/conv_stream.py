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
BURST = 8
"""Lines that may be asked for at once: half of what a core can await."""


@dataclass(frozen=True)
class Stream:
    """The weights that come after the ones in use, fetched by the tiles that share the latter.

    source: the packed weights. start: index into `source` of what is fetched. shares: tiles that
    use the same weights; each fetches its part, in order, because the hardware helps only with
    what it recognises as a sequence. share: which of them this tile is. blocks: into how many
    blocks the loops of a tile divide the weights that it reads.
    """

    source: Buffer
    start: tuple[PrimExpr | int, ...]
    shares: int
    share: PrimExpr
    blocks: int


def streamed(
    steps: int,
    step: Callable[[PrimExpr], Stmt],
    width: int,
    stream: Stream | None,
    block: PrimExpr | int,
) -> Stmt:
    """The loop over the `steps` channels of a block of weights, each of `width` values.

    Meanwhile it fetches what `stream` says, a part for each `block` of the tile.
    """
    if stream is None:
        return nest.serial(steps, step, "ii")
    lines = ceil_div(ceil_div(steps * width, LINE), stream.shares)
    number = stream.share * stream.blocks + block

    def fetch(first: PrimExpr, count: int) -> list[Stmt]:
        return [
            nest.prefetch(stream.source, *stream.start[:-1], stream.start[-1] + (first + i) * LINE)
            for i in range(count)
        ]

    # A loop over fewer steps than these would be unrolled in full, and LLVM would then load weights
    # so early that accumulators no longer fit the registers.
    if lines <= BURST:
        return nest.sequence(*fetch(number * lines, lines), nest.serial(steps, step, "ii"))
    each = ceil_div(lines, steps)
    return nest.serial(
        steps,
        lambda i: nest.sequence(*fetch((number * steps + i) * each, each), step(i)),
        "ii",
    )
