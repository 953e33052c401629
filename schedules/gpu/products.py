"""The kernel of a matrix product on any device."""

from __future__ import annotations

from collections.abc import Callable

from schedules.gpu.block_nest import BlockNest
from schedules.gpu.loop_nest import LoopNest
from schedules.gpu.tiles import Finish, Tiles
from schedules.nest import Stmt


def product_nest(tiles: Tiles, loops: bool, finish: Finish) -> Stmt:
    """The nest of a product; `loops` as in GpuTraits."""
    return LoopNest(tiles).nest(finish) if loops else BlockNest(tiles).nest(finish)


Multiply = Callable[[Tiles, bool, Finish], Stmt]
"""Makes the kernel of a product: product_nest, or what computes it in another way."""
