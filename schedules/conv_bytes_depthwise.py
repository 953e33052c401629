"""Depthwise convolution of unsigned bytes with constant signed bytes, with exact int32 sums.

A task copies the rows that it reads of one block of channels into scratch, padding included, so
that no tap is tested. A tile of neighbouring outputs of a row and one vector of channels is summed
in registers as float32, which holds these integers exactly: each pixel is converted once per row of
taps and meets all of its columns' weights.

Numerics: exact, for fewer than 2²⁴ / 2¹⁵ = 512 taps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.byte_area import padded_area
from schedules.byte_convs import bytes_conv, is_depthwise, output_layout
from schedules.byte_frame import Frame
from schedules.byte_tiles import COLUMNS
from schedules.conv_common import Conv, ceil_div, traffic
from schedules.conv_depthwise import DepthwiseWeights
from schedules.conv_loops import parallel_grid
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
    channel_block,
)
from schedules.nest import Buffer, Split, Stmt, as_written
from schedules.space import tunable

_MAX_STATEMENTS = 2000
"""Unrolled multiply-adds in one kernel: above this, it would take seconds to compile."""


@dataclass(frozen=True)
class DepthwisePlan:
    """pixels: of a row, in a tile. bands: parts of the output's rows, each a task per block."""

    pixels: int
    bands: int


class _Kernel:
    """Emits one kernel."""

    def __init__(self, workload: Workload, conv: Conv, traits: TargetTraits, plan: DepthwisePlan):
        self.workload, self.conv, self.plan = workload, conv, plan
        self.block = channel_block(conv.channels)
        self.frame = Frame(
            workload,
            Layout(self.block),
            DepthwiseWeights(self.block),
            output_layout(workload, traits),
        )

    def function(self) -> PrimFunc:
        """The finished function."""
        conv = self.conv
        bands = Split.of(conv.out_height, ceil_div(conv.out_height, self.plan.bands))
        blocks = ceil_div(conv.channels, self.block)

        def task(n: PrimExpr, block: PrimExpr, part: PrimExpr) -> Stmt:
            return bands.part(part, lambda y, rows: self.band(n, block, y, rows))

        return self.frame.function(parallel_grid((conv.batch, blocks, bands.count), task))

    def band(self, n: PrimExpr, block: PrimExpr, y: PrimExpr, rows: int) -> Stmt:
        """`rows` rows of the output from `y` on, of one block of channels."""
        conv = self.conv
        pad = int(self.workload.op.attr("pad_value"))
        area, fill = padded_area(self.frame.source, conv, n, (block, 1), (y, rows), pad)
        tiles = Split.of(conv.out_width, self.plan.pixels)

        def row(r: PrimExpr) -> Stmt:
            def vector(v: PrimExpr) -> Stmt:
                def tile(part: PrimExpr) -> Stmt:
                    return tiles.part(
                        part,
                        lambda x, count: self.tile(area, n, block, y, r, v, x, count),
                    )

                return nest.serial(tiles.count, tile, "tile")

            return nest.serial(self.block // COLUMNS, vector, "vector")

        return nest.sequence(nest.allocate(area), fill, nest.serial(rows, row, "row"))

    def tile(
        self,
        area: Buffer,
        n: PrimExpr,
        block: PrimExpr,
        y: PrimExpr,
        r: PrimExpr,
        v: PrimExpr,
        x: PrimExpr,
        count: int,
    ) -> Stmt:
        """`count` outputs of row `y + r` from column `x` on, of vector `v` of the block."""
        conv = self.conv
        sums = nest.buffer((count, COLUMNS), "float32", "sums", "local")
        lanes = tirx.Ramp(v * COLUMNS, nest.integer(1), COLUMNS)
        own = tirx.Ramp(nest.integer(0), nest.integer(1), COLUMNS)

        def floats(value: PrimExpr) -> PrimExpr:
            return tirx.Cast(f"float32x{COLUMNS}", tirx.Cast(f"int32x{COLUMNS}", value))

        def line(kh: PrimExpr) -> Stmt:
            stmts: list[Stmt] = []
            weights = []
            for kw in range(conv.kernel[1]):
                weight = tirx.Var("weight", f"float32x{COLUMNS}")
                read = nest.read(self.frame.weights, block, kh, kw, lanes)
                stmts.append(tirx.Bind(weight, floats(read)))
                weights.append(weight)
            for column, pairs in readers(conv, count):
                pixel = tirx.Var("pixel", f"float32x{COLUMNS}")
                line = r * conv.strides[0] + kh * conv.dilation[0]
                read = nest.read(area, 0, line, x * conv.strides[1] + column, lanes)
                stmts.append(tirx.Bind(pixel, floats(read)))
                for p, kw in pairs:
                    total = nest.read(sums, p, own) + pixel * weights[kw]
                    stmts.append(nest.write(sums, total, p, own))
            return nest.sequence(*stmts, tirx.Evaluate(0))

        zero = tirx.const(0.0, "float32")
        clear = nest.unrolled(
            count, lambda p: nest.vectorized(COLUMNS, lambda c: nest.write(sums, zero, p, c))
        )
        reduction = nest.serial(conv.kernel[0], line, "kh")

        group = block * (self.block // COLUMNS) + v

        def store(p: PrimExpr) -> Stmt:
            return self.frame.channels(
                group, 1, (n,), (y + r, x + p), lambda c: tirx.Cast("int32", nest.read(sums, p, c))
            )

        return nest.sequence(nest.allocate(sums), clear, reduction, nest.unrolled(count, store))


def readers(conv: Conv, count: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Columns that a tile of `count` outputs reads, from that of its first output and tap on, each
    with the (output, tap) pairs that read it."""
    found: dict[int, list[tuple[int, int]]] = {}
    for p in range(count):
        for kw in range(conv.kernel[1]):
            found.setdefault(p * conv.strides[1] + kw * conv.dilation[1], []).append((p, kw))
    return sorted(found.items())


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The kernel for a conv_integer with as many groups as input and output channels."""
    conv = bytes_conv(workload, traits)
    if conv is None or not is_depthwise(conv):
        return ()
    most = max(1, traits.vector_registers // 2 * traits.lanes // COLUMNS)
    values = {
        "pixels": ceil_div(conv.out_width, ceil_div(conv.out_width, most)),
        "bands": min(conv.out_height, ceil_div(2 * traits.threads, 1)),
    }
    knobs = (
        Knob("pixels", tuple(range(1, min(conv.out_width, traits.vector_registers - 8) + 1))),
        Knob("bands", tuple(range(1, 4 * traits.threads + 1))),
    )
    if values["pixels"] * conv.kernel[1] > _MAX_STATEMENTS:
        return ()
    return (tunable(knobs, values, partial(_decided, workload, conv, traits)),)


def _decided(
    workload: Workload, conv: Conv, traits: TargetTraits, values: Mapping[str, int]
) -> Candidate | None:
    """The kernel with these decisions."""
    plan = DepthwisePlan(**values)
    if plan.pixels * conv.kernel[1] > _MAX_STATEMENTS or plan.bands > conv.out_height:
        return None
    source, target = Layout(channel_block(conv.channels)), output_layout(workload, traits)
    operands = operand_layouts(workload.epilogue, workload.output, target)
    taps = conv.kernel[0] * conv.kernel[1]
    return Candidate(
        name="conv_integer.depthwise",
        layouts=(source, DepthwiseWeights(source.block), *operands),
        output=target,
        cost=Cost(2.0 * conv.macs, traffic(workload), 0.6 * taps / (taps + 10)),
        compute=lambda: _Kernel(workload, conv, traits, plan).function(),
        schedule=as_written,
    )
