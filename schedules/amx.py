"""Intel AMX: tile registers, and the instructions on them as statements.

A tile has up to 16 rows of up to 64 bytes. `multiply` adds to a tile of 16 × 16 int32 sums the
products of a tile of unsigned bytes (a row per sum row) and one of signed bytes, in which a row
holds four consecutive terms of each of 16 columns. (Intel 64 and IA-32 Architectures Software
Developer's Manual, volume 1, chapter 18.)
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from schedules import nest
from schedules.interface import PrimExpr
from schedules.nest import Buffer, Stmt

ROWS = 16
"""Rows of a tile."""
ROW_BYTES = 64
"""Bytes of a row; terms of a product in one instruction."""
COLUMNS = 16
"""Sums in a row."""
TILES = 8


def _call(name: str, *args: PrimExpr) -> Stmt:
    return tirx.Evaluate(tirx.call_llvm_intrin("void", f"llvm.x86.{name}", *args))


def _tile(number: int) -> PrimExpr:
    return tirx.const(number, "int8")


def configure(shapes: Sequence[tuple[int, int]]) -> Stmt:
    """Set the shapes, rows and bytes per row, of the first tiles. They stay until set anew."""
    words = [1, 0]  # the palette that there is
    widths = [width for _, width in shapes] + [0] * (16 - len(shapes))
    heights = [rows for rows, _ in shapes] + [0] * (16 - len(shapes))
    words += [sum(widths[at + i] << 16 * i for i in range(4)) for at in range(0, 16, 4)]
    words += [sum(heights[at + i] << 8 * i for i in range(8)) for at in range(0, 16, 8)]
    table = nest.buffer((len(words),), "int64", "tile_shapes", "local")
    return nest.sequence(
        nest.allocate(table),
        *[nest.write(table, tirx.const(word, "int64"), i) for i, word in enumerate(words)],
        _call("ldtilecfg", tirx.address_of(nest.read(table, 0))),
    )


def release() -> Stmt:
    """Leave the tiles: until they are set anew, the system has no need to save them."""
    return _call("tilerelease")


def clear(tile: int) -> Stmt:
    """Set a tile to zero."""
    return _call("tilezero", _tile(tile))


def load(tile: int, source: Buffer, index: Sequence[PrimExpr | int], stride: int) -> Stmt:
    """Read a tile whose first row is at `index` of `source`, and the next `stride` bytes on."""
    place = tirx.address_of(nest.read(source, *index))
    return _call("tileloadd64", _tile(tile), place, tirx.const(stride, "int64"))


def store(tile: int, target: Buffer, index: Sequence[PrimExpr | int], stride: int) -> Stmt:
    """Write a tile, its first row at `index` of `target`, and the next `stride` bytes on."""
    place = tirx.address_of(nest.read(target, *index))
    return _call("tilestored64", _tile(tile), place, tirx.const(stride, "int64"))


def multiply(sums: int, unsigned: int, signed: int) -> Stmt:
    """sums += unsigned · signed, of which each row holds four terms."""
    return _call("tdpbusd", _tile(sums), _tile(unsigned), _tile(signed))
