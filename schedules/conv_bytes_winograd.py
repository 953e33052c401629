"""3×3 convolutions of bytes by Winograd's F(2×2, 3×3) in 16-bit integers, with exact int32 sums.

16 products for 36 (byte_winograd.py). Transformed data are sums of four bytes; transformed weights,
taken four times as large, are whole numbers below 1153 in size. Both fit 16 bits, of which x86
without VNNI multiplies and adds pairs at the rate of floats; the result, four times the sum, is
shifted back. VNNI multiplies bytes four times as fast as that, which gains more.

A task takes a band of the output's rows: it transforms what the band reads, then, for one panel of
filters after the other, multiplies each of the 16 matrices and transforms their products.

Numerics: exact; four times a sum stays within 32 bits for up to MOST_CHANNELS channels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from tvm import tirx

from schedules import nest
from schedules.byte_area import padded_area
from schedules.byte_convs import FEWEST_CHANNELS, bytes_conv, output_layout
from schedules.byte_frame import Frame
from schedules.byte_halves import PAIRS, add_pairs, has_pairs
from schedules.byte_tiles import COLUMNS, most_rows
from schedules.byte_winograd import IN, OUT, POINTS, Held, TransformedWeights, results, transformed
from schedules.conv_common import Conv, ceil_div, traffic
from schedules.conv_loops import parallel_grid
from schedules.epilogue import operand_layouts
from schedules.interface import (
    Candidate,
    Cost,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
    channel_block,
)
from schedules.nest import Buffer, Split, Stmt, as_written
from schedules.vectors import scratch

MOST_CHANNELS = 1024
"""4 · 9 · 255 · 128 times as many are below 2³¹."""


class _Kernel:
    """Emits one kernel."""

    def __init__(self, workload: Workload, conv: Conv, traits: TargetTraits, vectors: int) -> None:
        self.workload, self.conv, self.traits, self.vectors = workload, conv, traits, vectors
        self.block, self.panel = channel_block(conv.channels), vectors * COLUMNS
        self.blocks = ceil_div(conv.channels, self.block)
        self.depth = self.blocks * self.block
        self.across, self.down = ceil_div(conv.out_width, OUT), ceil_div(conv.out_height, OUT)
        weights = TransformedWeights(self.depth, self.panel)
        target = output_layout(workload, traits)
        self.frame = Frame(workload, Layout(self.block), weights, target)

    def function(self) -> PrimFunc:
        """The finished function."""
        traits = self.traits
        # What a band transforms, and the products of a panel, share half of the second cache.
        row = self.across * POINTS * (2 * self.depth + 4 * self.panel)
        tasks = 1 if traits.threads == 1 else 2 * traits.threads
        rows = min(max(1, traits.l2_bytes // 2 // row), ceil_div(self.down, tasks))
        bands = Split.of(self.down, rows)

        def task(n: PrimExpr, part: PrimExpr) -> Stmt:
            return bands.part(part, partial(self.band, n))

        return self.frame.function(parallel_grid((self.conv.batch, bands.count), task))

    def band(self, n: PrimExpr, first: PrimExpr, rows: int) -> Stmt:
        """`rows` rows of tiles of the output from `first` on."""
        conv, tiles = self.conv, rows * self.across
        whole = replace(conv, out_width=OUT * self.across)
        pad = int(self.workload.op.attr("pad_value"))
        lines, blocks = (first * OUT, rows * OUT), (nest.integer(0), self.blocks)
        area, fill = padded_area(self.frame.source, whole, n, blocks, lines, pad)
        data = scratch((POINTS, tiles, self.depth // PAIRS), "int32", "data")
        products = scratch((POINTS, tiles, self.panel), "int32", "products")

        def each_tile(body: Any) -> Stmt:
            return nest.serial(
                rows, lambda r: nest.serial(self.across, lambda x: body(r, x), "x"), "row"
            )

        def panel(o: PrimExpr) -> Stmt:
            return nest.sequence(
                nest.serial(POINTS, lambda p: self.multiply(data, products, o, p, tiles), "p"),
                each_tile(lambda r, x: self.finish(products, n, o, first + r, x, r)),
            )

        panels = ceil_div(conv.filters, self.panel)
        return nest.sequence(
            nest.allocate(area, data, products),
            fill,
            each_tile(lambda r, x: self.transform(area, data, r, x)),
            nest.serial(panels, panel, "panel"),
        )

    def transform(self, area: Buffer, data: Buffer, r: PrimExpr, x: PrimExpr) -> Stmt:
        """A tile's data, sixteen channels at a time."""
        kind = f"int16x{COLUMNS}"
        each = self.block // COLUMNS

        def part(i: PrimExpr) -> Stmt:
            block, lane = i // each, i % each * COLUMNS
            held = Held(kind)
            pixels = [
                [
                    held(
                        tirx.Cast(
                            kind,
                            nest.read(
                                area, block, r * OUT + y, x * OUT + c, nest.ramp(lane, COLUMNS)
                            ),
                        )
                    )
                    for c in range(IN)
                ]
                for y in range(IN)
            ]
            lines = zip(
                *[transformed(column, held) for column in zip(*pixels, strict=True)], strict=True
            )
            words = COLUMNS // PAIRS
            stores = [
                nest.write(
                    data,
                    tirx.reinterpret(f"int32x{words}", value),
                    y * IN + c,
                    r * self.across + x,
                    nest.ramp(i * words, words),
                )
                for y, line in enumerate(lines)
                for c, value in enumerate(transformed(line, held))
            ]
            return nest.sequence(*held.stmts, *stores)

        return nest.serial(self.depth // COLUMNS, part, "part")

    def multiply(
        self, data: Buffer, products: Buffer, o: PrimExpr, point: PrimExpr, tiles: int
    ) -> Stmt:
        """The products of all tiles with a panel of filters, of one of the 16 matrices."""
        lanes = self.traits.lanes
        kind = f"int16x{PAIRS * lanes}"
        columns = [nest.ramp(i, lanes) for i in range(0, self.panel, lanes)]
        most = max(1, most_rows(self.panel // lanes, self.traits))

        def part(start: PrimExpr, rows: int) -> Stmt:
            sums = nest.buffer((rows, self.panel), "int32", "sums", "local")
            places = [(row, column) for row in range(rows) for column in columns]

            def pair(k: PrimExpr) -> Stmt:
                held = Held(kind)
                weights = [
                    held(
                        tirx.reinterpret(
                            kind,
                            nest.read(
                                self.frame.weights, o, point, k, i, nest.ramp(0, 2 * PAIRS * lanes)
                            ),
                        )
                    )
                    for i in range(0, self.panel, lanes)
                ]
                for row in range(rows):
                    word = tirx.Broadcast(nest.read(data, point, start + row, k), lanes)
                    pixel = held(tirx.reinterpret(kind, word))
                    for column, weight in zip(columns, weights, strict=True):
                        total = add_pairs(nest.read(sums, row, column), pixel, weight, lanes)
                        held.stmts.append(nest.write(sums, total, row, column))
                return nest.sequence(*held.stmts)

            zero = tirx.Broadcast(tirx.const(0, "int32"), lanes)
            return nest.sequence(
                nest.allocate(sums),
                *[nest.write(sums, zero, row, column) for row, column in places],
                nest.serial(self.depth // PAIRS, pair, "k"),
                *[
                    nest.write(products, nest.read(sums, row, column), point, start + row, column)
                    for row, column in places
                ],
            )

        parts = Split.of(tiles, most)
        return nest.serial(parts.count, lambda i: parts.part(i, part), "part")

    def finish(
        self,
        products: Buffer,
        n: PrimExpr,
        o: PrimExpr,
        tile: PrimExpr,
        x: PrimExpr,
        r: PrimExpr,
    ) -> Stmt:
        """Store the epilogue of four sums of each filter."""
        conv, kind = self.conv, f"int32x{COLUMNS}"
        sums = nest.buffer((OUT * OUT, self.panel), "int32", "results", "local")
        two = tirx.Broadcast(tirx.const(2, "int32"), COLUMNS)
        stmts = [nest.allocate(sums)]
        for v in range(self.vectors):
            held, lanes = Held(kind), nest.ramp(v * COLUMNS, COLUMNS)
            points = [
                [
                    held(nest.read(products, y * IN + c, r * self.across + x, lanes))
                    for c in range(IN)
                ]
                for y in range(IN)
            ]
            lines = zip(*[results(column) for column in zip(*points, strict=True)], strict=True)
            stmts += held.stmts
            stmts += [
                nest.write(sums, tirx.shift_right(value, two), y * OUT + c, lanes)
                for y, line in enumerate(lines)
                for c, value in enumerate(results(line))
            ]
        for p in range(OUT * OUT):
            at = (tile * OUT + p // OUT, x * OUT + p % OUT)
            result = partial(nest.read, sums, p)
            stored = self.frame.channels(o, self.vectors, (n,), at, result)
            for position, extent in zip(at, (conv.out_height, conv.out_width), strict=True):
                stored = nest.branch(extent % OUT == 0 or position < extent, stored)
            stmts.append(stored)
        return nest.sequence(*stmts)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for a dense 3×3 conv_integer of stride 1 on x86 without VNNI."""
    conv = bytes_conv(workload, traits)
    if conv is None or not has_pairs(traits) or conv.groups != 1 or conv.kernel != (3, 3):
        return ()
    if conv.strides != (1, 1) or conv.dilation != (1, 1):
        return ()
    if not FEWEST_CHANNELS <= conv.channels <= MOST_CHANNELS:
        return ()
    vectors = min(2 if traits.lanes == COLUMNS else 1, ceil_div(conv.filters, COLUMNS))
    source, target = Layout(channel_block(conv.channels)), output_layout(workload, traits)
    kernel = _Kernel(workload, conv, traits, vectors)
    operands = operand_layouts(workload.epilogue, workload.output, target)
    return (
        Candidate(
            name="conv_integer.winograd",
            layouts=(source, TransformedWeights(kernel.depth, kernel.panel), *operands),
            output=target,
            cost=Cost(2.0 * conv.macs, traffic(workload), _share(kernel)),
            compute=kernel.function,
            schedule=as_written,
        ),
    )


def _share(kernel: _Kernel) -> float:
    """Multiples of the peak of float multiply-adds, fitted to the convolutions of ResNet-18."""
    conv, lanes = kernel.conv, kernel.traits.lanes
    filters = ceil_div(conv.filters, kernel.panel) * kernel.panel
    each = 1.2 if lanes == COLUMNS else 0.85  # additions have a third port, but for 64 bytes
    products = POINTS * kernel.depth / PAIRS * filters / lanes * each
    transforms = kernel.depth * 40 / lanes + filters * 100 / lanes
    cycles = conv.batch * kernel.across * kernel.down * (products + transforms)
    return conv.macs / (2 * lanes) / cycles
