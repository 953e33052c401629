"""Winograd convolution F(6×6, 3×3), F(4×4, 3×3) and F(2×2, 3×3), fused per block of tiles.

One task takes a block of output tiles and a group of filters: it transforms the input patches of
its tiles into scratch that stays in L2, multiplies them by the transformed weights, (m+2)² small
matrix products per panel of filters, and transforms each panel's products back before the next one,
with the epilogue. Nothing but the input, the weights and the output leaves the cache. Where there
are too few tiles to share, filters are split as well, and each task transforms its input anew.

Numerics: the error against float64 is at most 1e-5 (m = 4) or 2e-6 (m = 2) of the largest output
for up to 512 channels of standard-normal data (3.3e-6 and 8.2e-7 measured). A non-finite input
makes all outputs of the m × m tiles that read it non-finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.conv_common import (
    Accumulators,
    Conv,
    RegisterTile,
    ceil_div,
    choose_tile,
    parse,
    tile_time,
)
from schedules.conv_loops import Kernel, over_channels, parallel_grid
from schedules.conv_stream import Stream, streamed
from schedules.epilogue import operand_layouts
from schedules.interface import (
    Candidate,
    Cost,
    Knob,
    Layout,
    Numerics,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Stmt, as_written
from schedules.space import divisors, shares, tunable
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


def plan(conv: Conv, m: int, traits: TargetTraits) -> WinogradPlan:
    """The default cut for `conv`."""
    lanes, size = traits.lanes, (m + 2) ** 2
    filter_blocks = ceil_div(conv.filters, lanes)
    high, wide = tiles(conv, m)
    total = high * wide
    weights = 4 * size * conv.channels * conv.filters

    def waste(block: int) -> float:
        tile = choose_tile(block, filter_blocks, traits)
        time = tile_time(block, filter_blocks, tile.pixels, tile.vectors)
        return ceil_div(total, block) * time

    # The block's scratch shares L2 with the weights if they fit, else it takes half of it.
    share = 0.35 if weights < 0.5 * traits.l2_bytes else 0.45
    per_tile = 4 * size * (conv.channels + 2 * lanes)
    most = max(6, int(share * traits.l2_bytes / per_tile))
    if weights < 0.5 * traits.l2_bytes:
        # Nothing is gained by blocks that fill the cache: take what suits the register tile.
        most = min(range(8, min(most, 16) + 1), key=waste, default=most)
    blocks = ceil_div(total, most)
    if conv.batch * blocks < 4 * traits.threads and total >= 12 * traits.threads:
        blocks = ceil_div(blocks, traits.threads) * traits.threads
    block = ceil_div(total, blocks)
    tile = choose_tile(block, filter_blocks, traits)
    panels = filter_blocks // tile.vectors
    groups = 1
    if conv.batch * ceil_div(total, block) < traits.threads:
        groups = min(panels, traits.threads)
    return WinogradPlan(m, tile, block, groups, groups > 1)


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


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """F(6×6), F(4×4) and F(2×2) for 3×3 convolutions with stride 1, dilation 1 and one group."""
    conv = parse(workload)
    if (
        conv is None
        or conv.groups != 1
        or (conv.kernel, conv.strides, conv.dilation) != ((3, 3), (1, 1), (1, 1))
        or max(conv.padding) > 2
        or not workload.op.constant[1]
        or conv.channels < traits.lanes
    ):
        return ()
    return tuple(
        tunable(
            knobs(conv, m, traits),
            decisions(plan(conv, m, traits)),
            partial(_decided, workload, conv, m, traits),
        )
        for m in (6, 4, 2)
        if min(conv.out_height, conv.out_width) >= m
    )


def knobs(conv: Conv, m: int, traits: TargetTraits) -> tuple[Knob, ...]:
    """What a Winograd convolution leaves open."""
    high, wide = tiles(conv, m)
    filter_blocks = ceil_div(conv.filters, traits.lanes)
    per_tile = 4 * (m + 2) ** 2 * (conv.channels + 2 * traits.lanes)
    most = max(6, 2 * traits.l2_bytes // per_tile)
    return (
        Knob("block", shares(high * wide, min(most, 128))),
        Knob("pixels", tuple(range(1, traits.vector_registers))),
        Knob("vectors", divisors(filter_blocks, 8)),
        Knob("groups", divisors(filter_blocks, 4 * traits.threads)),
        Knob("filters_outside", (0, 1)),
    )


def decisions(cut: WinogradPlan) -> dict[str, int]:
    """The values of the knobs that give `cut`."""
    return {
        "block": cut.block,
        "pixels": cut.tile.pixels,
        "vectors": cut.tile.vectors,
        "groups": cut.groups,
        "filters_outside": int(cut.filters_outside),
    }


def _decided(
    workload: Workload, conv: Conv, m: int, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """F(m×m, 3×3) with these decisions."""
    tile = RegisterTile(values["pixels"], values["vectors"])
    outside = bool(values["filters_outside"])
    cut = WinogradPlan(m, tile, values["block"], values["groups"], outside)
    panels = ceil_div(conv.filters, traits.lanes) // tile.vectors
    if tile.pixels > cut.block or cut.groups > panels or (outside and cut.groups == 1):
        return None
    if (tile.pixels + 1) * tile.vectors > traits.vector_registers:
        return None
    high, wide = tiles(conv, m)
    size = (m + 2) ** 2
    products = 2.0 * conv.batch * high * wide * size * conv.channels * conv.filters
    weights = 4.0 * size * conv.channels * conv.filters
    # Fitted: the transforms take as long as the products of so many more channels and filters.
    reach, more = {2: (0.88, 7), 4: (0.8, 12), 6: (0.75, 16)}[m]
    fill = conv.filters / (ceil_div(conv.filters, traits.lanes) * traits.lanes)
    share = reach * fill / (1 + more * (1 / conv.channels + 1 / conv.filters))
    moved = sum(sig.nbytes for i, sig in enumerate(workload.inputs) if i != 1) + weights
    layout = Layout(traits.lanes)
    operands = operand_layouts(workload.epilogue, workload.output, layout)
    return Candidate(
        name=f"conv2d.winograd{m}",
        layouts=(layout, WinogradWeights(m, traits.lanes * tile.vectors), *operands),
        output=layout,
        cost=Cost(products, moved + workload.output.nbytes, share),
        compute=lambda: emit(workload, conv, traits, cut),
        schedule=as_written,
        numerics=Numerics.RELAXED if m == 6 else Numerics.DEFAULT,
    )
