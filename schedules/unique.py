"""unique: the different elements or slices of a tensor, padded to as many as there could be.

Outputs: the elements (slices along `axis`), where each first occurs, which of them each element is,
how often each occurs, and how many there are. Elements are sorted by their keys (sorting.py; NaN
equals NaN), slices by merging with a comparison of their elements one after the other; equal ones
are then neighbours. One worker does all of this: sorting dominates and rows are short. Exact.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from tvm import tirx

from schedules import nest
from schedules.interface import Candidate, PrimExpr, PrimFunc, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.plain import Parameters, alone, plain_candidate, read_flat, rows_of, write_flat
from schedules.scalar_values import cast
from schedules.selection import clear_rest
from schedules.sorting import Pairs, Scalar, Sorter, key_dtype, key_of, repeat
from schedules.vectors import scratch


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate."""
    if workload.op.kind != "unique":
        return ()
    operations = 60.0 * workload.op.inputs[0].elements
    compute = partial(_compute, workload)
    return (plain_candidate("unique.sorted", workload, compute, operations, 4),)


class _Order(Protocol):
    """Sorted positions of slices."""

    def allocate(self) -> Stmt: ...
    def sort(self) -> Stmt: ...
    def position(self, i: PrimExpr) -> PrimExpr: ...
    def compare(self, i: PrimExpr) -> Stmt: ...
    def differs(self) -> PrimExpr: ...


class _ByKey:
    """Slices of one element."""

    def __init__(self, source: Buffer, count: int, dtype: str) -> None:
        self._source, self._count, self._dtype = source, count, dtype
        self._pairs = Pairs.scratch(count, key_dtype(dtype), "row")
        self._sorter = Sorter(self._pairs, count, dtype)
        self._differs = Scalar("bool", "differs")

    def allocate(self) -> Stmt:
        return nest.sequence(
            self._pairs.allocate(), self._sorter.allocate(), nest.allocate(self._differs.buffer)
        )

    def sort(self) -> Stmt:
        def load(i: PrimExpr) -> Stmt:
            return self._pairs.put(i, key_of(read_flat(self._source, i), self._dtype), i)

        return nest.sequence(nest.serial(self._count, load), self._sorter.sort(self._count))

    def position(self, i: PrimExpr) -> PrimExpr:
        return self._pairs.position(i)

    def compare(self, i: PrimExpr) -> Stmt:
        """Compare the slices at ranks i and i − 1."""
        before = tirx.max(i - 1, nest.integer(0))
        return self._differs.set(tirx.NE(self._pairs.key(i), self._pairs.key(before)))

    def differs(self) -> PrimExpr:
        return self._differs.get()


