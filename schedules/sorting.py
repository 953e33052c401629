"""Orders of elements as integer keys, and the sorting that kernels are made of.

Every element type maps to a signed integer whose order is the type's: floats compare as
sign-magnitude integers, both zeros are equal and NaN, whatever its sign, is the largest. Sorting
keys with their positions is then one code for all types, and complementing a key reverses the
order while equal elements stay in the order of their positions.

Sorting is by insertion for short rows and else by least-significant digits first (Knuth, The Art of
Computer Programming, volume 3, section 5.2.5), which is stable and needs no comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.interface import PrimExpr
from schedules.nest import Buffer, Stmt
from schedules.scalar_values import cast
from schedules.vectors import scratch

INSERTION = 48
"""Rows up to this length are sorted by insertion."""
_DIGIT_BITS = 8
_DIGITS = 1 << _DIGIT_BITS


def key_dtype(dtype: str) -> str:
    """The integer type of the keys of elements of `dtype`."""
    return "int64" if np.dtype(dtype).itemsize == 8 else "int32"


def key_of(value: PrimExpr, dtype: str, nan_first: bool = False) -> PrimExpr:
    """The key of `value`, an element of `dtype`: less than another exactly if the element is.

    NaN is the largest, or with `nan_first` the least.
    """
    bits, wide = 8 * np.dtype(dtype).itemsize, key_dtype(dtype)
    if "float" in dtype:
        raw = cast(tirx.reinterpret(f"int{bits}", value), wide)
        largest = (1 << (bits - 1)) - 1
        magnitude = tirx.bitwise_and(raw, tirx.const(largest, wide))
        ordered = tirx.Select(raw < tirx.const(0, wide), tirx.const(0, wide) - magnitude, raw)
        infinity = {"bfloat16": 0x7F80, 16: 0x7C00, 32: 0x7F800000, 64: 0x7FF << 52}
        limit = infinity["bfloat16" if dtype == "bfloat16" else bits]
        nan = tirx.const(-largest - 1 if nan_first else largest, wide)
        return tirx.Select(magnitude > tirx.const(limit, wide), nan, ordered)
    if dtype.startswith("uint") and bits >= 16:
        # The keys of a type use no more bits than the type has.
        half = 1 << (bits - 1)
        if bits == 16:
            return cast(value, wide) - tirx.const(half, wide)
        flipped = tirx.bitwise_xor(value, tirx.const(half, dtype))
        return tirx.reinterpret(wide, flipped)
    return cast(value, wide)


def reversed_key(key: PrimExpr) -> PrimExpr:
    """A key that orders the other way round."""
    return tirx.bitwise_not(key)


class Scalar:
    """A variable of one worker that statements can change."""

    def __init__(self, dtype: str, name: str) -> None:
        self.buffer: Buffer = nest.buffer((1,), dtype, name, "local")
        self._dtype = dtype

    def get(self) -> PrimExpr:
        """Its value."""
        return nest.read(self.buffer, 0)

    def set(self, value: PrimExpr | int) -> Stmt:
        """Change its value."""
        if isinstance(value, int):
            value = tirx.const(value, self._dtype)
        return nest.write(self.buffer, value, 0)


def repeat(condition: PrimExpr, body: Stmt) -> Stmt:
    """`body` while `condition` holds; it must not read what may not be read when it fails."""
    return tirx.While(condition, body)


@dataclass(frozen=True)
class Pairs:
    """Keys, and the position that each came from (int32)."""

    keys: Buffer
    positions: Buffer

    @classmethod
    def scratch(cls, size: int, key: str, name: str) -> Pairs:
        """Memory of one worker for `size` pairs with keys of dtype `key`, to be allocated."""
        return cls(
            scratch((max(size, 1),), key, f"{name}_keys"),
            scratch((max(size, 1),), "int32", f"{name}_positions"),
        )

    def allocate(self) -> Stmt:
        """The memory."""
        return nest.allocate(self.keys, self.positions)

    def key(self, i: PrimExpr | int) -> PrimExpr:
        return nest.read(self.keys, i)

    def position(self, i: PrimExpr | int) -> PrimExpr:
        return nest.read(self.positions, i)

    def put(self, i: PrimExpr | int, key: PrimExpr, position: PrimExpr) -> Stmt:
        """Store a pair."""
        return nest.sequence(nest.write(self.keys, key, i), nest.write(self.positions, position, i))

    def move(self, target: PrimExpr, source: PrimExpr) -> Stmt:
        """Copy pair `source` to `target`."""
        return self.put(target, self.key(source), self.position(source))

    def after(self, i: PrimExpr, key: PrimExpr, position: PrimExpr) -> PrimExpr:
        """Whether pair i comes after another: by key, equal keys by position."""
        tie = tirx.all(self.key(i) == key, self.position(i) > position)
        return tirx.any(self.key(i) > key, tie)


class Sorter:
    """Sorts the first `count` pairs of `pairs`, in place and stably; at most `most` of them.

    Allocate its scratch beside that of the pairs.
    """

    def __init__(self, pairs: Pairs, most: int, dtype: str) -> None:
        """`dtype` is that of the elements that the keys stand for."""
        self._pairs, self._most = pairs, most
        self._key = key_dtype(dtype)
        self._passes = max(
            2, np.dtype(dtype).itemsize
        )  # even: the last one ends where the first began
        self._other = Pairs.scratch(most, self._key, "other")
        self._counts = scratch((_DIGITS,), "int32", "digits")
        self._at = Scalar("int32", "at")
        self._held_key = Scalar(self._key, "held_key")
        self._held = Scalar("int32", "held")
        self._total = Scalar("int32", "total")

    def allocate(self) -> Stmt:
        """The scratch."""
        scalars = [s.buffer for s in (self._at, self._held_key, self._held, self._total)]
        if self._most <= INSERTION:
            return nest.allocate(*scalars)
        return nest.sequence(nest.allocate(*scalars, self._counts), self._other.allocate())

    def sort(self, count: PrimExpr | int) -> Stmt:
        """The statement that sorts."""
        if self._most <= INSERTION:
            return self._insertion(count)
        if isinstance(count, int):
            return self._radix(count) if count > INSERTION else self._insertion(count)
        return tirx.IfThenElse(count > INSERTION, self._radix(count), self._insertion(count))

    def _insertion(self, count: PrimExpr | int) -> Stmt:
        pairs, at = self._pairs, self._at

        def place(i: PrimExpr) -> Stmt:
            before = tirx.max(at.get() - 1, nest.integer(0))
            later = tirx.all(at.get() > 0, pairs.key(before) > self._held_key.get())
            return nest.sequence(
                self._held_key.set(pairs.key(i)),
                self._held.set(pairs.position(i)),
                at.set(i),
                repeat(later, nest.sequence(pairs.move(at.get(), before), at.set(at.get() - 1))),
                pairs.put(at.get(), self._held_key.get(), self._held.get()),
            )

        return nest.serial(count, place, "sorted")

    def _radix(self, count: PrimExpr | int) -> Stmt:
        passes = []
        source, target = self._pairs, self._other
        for number in range(self._passes):
            passes.append(self._pass(count, number, source, target))
            source, target = target, source
        return nest.sequence(*passes)

    def _pass(self, count: PrimExpr | int, number: int, source: Pairs, target: Pairs) -> Stmt:
        def digit(i: PrimExpr) -> PrimExpr:
            shift = tirx.const(_DIGIT_BITS * number, self._key)
            low = tirx.bitwise_and(
                tirx.shift_right(source.key(i), shift), tirx.const(_DIGITS - 1, self._key)
            )
            value = cast(low, "int32")
            last = number == self._passes - 1
            return tirx.bitwise_xor(value, nest.integer(_DIGITS // 2)) if last else value

        counts, total, at = self._counts, self._total, self._at

        def number_of(i: PrimExpr) -> Stmt:
            return nest.sequence(
                at.set(digit(i)),
                nest.write(counts, nest.read(counts, at.get()) + 1, at.get()),
            )

        def begin(d: PrimExpr) -> Stmt:
            return nest.sequence(
                self._held.set(nest.read(counts, d)),
                nest.write(counts, total.get(), d),
                total.set(total.get() + self._held.get()),
            )

        def distribute(i: PrimExpr) -> Stmt:
            return nest.sequence(
                at.set(digit(i)),
                self._held.set(nest.read(counts, at.get())),
                nest.write(counts, self._held.get() + 1, at.get()),
                target.put(self._held.get(), source.key(i), source.position(i)),
            )

        return nest.sequence(
            nest.serial(_DIGITS, lambda d: nest.write(counts, nest.integer(0), d)),
            nest.serial(count, number_of, "i"),
            total.set(0),
            nest.serial(_DIGITS, begin),
            nest.serial(count, distribute, "i"),
        )
