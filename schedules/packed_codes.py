"""Weights of few bits in vector registers: how they lie packed, and how they become float32.

A step is four consecutive rows of bytes: 32/bits consecutive terms of every column. On AVX-512 a
column's step is one 32-bit word, of which each code in turn selects from a table of 16 floats in a
register (so a zero point that all weights share costs nothing). Elsewhere, and for 8 bits, bytes
are widened to integers and converted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.gemm import ColumnPanels
from schedules.interface import Packing, PrimExpr, TargetTraits
from schedules.nest import Buffer, Stmt

ROWS = 4
"""Rows of bytes in a step."""
_ENTRIES = 16
_SELECT = "llvm.x86.avx512.permvar.sf.512"


@dataclass(frozen=True)
class WordPanels:
    """Packs bytes (K', N) as int32 (panels, K' / 4, block): four rows of a column in a word, the
    first lowest. Rows past K' and columns past N are zero."""

    block: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        rows, columns = array.shape
        padded = np.zeros((-(-rows // ROWS) * ROWS, columns), np.uint8)
        padded[:rows] = array
        words = np.ascontiguousarray(padded.reshape(-1, ROWS, columns).transpose(0, 2, 1))
        return ColumnPanels(self.block).pack(words.view("<i4")[..., 0])

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        return ColumnPanels(self.block).packed_shape((-(-shape[0] // ROWS), shape[1]))


@dataclass(frozen=True)
class BytePanels:
    """Packs bytes (K', N) as (panels, K' rounded up to a multiple of 4, block); `flipped` ones
    as int8, 128 less."""

    block: int
    flipped: bool

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        rows, columns = array.shape
        padded = np.zeros((-(-rows // ROWS) * ROWS, columns), np.uint8)
        padded[:rows] = array
        if self.flipped:
            return ColumnPanels(self.block).pack((padded ^ np.uint8(128)).view(np.int8))
        return ColumnPanels(self.block).pack(padded)

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        return ColumnPanels(self.block).packed_shape((-(-shape[0] // ROWS) * ROWS, shape[1]))


class Codes(Protocol):
    """Codes of one width as a kernel reads them."""

    @property
    def packing(self) -> Packing:
        """How the bytes lie."""
        ...

    @property
    def dtype(self) -> str:
        """The elements' type, packed."""
        ...

    @property
    def subtracted(self) -> float:
        """What the values that read() gives are less than the codes."""
        ...

    @property
    def cost(self) -> float:
        """Instructions for each vector of values."""
        ...

    def read(
        self,
        source: Buffer,
        panel: PrimExpr,
        step: PrimExpr,
        column: PrimExpr,
        use: Callable[[Callable[[int], PrimExpr]], Stmt],
    ) -> Stmt:
        """use(value) where value(i) are the float32 values of term i of a step, in a vector."""
        ...


@dataclass(frozen=True)
class TableCodes:
    """Of 2 or 4 bits, by a table in a register of AVX-512."""

    bits: int
    block: int
    subtracted: float
    dtype: str = "int32"
    cost: float = 2.0

    @property
    def packing(self) -> Packing:
        """See Codes."""
        return WordPanels(self.block)

    def read(
        self,
        source: Buffer,
        panel: PrimExpr,
        step: PrimExpr,
        column: PrimExpr,
        use: Callable[[Callable[[int], PrimExpr]], Stmt],
    ) -> Stmt:
        """See Codes."""
        # The selection takes the lowest four bits of each word: of two bits, also their neighbours.
        codes = [entry & ((1 << self.bits) - 1) for entry in range(_ENTRIES)]
        entries = [tirx.const(code - self.subtracted, "float32") for code in codes]
        table = tirx.Shuffle(entries, list(range(_ENTRIES)))
        word = tirx.Var("word", f"int32x{_ENTRIES}")
        kind = f"float32x{_ENTRIES}"

        def value(i: int) -> PrimExpr:
            shift = tirx.Broadcast(tirx.const(i * self.bits, "int32"), _ENTRIES)
            chosen = tirx.shift_right(word, shift) if i else word
            return tirx.call_llvm_pure_intrin(kind, _SELECT, table, chosen)

        read = nest.read(source, panel, step, nest.ramp(column, _ENTRIES))
        return nest.sequence(tirx.Bind(word, read), use(value))


@dataclass(frozen=True)
class ConvertedCodes:
    """Of any width, widened and converted."""

    bits: int
    block: int
    lanes: int

    @property
    def packing(self) -> Packing:
        """See Codes."""
        return BytePanels(self.block, self.bits == 8)

    @property
    def dtype(self) -> str:
        """See Codes."""
        return "int8" if self.bits == 8 else "uint8"

    @property
    def subtracted(self) -> float:
        """See Codes."""
        return 128.0 if self.bits == 8 else 0.0

    @property
    def cost(self) -> float:
        """See Codes."""
        return 2.0 if self.bits == 8 else 2.0 + self.bits / 8

    def read(
        self,
        source: Buffer,
        panel: PrimExpr,
        step: PrimExpr,
        column: PrimExpr,
        use: Callable[[Callable[[int], PrimExpr]], Stmt],
    ) -> Stmt:
        """See Codes."""
        each, lanes = 8 // self.bits, self.lanes
        wide = [tirx.Var("wide", f"int32x{lanes}") for _ in range(ROWS)]
        binds = []
        for row, var in enumerate(wide):
            read = nest.read(source, panel, step * ROWS + row, nest.ramp(column, lanes))
            binds.append(tirx.Bind(var, tirx.Cast(f"int32x{lanes}", read)))

        def constant(number: int) -> PrimExpr:
            return tirx.Broadcast(tirx.const(number, "int32"), lanes)

        def value(i: int) -> PrimExpr:
            row, part = divmod(i, each)
            code = wide[row]
            if part:
                code = tirx.shift_right(code, constant(part * self.bits))
            if part < each - 1:  # a byte has nothing above its last code
                code = code & constant((1 << self.bits) - 1)
            return tirx.Cast(f"float32x{lanes}", code)

        return nest.sequence(*binds, use(value))


def codes_of(bits: int, block: int, zero: float, traits: TargetTraits) -> Codes:
    """How a processor reads codes of this width, in panels of `block` columns.

    Args:
        zero: a zero point that is better subtracted at once, where that is free.
    """
    if bits < 8 and traits.arch == "x86_64" and traits.lanes == _ENTRIES:
        return TableCodes(bits, block, zero)
    return ConvertedCodes(bits, block, traits.lanes)
