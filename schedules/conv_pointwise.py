"""1×1 convolution with stride 1 as a matrix product over all pixels of an image.

The rows of an image are contiguous in NCHW{b}c, so the register tile runs over the flattened
positions and rows need not divide by it. The tile is the one of conv_direct; only the last tile of
an image is narrower.

Numerics: a plain sum over the channels in order; the error against float64 is at most 1e-5 of the
largest output for up to 2048 channels of standard-normal data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from schedules import nest
from schedules.conv_common import (
    Accumulators,
    Conv,
    RegisterTile,
    ceil_div,
    choose_tile,
    modelled_share,
    parse,
    traffic,
)
from schedules.conv_direct import DirectPlan, weights_stay
from schedules.conv_direct_tiles import DirectWeights
from schedules.conv_loops import Kernel, over_channels, parallel_grid
from schedules.conv_stream import Stream, streamed
from schedules.epilogue import operand_layouts
from schedules.interface import (
    Candidate,
    Cost,
    Knob,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Stmt, as_written
from schedules.space import divisors, tunable


@dataclass(frozen=True)
class PointwisePlan(DirectPlan):
    """As DirectPlan; fetch: pixels are brought to L1 a block of channels before they are used."""

    fetch: bool


def plan(conv: Conv, traits: TargetTraits) -> PointwisePlan:
    """The default cut for `conv`."""
    blocks = ceil_div(conv.filters, traits.lanes)
    pixels = conv.out_height * conv.out_width
    tile = choose_tile(pixels, blocks, traits)
    tiles = ceil_div(pixels, tile.pixels)
    stay = weights_stay(conv, blocks // tile.vectors, tiles, traits)
    # Where all tiles are visited for one panel before the next one, L1 has forgotten their pixels,
    # and those of each block of channels lie in a page of their own.
    image = 4 * conv.channels * pixels
    far = stay and conv.channels > 3 * traits.lanes and image > traits.l1_bytes // 2
    return PointwisePlan(tile, stay, stream=stay, fetch=far)


def emit(workload: Workload, conv: Conv, traits: TargetTraits, cut: PointwisePlan) -> PrimFunc:
    """The kernel, from and to the blocked layout."""
    lanes, tile = traits.lanes, cut.tile
    panels = ceil_div(conv.filters, lanes) // tile.vectors
    packing = DirectWeights(lanes * tile.vectors, lanes)
    kernel = Kernel(workload, Layout(lanes), packing, Layout(lanes))
    size = (conv.out_height, conv.out_width)
    whole, rest = divmod(size[0] * size[1], tile.pixels)
    tiles = whole + (rest > 0)
    blocks = ceil_div(conv.channels, lanes)

    def multiply(n: PrimExpr, panel: PrimExpr, t: PrimExpr, pixels: int) -> Stmt:
        acc = Accumulators(pixels, tile.vectors, lanes)
        first = t * tile.pixels
        stream = None
        if cut.stream:
            start = (panel + 1, 0, 0, 0, 0, 0)
            stream = Stream(kernel.weights, start, tiles, t, blocks)

        def block(ic: PrimExpr, inner: int) -> Stmt:
            def step(ii: PrimExpr) -> Stmt:
                def term(p: PrimExpr, v: PrimExpr, x: PrimExpr) -> PrimExpr:
                    pixel = nest.read(kernel.image, n, ic, *nest.unflatten(first + p, size), ii)
                    return pixel * nest.read(kernel.weights, panel, ic, 0, 0, ii, v * lanes + x)

                return acc.add(term)

            width = tile.vectors * lanes
            return nest.sequence(fetch_pixels(ic + 1), streamed(inner, step, width, stream, ic))

        def fetch_pixels(ic: PrimExpr) -> Stmt | None:
            if not cut.fetch:
                return None

            def line(p: PrimExpr) -> Stmt:
                index = (n, ic, *nest.unflatten(first + p, size), 0)
                return nest.prefetch(kernel.image, *index, nearest=True)

            return nest.unrolled(pixels, line)

        def write(p: PrimExpr, v: PrimExpr, x: PrimExpr) -> Stmt:
            position = nest.unflatten(first + p, size)
            return kernel.finish(acc.value(p, v, x), (n, panel * tile.vectors + v, *position, x))

        return nest.sequence(
            acc.start(), over_channels(conv.channels, lanes, block), acc.each(write)
        )

    def task(n: PrimExpr, panel: PrimExpr, t: PrimExpr) -> Stmt:
        if not rest:
            return multiply(n, panel, t, tile.pixels)
        last = multiply(n, panel, nest.integer(whole), rest)
        if not whole:
            return last
        return nest.sequence(nest.branch(t < whole, multiply(n, panel, t, tile.pixels), last))

    if cut.weights_stay:
        grid = parallel_grid((conv.batch, panels, tiles), task)
    else:
        grid = parallel_grid((conv.batch, tiles, panels), lambda n, t, o: task(n, o, t))
    return kernel.function(grid)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The matrix product for a conv2d with a 1×1 kernel, stride 1, no padding and one group."""
    conv = parse(workload)
    if conv is None or conv.groups != 1 or not conv.pointwise or not workload.op.constant[1]:
        return ()
    default = plan(conv, traits)
    pixels = conv.out_height * conv.out_width
    knobs = (
        Knob("pixels", tuple(range(1, min(pixels, traits.vector_registers) + 1))),
        Knob("vectors", divisors(ceil_div(conv.filters, traits.lanes), 8)),
        Knob("weights_stay", (0, 1)),
        Knob("stream", (0, 1)),
        Knob("fetch", (0, 1)),
    )
    values = {
        "pixels": default.tile.pixels,
        "vectors": default.tile.vectors,
        "weights_stay": int(default.weights_stay),
        "stream": int(default.stream),
        "fetch": int(default.fetch),
    }
    return (tunable(knobs, values, partial(_decided, workload, conv, traits)),)


def _decided(
    workload: Workload, conv: Conv, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The matrix product with these decisions."""
    tile = RegisterTile(values["pixels"], values["vectors"])
    cut = PointwisePlan(tile, *(bool(values[n]) for n in ("weights_stay", "stream", "fetch")))
    if not tile.fits(traits) or (cut.stream and not cut.weights_stay):
        return None
    layout = Layout(traits.lanes)
    operands = operand_layouts(workload.epilogue, workload.output, layout)
    pixels = conv.out_height * conv.out_width
    share = modelled_share(tile, pixels, conv.filters, conv.channels, traits)
    return Candidate(
        name="conv2d.pointwise",
        layouts=(layout, DirectWeights(traits.lanes * tile.vectors, traits.lanes), *operands),
        output=layout,
        cost=Cost(2.0 * conv.macs, traffic(workload), share),
        compute=lambda: emit(workload, conv, traits, cut),
        schedule=as_written,
    )