class _BySlice:
    """Slices of several elements, in lexicographic order: merges of ever longer runs."""

    def __init__(self, source: Buffer, outer: int, count: int, inner: int, dtype: str) -> None:
        self._source, self._dtype = source, dtype
        self._outer, self._count, self._inner = outer, count, inner
        self._order = scratch((count,), "int32", "order")
        self._merged = scratch((count,), "int32", "merged")
        self._at, self._sign = Scalar("int32", "at"), Scalar("int32", "sign")
        self._width, self._low = Scalar("int32", "width"), Scalar("int32", "low")
        self._left, self._right = Scalar("int32", "left"), Scalar("int32", "right")
        self._one, self._other = (Scalar(key_dtype(dtype), name) for name in ("one", "other"))

    def allocate(self) -> Stmt:
        cells = (self._at, self._sign, self._width, self._low, self._left, self._right)
        keys = (self._one.buffer, self._other.buffer)
        return nest.allocate(self._order, self._merged, *keys, *[cell.buffer for cell in cells])

    def position(self, i: PrimExpr) -> PrimExpr:
        return nest.read(self._order, i)

    def compare(self, i: PrimExpr) -> Stmt:
        before = tirx.max(i - 1, nest.integer(0))
        return self._compare(self.position(before), self.position(i))

    def differs(self) -> PrimExpr:
        return tirx.NE(self._sign.get(), nest.integer(0))

    def _compare(self, a: PrimExpr, b: PrimExpr) -> Stmt:
        """Set `sign` to that of slice a against slice b."""

        def key(which: PrimExpr) -> PrimExpr:
            o, i = nest.unflatten(self._at.get(), (self._outer, self._inner))
            place = (o * self._count + which) * self._inner + i
            return key_of(read_flat(self._source, place), self._dtype)

        length = self._outer * self._inner
        one, other = self._one.get(), self._other.get()
        after = tirx.Select(one > other, nest.integer(1), nest.integer(0))
        order = tirx.Select(one < other, nest.integer(-1), after)
        return nest.sequence(
            self._at.set(0),
            self._sign.set(0),
            repeat(
                tirx.all(self._sign.get() == 0, self._at.get() < length),
                nest.sequence(
                    self._one.set(key(a)),
                    self._other.set(key(b)),
                    self._sign.set(order),
                    self._at.set(self._at.get() + 1),
                ),
            ),
        )

    def sort(self) -> Stmt:
        count, width, low = nest.integer(self._count), self._width, self._low
        left, right = self._left, self._right
        order, merged = self._order, self._merged

        def merge_one(middle: PrimExpr, high: PrimExpr, o: PrimExpr) -> Stmt:
            last = nest.integer(self._count - 1)
            a = nest.read(order, tirx.min(left.get(), last))
            b = nest.read(order, tirx.min(right.get(), last))
            from_left = tirx.all(
                left.get() < middle, tirx.any(right.get() >= high, self._sign.get() <= 0)
            )
            return nest.sequence(
                self._compare(a, b),
                tirx.IfThenElse(
                    from_left,
                    nest.sequence(nest.write(merged, a, low.get() + o), left.set(left.get() + 1)),
                    nest.sequence(nest.write(merged, b, low.get() + o), right.set(right.get() + 1)),
                ),
            )

        middle = tirx.min(low.get() + width.get(), count)
        high = tirx.min(low.get() + 2 * width.get(), count)
        merge = nest.sequence(
            left.set(low.get()),
            right.set(middle),
            nest.serial(high - low.get(), lambda o: merge_one(middle, high, o)),
            low.set(low.get() + 2 * width.get()),
        )
        return nest.sequence(
            nest.serial(self._count, lambda i: nest.write(order, i, i)),
            width.set(1),
            repeat(
                width.get() < count,
                nest.sequence(
                    low.set(0),
                    repeat(low.get() < count, merge),
                    nest.serial(self._count, lambda i: nest.write(order, nest.read(merged, i), i)),
                    width.set(width.get() * 2),
                ),
            ),
        )


