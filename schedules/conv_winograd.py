"""Winograd convolution F(6×6, 3×3), F(4×4, 3×3) and F(2×2, 3×3), fused per block of tiles.

One task takes a block of output tiles and a group of filters: it transforms the input patches of
its tiles into scratch that stays in L2, multiplies them by the transformed weights, (m+2)² small
matrix products per panel of filters, and transforms each panel's products back before the next one,
with the epilogue. Nothing but the input, the weights and the output leaves the cache. Where there
are too few tiles to share, filters are split as well, and each task transforms its input anew.

Numerics: the error against float64 is at most 4e-5 (m = 6), 1e-5 (m = 4) or 2e-6 (m = 2) of the
largest output for up to 512 channels of standard-normal data (1.5e-5, 3.3e-6 and 8.4e-7 measured).
A non-finite input makes all outputs of the m × m tiles that read it non-finite.

F(6×6) does a fifth fewer products than F(4×4), but its transforms and their scratch are larger: it
was 5 % faster at best, with 64 channels and large images, and slower on most layers. So without a
record the price table prefers F(4×4).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from schedules.conv_common import (
    Conv,
    RegisterTile,
    ceil_div,
    choose_tile,
    parse,
    tile_time,
)
from schedules.conv_winograd_tasks import WinogradPlan, emit, tiles
from schedules.epilogue import operand_layouts
from schedules.interface import (
    Candidate,
    Cost,
    Knob,
    Layout,
    Numerics,
    TargetTraits,
    Workload,
)
from schedules.nest import as_written
from schedules.space import divisors, shares, tunable
from schedules.winograd_transforms import WinogradWeights


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
    if not tile.fits(traits):
        return None
    high, wide = tiles(conv, m)
    size = (m + 2) ** 2
    products = 2.0 * conv.batch * high * wide * size * conv.channels * conv.filters
    weights = 4.0 * size * conv.channels * conv.filters
    # Fitted: the transforms take as long as the products of so many more channels and filters.
    reach, more = {2: (0.88, 7), 4: (0.8, 12), 6: (0.62, 16)}[m]
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
