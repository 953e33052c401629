"""Products of bytes on x86 without VNNI: pairs of 16-bit halves, multiplied and added exactly.

One instruction (pmaddwd) multiplies pairs of 16-bit integers and adds the two products of each; the
one for bytes (pmaddubsw) saturates such sums and is never used. The bytes of an operand's word are
taken apart by parity: bytes 0 and 2 are one pair, 1 and 3 another. For the weights that takes three
instructions per vector, shared by all rows of a tile; each row is taken apart once per step, into
scratch in the nearest cache, from where the products' loop broadcasts pairs as float kernels
broadcast their numbers. What is left there is one multiplication and one addition per pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from tvm import tirx

from schedules import nest
from schedules.interface import PrimExpr, TargetTraits
from schedules.nest import Buffer, Stmt

_MULTIPLY_PAIRS = {16: "avx512.pmaddw.d.512", 8: "avx2.pmadd.wd", 4: "sse2.pmadd.wd"}
_EVEN = 0x00FF00FF
PAIRS = 2
"""Of a word."""

Words = Callable[[int, int, int], PrimExpr]
"""int32: of a row, `count` words of four unsigned bytes from word `first` on."""
Pairs = Callable[[int, int, PrimExpr], PrimExpr]
"""int32: the even (0) or odd (1) bytes of a row's word."""
Weights = Callable[[PrimExpr, int], PrimExpr]
"""int8: a word of each of a vector of columns: of a word, and from a column on."""


def has_pairs(traits: TargetTraits) -> bool:
    """Whether a processor multiplies pairs, and has nothing better."""
    return traits.arch == "x86_64" and not traits.vnni and traits.lanes in _MULTIPLY_PAIRS


def signed_pairs(weights: PrimExpr, lanes: int) -> tuple[PrimExpr, PrimExpr]:
    """The even and the odd ones of 4 · lanes signed bytes, as 16-bit integers."""
    kind = f"int16x{PAIRS * lanes}"
    eight = tirx.Broadcast(tirx.const(8, "int16"), PAIRS * lanes)
    # Of each two bytes in a row the first is the lower half of 16 bits, the second the upper.
    wide = tirx.reinterpret(kind, weights)
    return tirx.shift_right(tirx.shift_left(wide, eight), eight), tirx.shift_right(wide, eight)


def unsigned_pairs(words: PrimExpr, lanes: int) -> tuple[PrimExpr, PrimExpr]:
    """The even and the odd bytes of words, as pairs of 16-bit integers in an int32."""

    def constant(value: int) -> PrimExpr:
        return _spread(tirx.const(value, "int32"), lanes)

    even = words & constant(_EVEN)
    return even, tirx.shift_right(words, constant(8)) & constant(_EVEN)


def word_parts(word: PrimExpr, traits: TargetTraits) -> tuple[PrimExpr, ...]:
    """What is kept of a word that several rows read: itself, or its pairs, taken apart once."""
    return unsigned_pairs(word, 1) if has_pairs(traits) else (word,)


def add_pairs(sums: PrimExpr, left: PrimExpr, right: PrimExpr, lanes: int) -> PrimExpr:
    """sums[i] + left[2i] · right[2i] + left[2i + 1] · right[2i + 1], of 16-bit integers."""
    name = f"llvm.x86.{_MULTIPLY_PAIRS[lanes]}"
    return sums + tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, left, right)


@dataclass(frozen=True)
class Halves:
    """The rows of a tile for one step, taken apart.

    lanes: int32 of a vector. rows: of a tile. words: of a row in a step. sums: int32 (row, column),
    registers that hold `panel` columns.
    """

    lanes: int
    rows: int
    words: int
    panel: int
    sums: Buffer
    scratch: Buffer

    @classmethod
    def of(cls, lanes: int, rows: int, words: int, panel: int, sums: Buffer) -> Halves:
        """With scratch for them, which is to be allocated."""
        scratch = nest.buffer((PAIRS, rows, words), "int32", "halves", "local")
        return cls(lanes, rows, words, panel, sums, scratch)

    def step(self, read: Words, weights: Weights) -> Stmt:
        """Add the products of one step, of which `read` gives the words, to the sums."""
        parts = [
            self._take_apart(read, row, *part) for row in range(self.rows) for part in self._parts()
        ]
        products = self.multiply(partial(nest.read, self.scratch), weights)
        return nest.sequence(*parts, products)

    def multiply(self, pair: Pairs, weights: Weights) -> Stmt:
        """Add the products of one step of rows that are taken apart already."""
        # One loop for each parity: with both in one, LLVM adds two products to a sum in an order
        # for which there are not registers enough.
        products = [
            nest.serial(self.words, partial(self._multiply, partial(pair, odd), odd, weights), "k")
            for odd in range(PAIRS)
        ]
        return nest.sequence(*products)

    def _parts(self) -> Iterator[tuple[int, int]]:
        """The words of a row in vectors: the first of each, and how many."""
        done, count = 0, self.lanes
        while done < self.words:
            while count > self.words - done:
                count //= 2
            yield done, count
            done += count

    def _take_apart(self, read: Words, row: int, first: int, count: int) -> Stmt:
        word = tirx.Var("word", "int32" if count == 1 else f"int32x{count}")
        even, odd = unsigned_pairs(word, count)
        where = (row, nest.ramp(first, count))
        return nest.sequence(
            tirx.Bind(word, read(row, first, count)),
            nest.write(self.scratch, even, 0, *where),
            nest.write(self.scratch, odd, 1, *where),
        )

    def _multiply(
        self,
        pair_of: Callable[[int, PrimExpr], PrimExpr],
        odd: int,
        weights: Weights,
        k: PrimExpr,
    ) -> Stmt:
        """The products of the even or the odd bytes of word `k` of all rows."""
        kind = f"int16x{PAIRS * self.lanes}"
        stmts: list[Stmt] = []
        held = []
        for column in range(0, self.panel, self.lanes):
            pair = tirx.Var("weight", kind)
            value = signed_pairs(weights(k, column), self.lanes)[odd]
            stmts.append(tirx.Bind(pair, value))
            held.append((nest.ramp(column, self.lanes), pair))
        for row in range(self.rows):
            data = tirx.Var("data", kind)
            spread = _spread(pair_of(row, k), self.lanes)
            stmts.append(tirx.Bind(data, tirx.reinterpret(kind, spread)))
            for column, pair in held:
                total = add_pairs(nest.read(self.sums, row, column), data, pair, self.lanes)
                stmts.append(nest.write(self.sums, total, row, column))
        return nest.sequence(*stmts)


def _spread(value: PrimExpr, lanes: int) -> PrimExpr:
    return value if lanes == 1 else tirx.Broadcast(value, lanes)