def _compute(workload: Workload) -> PrimFunc:
    op, to = workload.op, Parameters(workload)
    [source], [values, first, inverse, counts, total] = to.inputs, to.outputs
    dtype = op.output.dtype
    outer, count, inner = rows_of(op.output, op.attr("axis"))
    if not count or not outer * inner:
        # Slices without elements are all equal.
        return to.function(alone(_without_elements(to, count)))
    if count == 1:
        return to.function(alone(_single(to, outer * inner)))
    order: _Order = (
        _ByKey(source, count, dtype)
        if outer * inner == 1
        else _BySlice(source, outer, count, inner, dtype)
    )
    group, next_ = Scalar("int32", "group"), Scalar("int32", "next")
    group_of = scratch((count,), "int32", "group_of")
    first_of = scratch((count,), "int32", "first_of")
    count_of = scratch((count,), "int32", "count_of")
    number_of = scratch((count,), "int32", "number_of")

    def collect(i: PrimExpr) -> Stmt:
        at = order.position(i)
        new = nest.sequence(
            group.set(group.get() + 1),
            nest.write(first_of, at, group.get()),
            nest.write(count_of, nest.integer(0), group.get()),
        )
        return nest.sequence(
            order.compare(i),
            tirx.IfThenElse(tirx.any(tirx.EQ(i, nest.integer(0)), order.differs()), new, None),
            nest.write(count_of, nest.read(count_of, group.get()) + 1, group.get()),
            nest.write(group_of, group.get(), at),
        )

    def store(g: PrimExpr, number: PrimExpr) -> Stmt:
        def element(o: PrimExpr, i: PrimExpr) -> Stmt:
            value = read_flat(source, (o * count + nest.read(first_of, g)) * inner + i)
            return write_flat(values, value, (o * count + number) * inner + i)

        return nest.sequence(
            nest.write(number_of, number, g),
            nest.write(first, cast(nest.read(first_of, g), "int64"), number),
            nest.write(counts, cast(nest.read(count_of, g), "int64"), number),
            nest.serial(outer, lambda o: nest.serial(inner, lambda i: element(o, i)), "o"),
        )

    def by_occurrence(p: PrimExpr) -> Stmt:
        g = nest.read(group_of, p)
        found = nest.sequence(store(g, next_.get()), next_.set(next_.get() + 1))
        return tirx.IfThenElse(tirx.EQ(nest.read(first_of, g), p), found, None)

    number = (
        nest.serial(group.get() + 1, lambda g: store(g, g))
        if op.attr("sorted")
        else nest.serial(count, by_occurrence)
    )
    body = nest.sequence(
        order.sort(),
        group.set(-1),
        next_.set(0),
        nest.serial(count, collect),
        number,
        nest.serial(
            count,
            lambda p: nest.write(
                inverse, cast(nest.read(number_of, nest.read(group_of, p)), "int64"), p
            ),
        ),
        nest.write(total, cast(group.get() + 1, "int64"), 0),
    )
    cells = nest.allocate(group.buffer, next_.buffer, group_of, first_of, count_of, number_of)

    def clear_values() -> Stmt | None:
        if inner == 1:
            return clear_rest(values, outer, count, total)
        return _clear_slices(values, outer, count, inner, total)

    return to.function(
        alone(body, order.allocate(), cells),
        clear_values(),
        clear_rest(first, 1, count, total),
        clear_rest(counts, 1, count, total),
    )


def _clear_slices(values: Buffer, outer: int, count: int, inner: int, total: Buffer) -> Stmt:
    known = cast(nest.read(total, 0), "int32")

    def rest(o: PrimExpr) -> Stmt:
        return nest.serial(
            nest.integer(count) - known,
            lambda s: nest.serial(
                inner,
                lambda i: write_flat(
                    values, tirx.const(0, str(values.dtype)), (o * count + known + s) * inner + i
                ),
            ),
        )

    return alone(nest.serial(outer, rest, "o"))


def _single(to: Parameters, length: int) -> Stmt:
    [source], [values, first, inverse, counts, total] = to.inputs, to.outputs
    zero, one = (tirx.const(i, "int64") for i in (0, 1))
    return nest.sequence(
        nest.serial(length, lambda i: write_flat(values, read_flat(source, i), i)),
        nest.write(first, zero, 0),
        nest.write(inverse, zero, 0),
        nest.write(counts, one, 0),
        nest.write(total, one, 0),
    )


def _without_elements(to: Parameters, count: int) -> Stmt:
    _, first, inverse, counts, total = to.outputs
    found = min(count, 1)
    zero = tirx.const(0, "int64")

    def slot(i: PrimExpr) -> Stmt:
        return nest.sequence(
            nest.write(first, zero, i),
            nest.write(inverse, zero, i),
            nest.write(counts, tirx.Select(i == 0, tirx.const(count, "int64"), zero), i),
        )

    return nest.sequence(
        nest.serial(count, slot) if count else None,
        nest.write(total, tirx.const(found, "int64"), 0),
    )
