"""Panels of a matrix of bytes, packed while the kernel runs as products of bytes read them.

A panel is int8 (steps, terms / 4, columns, 4): four consecutive terms of a column lie together. Of
rows that are contiguous, four are interleaved at a time; of columns that are contiguous, words of
four bytes are transposed in squares that fit the registers. Unsigned bytes become signed ones, 128
less, by their highest bit. Terms past the depth are zero; columns past the last are left undefined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from schedules import nest
from schedules.byte_dots import add_weights
from schedules.byte_tiles import COLUMNS, GROUP
from schedules.interface import PrimExpr, TargetTraits
from schedules.nest import Buffer, Stmt
from schedules.tile import Element
from schedules.transposing import transposed_square
from schedules.vectors import over_vectors

_SIGNS = -0x7F7F7F80
"""The highest bit of each byte of a word."""
_LEAST = 4
"""Elements of the shortest vector that is worth its code."""


@dataclass(frozen=True)
class Source:
    """Columns of a matrix of bytes.

    read: the byte at (k, column) of the panel; k may be a ramp where `transposed` (columns are
        contiguous), else the column may be.
    unsigned: whether they are 128 more than what is packed.
    """

    read: Element
    depth: int
    columns: int
    transposed: bool
    unsigned: bool

    def bytes(self, k: PrimExpr, column: PrimExpr, lanes: int = 1) -> PrimExpr:
        """Signed bytes; of `lanes` columns, where they are contiguous."""
        value = self.read(k, nest.ramp(column, lanes))
        if not self.unsigned:
            return value
        flipped = value ^ _spread(tirx.const(128, "uint8"), lanes)
        return tirx.reinterpret("int8" if lanes == 1 else f"int8x{lanes}", flipped)

    def words(self, word: PrimExpr, column: PrimExpr, lanes: int) -> PrimExpr:
        """int32: `lanes` consecutive words of four terms of a column that is contiguous."""
        value = self.read(nest.ramp(word * GROUP, GROUP * lanes), column)
        value = tirx.reinterpret(f"int32x{lanes}", value)
        return value ^ _spread(tirx.const(_SIGNS, "int32"), lanes) if self.unsigned else value


def pack(source: Source, panel: Buffer, most: int) -> Stmt:
    """Fill `panel`, (steps, terms / 4, columns, 4), from its first column on.

    Args:
        most: words of a vector register.
    """
    steps, words, width, _ = (int(extent) for extent in panel.shape)
    whole, rest = divmod(source.depth, GROUP)

    def write(value: PrimExpr, word: PrimExpr, *place: PrimExpr | int) -> Stmt:
        return nest.write(panel, value, *nest.unflatten(word, (steps, words)), *place)

    packed = _transposed if source.transposed else _interleaved
    used = whole + (1 if rest else 0)
    zero = tirx.const(0, "int8")
    return nest.sequence(
        packed(source, write, whole, most) if whole else None,
        _last_word(source, write, whole, rest) if rest else None,
        nest.serial(
            steps * words - used,
            lambda w: over_vectors(width * GROUP, 64, lambda x: write(zero, w + used, 0, x)),
            "word",
        )
        if steps * words > used
        else None,
    )


_Write = Callable[..., Stmt]


def _interleaved(source: Source, write: _Write, words: int, _most: int) -> Stmt:
    """Four rows at a time."""
    lanes = _power(min(source.columns, COLUMNS))
    pairs = [x for i in range(lanes) for x in (i, lanes + i)]
    quads = [
        x for i in range(0, 2 * lanes, 2) for x in (i, i + 1, 2 * lanes + i, 2 * lanes + i + 1)
    ]

    def block(word: PrimExpr, column: PrimExpr) -> Stmt:
        rows = [source.bytes(word * GROUP + j, column, lanes) for j in range(GROUP)]
        halves = [tirx.Shuffle(rows[j : j + 2], pairs) for j in (0, 2)]
        return write(tirx.Shuffle(halves, quads), word, column, nest.ramp(0, GROUP * lanes))

    def row(word: PrimExpr) -> Stmt:
        if lanes < _LEAST:
            return _bytes(source, write, word, GROUP)
        return _covering(source.columns, lanes, lambda column: block(word, column))

    return nest.serial(words, row, "word")


def _transposed(source: Source, write: _Write, words: int, most: int) -> Stmt:
    """Squares of words."""
    lanes = _power(min(words, source.columns, most))
    if lanes < _LEAST:
        return nest.serial(words, lambda word: _bytes(source, write, word, GROUP), "word")

    def square(word: PrimExpr, column: PrimExpr) -> Stmt:
        def store(i: int, row: PrimExpr) -> Stmt:
            value = tirx.reinterpret(f"int8x{GROUP * lanes}", row)
            return write(value, word + i, column, nest.ramp(0, GROUP * lanes))

        return transposed_square(
            lanes, "int32", lambda i: source.words(word, column + i, lanes), store
        )

    return _covering(
        words,
        lanes,
        lambda word: _covering(source.columns, lanes, lambda column: square(word, column)),
    )


def _last_word(source: Source, write: _Write, word: int, terms: int) -> Stmt:
    """The terms behind the last whole word, filled up with zeros."""
    return _bytes(source, write, nest.integer(word), terms)


def _bytes(source: Source, write: _Write, word: PrimExpr, terms: int) -> Stmt:
    """A word of every column, byte by byte, of which the first `terms` are data."""
    zero = tirx.const(0, "int8")

    def column(n: PrimExpr) -> Stmt:
        values = [source.bytes(word * GROUP + j, n) for j in range(terms)]
        values += [zero] * (GROUP - terms)
        return nest.sequence(*[write(value, word, n, j) for j, value in enumerate(values)])

    return nest.serial(source.columns, column, "column")


def _covering(extent: int, size: int, body: Callable[[PrimExpr], Stmt]) -> Stmt:
    """body(start) of parts that cover `extent`; the last one begins so early that it is whole."""
    parts = nest.serial(extent // size, lambda i: body(i * size), "part")
    return nest.sequence(parts, body(nest.integer(extent - size)) if extent % size else None)


def _power(most: int) -> int:
    """The largest power of two up to `most`."""
    return 1 << (most.bit_length() - 1)


def _spread(value: PrimExpr, lanes: int) -> PrimExpr:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def column_sums(
    panel: Buffer, traits: TargetTraits, write: Callable[[PrimExpr, PrimExpr], Stmt]
) -> Stmt:
    """write(sums of all terms, first column) of every vector of a panel's columns."""
    steps, words, width, _ = (int(extent) for extent in panel.shape)
    lanes = traits.lanes
    total = nest.buffer((lanes,), "int32", "total", "local")
    whole = nest.ramp(0, lanes)

    def vector(column: PrimExpr) -> Stmt:
        def add(word: PrimExpr) -> Stmt:
            place = (*nest.unflatten(word, (steps, words)), column, nest.ramp(0, GROUP * lanes))
            sums = add_weights(nest.read(total, whole), nest.read(panel, *place), traits)
            return nest.write(total, sums, whole)

        clear = nest.write(total, _spread(tirx.const(0, "int32"), lanes), whole)
        return nest.sequence(
            clear,
            nest.serial(steps * words, add, "word"),
            write(nest.read(total, whole), column),
        )

    return nest.sequence(
        nest.allocate(total), nest.serial(width // lanes, lambda v: vector(v * lanes), "vector")
    )
