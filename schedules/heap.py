"""A bounded heap of keys: the k least of many, for kernels that select.

Source: Knuth, The Art of Computer Programming, volume 3, section 5.2.3.
"""

from __future__ import annotations

from tvm import tirx

from schedules import nest
from schedules.interface import PrimExpr
from schedules.nest import Stmt
from schedules.sorting import Pairs, Scalar, repeat


class Heap:
    """The k least pairs of those offered, `k` known; ties go to what was offered first.

    Offer pairs whose positions grow among equal keys; then sort() leaves them in order in `pairs`.
    """

    def __init__(self, k: int, key: str) -> None:
        self.k = k
        self.pairs = Pairs.scratch(k, key, "heap")
        self._at, self._child = Scalar("int32", "at"), Scalar("int32", "child")
        self._going = Scalar("int32", "going")
        self._key, self._position = Scalar(key, "moved_key"), Scalar("int32", "moved_position")

    def allocate(self) -> Stmt:
        """The scratch."""
        cells = (self._at, self._child, self._going, self._key, self._position)
        return nest.sequence(self.pairs.allocate(), nest.allocate(*[c.buffer for c in cells]))

    def build(self) -> Stmt | None:
        """Make a heap of the first k pairs, which have been put there in any order."""

        def node(i: PrimExpr) -> Stmt:
            at = nest.integer(self.k // 2 - 1) - i
            return nest.sequence(
                self._hold(self.pairs.key(at), self.pairs.position(at)),
                self._sift(at, nest.integer(self.k)),
            )

        return nest.serial(self.k // 2, node, "node") if self.k > 1 else None

    def wants(self, key: PrimExpr) -> PrimExpr:
        """Whether a pair offered now would be among the k least so far."""
        return key < self.pairs.key(0)

    def replace(self, key: PrimExpr, position: PrimExpr) -> Stmt:
        """Put a pair that is wanted in the place of the last one."""
        if self.k == 1:
            return self.pairs.put(0, key, position)
        return nest.sequence(
            self._hold(key, position), self._sift(nest.integer(0), nest.integer(self.k))
        )

    def sort(self) -> Stmt | None:
        """Sort the pairs; they are a heap no longer."""

        def largest_last(i: PrimExpr) -> Stmt:
            end = nest.integer(self.k - 1) - i
            return nest.sequence(
                self._hold(self.pairs.key(end), self.pairs.position(end)),
                self.pairs.move(end, nest.integer(0)),
                self._sift(nest.integer(0), end),
            )

        return nest.serial(self.k - 1, largest_last, "i") if self.k > 1 else None

    def _hold(self, key: PrimExpr, position: PrimExpr) -> Stmt:
        return nest.sequence(self._key.set(key), self._position.set(position))

    def _sift(self, start: PrimExpr, size: PrimExpr) -> Stmt:
        """Let the held pair sink from `start` in a heap of `size`, to where its children are less.

        Whatever is read past the size is not used.
        """
        at, child, going, pairs = self._at, self._child, self._going, self.pairs
        last = nest.integer(self.k - 1)
        right = tirx.min(child.get() + 1, last)
        larger = tirx.all(
            child.get() + 1 < size,
            pairs.after(right, pairs.key(child.get()), pairs.position(child.get())),
        )
        sinks = tirx.all(
            going.get() < size, pairs.after(child.get(), self._key.get(), self._position.get())
        )
        return nest.sequence(
            at.set(start),
            going.set(start * 2 + 1),
            repeat(
                going.get() < size,
                nest.sequence(
                    child.set(tirx.min(going.get(), last)),
                    tirx.IfThenElse(larger, child.set(child.get() + 1), None),
                    tirx.IfThenElse(
                        sinks,
                        nest.sequence(
                            pairs.move(at.get(), child.get()),
                            at.set(child.get()),
                            going.set(child.get() * 2 + 1),
                        ),
                        going.set(size),
                    ),
                ),
            ),
            pairs.put(at.get(), self._key.get(), self._position.get()),
        )
