"""The kernels of Winograd convolutions: the phases of one task, and how tasks are shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from schedules import nest
from schedules.conv_common import Accumulators, Conv, RegisterTile, ceil_div
from schedules.conv_loops import Kernel, over_channels, parallel_grid
from schedules.conv_stream import Stream, streamed
from schedules.interface import Layout, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.winograd_transforms import WinogradWeights, apply_data, apply_output, transforms


@dataclass(frozen=True)
class WinogradPlan:
    """How a Winograd convolution is cut.

    m: outputs per tile and axis. block: tiles per task. groups: groups of filter panels, one per
    task. filters_outside: tasks run over all blocks of tiles for one group before the next.
    """

    m: int
    tile: RegisterTile
    block: int
    groups: int
    filters_outside: bool


def tiles(conv: Conv, m: int) -> tuple[int, int]:
    """Output tiles per image, vertically and horizontally."""
    return ceil_div(conv.out_height, m), ceil_div(conv.out_width, m)


_Patch = Callable[[PrimExpr, PrimExpr, PrimExpr], PrimExpr]


class _Winograd:
    """Emits the three phases of one task."""

    def __init__(self, conv: Conv, traits: TargetTraits, cut: WinogradPlan, kernel: Kernel) -> None:
        self.conv, self.cut, self.kernel, self.lanes = conv, cut, kernel, traits.lanes
        self.size = cut.m + 2
        self.matrices = transforms(cut.m)
        self.grid = tiles(conv, cut.m)
        self.in_blocks = ceil_div(conv.channels, self.lanes)
        # One vector more per position: a multiple of 4 KiB between positions would put all the
        # stores of a transform into one set of the L1 cache.
        self.data = nest.buffer(
            (self.size**2, self.in_blocks * cut.block + 1, self.lanes), "float32", "data"
        )
        self.products = nest.buffer(
            (self.size**2, cut.tile.vectors * cut.block + 1, self.lanes), "float32", "products"
        )

    def position(self, tile: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
        """Row and column of a tile in the grid; tiles past the end repeat the last one."""
        high, wide = self.grid
        if high * wide % self.cut.block:
            tile = tirx.min(tile, high * wide - 1)
        return nest.unflatten(tile, self.grid)

    def transform_data(self, n: PrimExpr, first: PrimExpr) -> Stmt:
        """data = Bᵀ d B for all channels of the block's tiles."""
        conv, m, size, lanes = self.conv, self.cut.m, self.size, self.lanes

        def tile(t: PrimExpr) -> Stmt:
            th, tw = self.position(first + t)
            return nest.bind(
                th * m - conv.padding[0],
                lambda y: nest.bind(tw * m - conv.padding[1], lambda x: at(t, y, x)),
            )

        def at(t: PrimExpr, top: PrimExpr, left: PrimExpr) -> Stmt:
            inside = tirx.all(
                top >= 0, left >= 0, top <= conv.height - size, left <= conv.width - size
            )

            def image(c: PrimExpr, i: PrimExpr, j: PrimExpr, x: PrimExpr) -> PrimExpr:
                return nest.read(self.kernel.image, n, c, top + i, left + j, x)

            def border(c: PrimExpr) -> Stmt:
                patch = nest.buffer((size, size, lanes), "float32", "patch", "local")

                def fill(i: PrimExpr, j: PrimExpr) -> Stmt:
                    row, column = top + i, left + j
                    valid = tirx.all(row >= 0, row < conv.height, column >= 0, column < conv.width)
                    zero = tirx.const(0.0, "float32")
                    return tirx.IfThenElse(
                        valid,
                        nest.vectorized(
                            lanes, lambda x: nest.write(patch, image(c, i, j, x), i, j, x)
                        ),
                        nest.vectorized(lanes, lambda x: nest.write(patch, zero, i, j, x)),
                    )

                filled = nest.serial(size, lambda i: nest.serial(size, lambda j: fill(i, j)))
                return nest.sequence(
                    nest.allocate(patch),
                    filled,
                    self.both_axes(lambda i, j, x: nest.read(patch, i, j, x), c, t),
                )

            return nest.serial(
                self.in_blocks,
                lambda c: tirx.IfThenElse(
                    inside,
                    self.both_axes(lambda i, j, x: image(c, i, j, x), c, t),
                    border(c),
                ),
                "ic",
            )

        return nest.serial(self.cut.block, tile, "tile")

    def both_axes(self, read: _Patch, c: PrimExpr, t: PrimExpr) -> Stmt:
        """Transform one patch vertically, then horizontally, into the block's data."""
        size, lanes, matrix = self.size, self.lanes, self.matrices.data
        half = nest.buffer((size, size, lanes), "float32", "half", "local")

        def vertical(j: PrimExpr) -> Stmt:
            return apply_data(
                matrix,
                lambda k, x: read(k, j, x),
                lambda r, x, value: nest.write(half, value, r, j, x),
                lanes,
            )

        def horizontal(i: PrimExpr) -> Stmt:
            return apply_data(
                matrix,
                lambda k, x: nest.read(half, i, k, x),
                lambda r, x, value: nest.write(
                    self.data, value, i * size + r, c * self.cut.block + t, x
                ),
                lanes,
            )

        # Not unrolled: a patch does not fit the registers anyway, and code costs compile time.
        return nest.sequence(
            nest.allocate(half), nest.serial(size, vertical), nest.serial(size, horizontal)
        )

    def multiply(self, panel: PrimExpr) -> Stmt:
        """products = weights × data for each of the (m+2)² positions."""
        whole, rest = divmod(self.cut.block, self.cut.tile.pixels)
        pixels = self.cut.tile.pixels

        def at(p: PrimExpr) -> Stmt:
            return nest.sequence(
                nest.serial(whole, lambda c: self.product(panel, p, c, pixels), "chunk")
                if whole
                else None,
                self.product(panel, p, nest.integer(whole), rest) if rest else None,
            )

        return nest.serial(self.size**2, at, "p")

    def product(self, panel: PrimExpr, p: PrimExpr, number: PrimExpr, width: int) -> Stmt:
        """One register tile of one position's matrix product, the `number`th of the block.

        Meanwhile the next position's weights are fetched, which lie behind this one's; those of
        the next panel lie behind the last one's.
        """
        lanes, vectors, block = self.lanes, self.cut.tile.vectors, self.cut.block
        acc = Accumulators(width, vectors, lanes)
        start = number * self.cut.tile.pixels
        stream = Stream(
            self.kernel.weights,
            (panel, p + 1, 0, 0),
            ceil_div(block, self.cut.tile.pixels),
            number,
            self.in_blocks,
        )

        def channels(ic: PrimExpr, inner: int) -> Stmt:
            def step(ii: PrimExpr) -> Stmt:
                return acc.add(
                    lambda t, v, x: (
                        nest.read(self.data, p, ic * block + start + t, ii)
                        * nest.read(self.kernel.weights, panel, p, ic * lanes + ii, v * lanes + x)
                    )
                )

            return streamed(inner, step, vectors * lanes, stream, ic)

        keep = acc.each(
            lambda t, v, x: nest.write(
                self.products, acc.value(t, v, x), p, v * block + start + t, x
            )
        )
        return nest.sequence(acc.start(), over_channels(self.conv.channels, lanes, channels), keep)

    def transform_output(self, n: PrimExpr, panel: PrimExpr, first: PrimExpr) -> Stmt:
        """Aᵀ products A, then the epilogue, for one panel of filters."""
        conv, m, size, lanes = self.conv, self.cut.m, self.size, self.lanes
        matrix, block = self.matrices.output, self.cut.block

        def tile(t: PrimExpr, v: PrimExpr) -> Stmt:
            half = nest.buffer((m, size, lanes), "float32", "half", "local")
            patch = nest.buffer((m, m, lanes), "float32", "patch", "local")

            def vertical(j: PrimExpr) -> Stmt:
                return apply_output(
                    matrix,
                    lambda k, x: nest.read(self.products, k * size + j, v * block + t, x),
                    lambda r, x, value: nest.write(half, value, r, j, x),
                    lanes,
                )

            def horizontal(i: PrimExpr) -> Stmt:
                return apply_output(
                    matrix,
                    lambda k, x: nest.read(half, i, k, x),
                    lambda r, x, value: nest.write(patch, value, i, r, x),
                    lanes,
                )

            th, tw = self.position(first + t)

            def write(i: PrimExpr, j: PrimExpr) -> Stmt:
                index = (n, panel * self.cut.tile.vectors + v, th * m + i, tw * m + j)
                return nest.vectorized(
                    lanes,
                    lambda x: self.kernel.finish(nest.read(patch, i, j, x), (*index, x)),
                )

            rows = m if conv.out_height % m == 0 else tirx.min(m, conv.out_height - th * m)
            columns = m if conv.out_width % m == 0 else tirx.min(m, conv.out_width - tw * m)
            return nest.sequence(
                nest.allocate(half, patch),
                nest.serial(size, vertical),
                nest.serial(m, horizontal),
                nest.serial(rows, lambda i: nest.serial(columns, lambda j: write(i, j))),
            )

        return nest.serial(
            self.cut.tile.vectors,
            lambda v: nest.serial(block, lambda t: tile(t, v), "tile"),
            "v",
        )

    def task(self, n: PrimExpr, first: PrimExpr, low: PrimExpr, count: PrimExpr) -> Stmt:
        """One block of tiles and `count` panels of filters from `low`."""

        def panel(o: PrimExpr) -> Stmt:
            return nest.sequence(self.multiply(o), self.transform_output(n, o, first))

        return nest.sequence(
            nest.allocate(self.data, self.products),
            self.transform_data(n, first),
            nest.serial(count, lambda o: panel(low + o), "panel"),
        )


def emit(workload: Workload, conv: Conv, traits: TargetTraits, cut: WinogradPlan) -> PrimFunc:
    """The kernel, from and to the blocked layout."""
    lanes = traits.lanes
    panels = ceil_div(conv.filters, lanes) // cut.tile.vectors
    packing = WinogradWeights(cut.m, lanes * cut.tile.vectors)
    kernel = Kernel(workload, Layout(lanes), packing, Layout(lanes))
    winograd = _Winograd(conv, traits, cut, kernel)
    high, wide = winograd.grid
    blocks = ceil_div(high * wide, cut.block)

    def task(n: PrimExpr, block: PrimExpr, group: PrimExpr) -> Stmt:
        low = group * panels // cut.groups
        count = (group + 1) * panels // cut.groups - low
        if cut.groups == 1:
            low, count = nest.integer(0), panels
        return winograd.task(n, block * cut.block, low, count)

    if cut.filters_outside:
        grid = parallel_grid((cut.groups, conv.batch, blocks), lambda g, n, b: task(n, b, g))
    else:
        grid = parallel_grid((conv.batch, blocks, cut.groups), task)
    return kernel.function(grid)
