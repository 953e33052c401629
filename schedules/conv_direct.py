"""Direct convolution (groups = 1) into a blocked layout, without a padded copy of the input.

Register-blocked direct convolution after Georganas et al., "Anatomy of High-Performance Deep
Learning Convolutions on SIMD Architectures" (SC 2018): a tile of `pixels` neighbouring outputs of
one row × `vectors` vectors of output channels stays in registers through the whole reduction; each
step multiplies one input value per pixel, broadcast, with one weight per lane. Padding costs
nothing: rows outside are skipped by the bounds of the loop over taps, and the tiles at the left and
right border are emitted for the taps that they have.

Numerics: products are summed in the order (channel block, row tap, column tap, channel); the error
against float64 is at most 1e-5 of the largest output for up to 4608 terms of standard-normal data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from schedules.conv_common import (
    Axis,
    Conv,
    RegisterTile,
    axes,
    ceil_div,
    choose_tile,
    modelled_share,
    parse,
    traffic,
)
from schedules.conv_direct_tiles import DirectTiles, DirectWeights, too_many_statements
from schedules.conv_loops import Kernel, parallel_grid
from schedules.epilogue import operand_layouts
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Knob,
    Layout,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import as_written
from schedules.space import divisors, tunable


@dataclass(frozen=True)
class DirectPlan:
    """How a direct convolution is cut: the register tile and which operand stays in cache."""

    tile: RegisterTile
    weights_stay: bool  # loop over panels of filters outside, over positions inside
    stream: bool  # the tiles of a panel fetch the next one's weights


def weights_stay(conv: Conv, panels: int, tasks_per_panel: int, traits: TargetTraits) -> bool:
    """Whether each panel of weights should be used for all positions before the next one.

    Whichever operand is inside is read once per step of the outer loop: from L2 where it fits there
    (cheap), else from beyond (dear). The first time, weights come from far memory, and where they
    are inside, every worker reads them all.
    """
    weights = 4 * conv.filters * conv.channels * conv.kernel[0] * conv.kernel[1]
    # A stride longer than the kernel skips rows. It skips columns, too, but every second line of a
    # row has only every second set of a cache for itself.
    high = min(conv.height, conv.out_height * conv.kernel[0])
    image = 4 * conv.batch * conv.channels * high * conv.width
    budget = 0.6 * traits.l2_bytes

    def cost(size: float, times: float) -> float:
        return size * (1 + max(0.0, times - 1) * (0.25 if size < budget else 1.0))

    share = 1 / traits.threads
    outside_weights = weights * share + cost(image, panels * share)
    outside_image = image * share + cost(weights, tasks_per_panel * conv.batch * share)
    return outside_weights < outside_image


def with_rows(tile: RegisterTile, both: tuple[Axis, Axis], traits: TargetTraits) -> RegisterTile:
    """`tile` over several rows, where a whole row leaves room for more in the registers.

    Small maps are bound by reading weights, which a taller tile does less often.
    """
    rows, columns = both
    if tile.pixels < columns.out:
        return tile
    fit = (traits.vector_registers // tile.vectors - 2) // columns.out
    height = max(1, min(fit, rows.inner()[1]))
    return RegisterTile(tile.pixels, tile.vectors, height)


def plan(conv: Conv, traits: TargetTraits) -> DirectPlan:
    """The default cut for `conv`."""
    blocks = ceil_div(conv.filters, traits.lanes)
    tile = with_rows(choose_tile(conv.out_width, blocks, traits), axes(conv), traits)
    stay = weights_stay(conv, blocks // tile.vectors, conv.out_height, traits)
    return DirectPlan(tile, stay, stream=stay)


def emit(
    workload: Workload, conv: Conv, traits: TargetTraits, cut: DirectPlan, source: Layout
) -> PrimFunc:
    """The kernel that reads its input in layout `source`."""
    lanes, vectors = traits.lanes, cut.tile.vectors
    panels = ceil_div(conv.filters, lanes) // vectors
    packing = DirectWeights(lanes * vectors, source.block)
    kernel = Kernel(workload, source, packing, Layout(lanes))
    direct = DirectTiles(
        kernel, *axes(conv), cut.tile, lanes, source.block, conv.channels, stream=cut.stream
    )
    if cut.weights_stay:
        grid = parallel_grid((conv.batch, panels, direct.bands()), direct.band)
    else:
        grid = parallel_grid(
            (conv.batch, direct.bands(), panels), lambda n, b, o: direct.band(n, o, b)
        )
    return kernel.function(grid)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Direct convolutions for a conv2d with one group; a narrow input may be row-major."""
    conv = parse(workload)
    if conv is None or conv.groups != 1 or conv.pointwise or not workload.op.constant[1]:
        return ()
    default = plan(conv, traits)
    if not fits(conv, default.tile, traits):
        return ()
    sources = [Layout(traits.lanes)] if conv.channels > 4 else []
    if conv.channels < 2 * traits.lanes:
        sources.append(PLAIN)
    return tuple(
        tunable(
            knobs(conv, traits),
            decisions(replace(default, stream=default.stream and source.block > 0)),
            partial(_decided, workload, conv, traits, source),
        )
        for source in sources
    )


def fits(conv: Conv, tile: RegisterTile, traits: TargetTraits) -> bool:
    """Whether a tile of `conv` fits the registers and compiles in a moment."""
    rows, columns = axes(conv)
    if tile.rows > 1 and (tile.pixels != columns.out or tile.rows > rows.inner()[1]):
        return False
    return tile.fits(traits) and not too_many_statements(columns, tile)


def knobs(conv: Conv, traits: TargetTraits) -> tuple[Knob, ...]:
    """What a direct convolution leaves open."""
    most = traits.vector_registers
    return (
        Knob("pixels", tuple(range(1, min(conv.out_width, most) + 1))),
        Knob("vectors", divisors(ceil_div(conv.filters, traits.lanes), 8)),
        Knob("rows", tuple(range(1, min(conv.out_height, most // conv.out_width) + 1)) or (1,)),
        Knob("weights_stay", (0, 1)),
        Knob("stream", (0, 1)),
    )


def decisions(cut: DirectPlan) -> dict[str, int]:
    """The values of the knobs that give `cut`."""
    return {
        "pixels": cut.tile.pixels,
        "vectors": cut.tile.vectors,
        "rows": cut.tile.rows,
        "weights_stay": int(cut.weights_stay),
        "stream": int(cut.stream),
    }


def _decided(
    workload: Workload,
    conv: Conv,
    traits: TargetTraits,
    source: Layout,
    values: Mapping[str, int],
) -> Candidate | None:
    """The direct convolution that reads its input in layout `source`, with these decisions."""
    tile = RegisterTile(values["pixels"], values["vectors"], values["rows"])
    cut = DirectPlan(tile, bool(values["weights_stay"]), bool(values["stream"]))
    if not fits(conv, tile, traits) or (cut.stream and not (cut.weights_stay and source.block)):
        return None
    layout = Layout(traits.lanes)
    terms = conv.channels * conv.kernel[0] * conv.kernel[1]
    share = modelled_share(tile, conv.out_width, conv.filters, terms, traits)
    operands = operand_layouts(workload.epilogue, workload.output, layout)
    return Candidate(
        name=f"conv2d.direct[{'blocked' if source.block else 'plain'}]",
        layouts=(source, DirectWeights(traits.lanes * tile.vectors, source.block), *operands),
        output=layout,
        cost=Cost(2.0 * conv.macs, traffic(workload), share),
        compute=lambda: emit(workload, conv, traits, cut, source),
        schedule=as_written,
    )
