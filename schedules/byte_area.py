"""Scratch with what a band of a convolution of bytes reads, padding included."""

from __future__ import annotations

from tvm import tirx

from schedules import nest
from schedules.conv_common import Conv
from schedules.interface import PrimExpr
from schedules.nest import Buffer, Stmt
from schedules.vectors import over_vectors, scratch


def padded_area(
    source: Buffer,
    conv: Conv,
    n: PrimExpr,
    blocks: tuple[PrimExpr | int, int],
    rows: tuple[PrimExpr, int],
    pad: int,
) -> tuple[Buffer, Stmt]:
    """Scratch (block, row, column, lane), and the statement that fills it.

    Args:
        source: the blocked images, of which `n` is read.
        blocks: the first block of channels, and how many.
        rows: the first row of the output, and how many.
        pad: what padding reads as.
    """
    (first_block, count), (y, rows_out), block = blocks, rows, int(source.shape[-1])
    high, wide = (
        (size - 1) * conv.strides[i] + (conv.kernel[i] - 1) * conv.dilation[i] + 1
        for i, size in enumerate((rows_out, conv.out_width))
    )
    top, left = conv.padding[:2]
    area = scratch((count, high, wide, block), "uint8", "area")
    copied = min(conv.width, wide - left)

    def run(
        b: PrimExpr, row: PrimExpr, first: int, pixels: int, line: PrimExpr | None = None
    ) -> Stmt | None:
        """`pixels` pixels of a row from `first` on: of row `line` of the image, or padding."""

        def put(i: PrimExpr) -> Stmt:
            column, lane = i // block, i % block
            value = tirx.const(pad, "uint8")
            if line is not None:
                value = nest.read(source, n, first_block + b, line, column, lane)
            return nest.write(area, value, b, row, first + column, lane)

        return over_vectors(pixels * block, min(64, block), put)

    def fill(b: PrimExpr, row: PrimExpr) -> Stmt:
        line = y * conv.strides[0] + row - top
        inner = nest.sequence(
            run(b, row, 0, left),
            run(b, row, left, copied, line),
            run(b, row, left + copied, wide - left - copied),
        )
        inside = tirx.all(line >= 0, line < conv.height)
        return tirx.IfThenElse(inside, inner, run(b, row, 0, wide))

    return area, nest.serial(
        count, lambda b: nest.serial(high, lambda row: fill(b, row), "row"), "block"
    )
