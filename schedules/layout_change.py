"""Conversion between row-major and channel-blocked layouts.

A block of `lanes` channels × `lanes` positions is a square transposed in registers: log₂ lanes
rounds, each interleaving vector i with vector i + lanes/2 (a perfect shuffle of the rows, which
applied log₂ times transposes). Positions past the last full square go element by element. Exact.
"""

from __future__ import annotations

from functools import partial
from math import gcd, prod

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Layout,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    TensorSig,
)
from schedules.nest import Buffer, Stmt
from schedules.vectors import parallel_grid, remainder

_TASKS = 32


def change_candidate(
    sig: TensorSig, source: Layout, target: Layout, traits: TargetTraits
) -> Candidate:
    """The kernel that copies a tensor from one layout to another; padding lanes become zeros."""
    return Candidate(
        name=f"layout_change.{source.block}-{target.block}",
        layouts=(source,),
        output=target,
        cost=Cost(flops=0.0, bytes=2.0 * sig.nbytes, efficiency=0.3),
        compute=partial(_compute, sig, source, target, traits),
        schedule=nest.as_written,
    )


def _compute(sig: TensorSig, source: Layout, target: Layout, traits: TargetTraits) -> PrimFunc:
    given: Buffer = nest.buffer(source.physical(sig.shape), sig.dtype, "source")
    result: Buffer = nest.buffer(target.physical(sig.shape), sig.dtype, "result")
    block = max(source.block, target.block)
    one_is_plain = PLAIN in (source, target) and source != target
    if one_is_plain:
        body = _Change(sig, block, bool(target.block), given, result, _side(sig, block)).body()
    elif source.block and target.block:
        body = _reblocked(sig, source.block, target.block, given, result)
    else:
        body = _elementwise(sig, source, target, given, result)
    return nest.function([given, result], body)


def _side(sig: TensorSig, block: int) -> int:
    """Channels and positions of a square that is transposed in registers; 0 for none."""
    size = np.dtype(sig.dtype).itemsize
    if size == 1:
        return 16 if block % 16 == 0 else 0
    return block if size == 4 and block & (block - 1) == 0 else 0


def _reblocked(sig: TensorSig, source: int, target: int, given: Buffer, result: Buffer) -> Stmt:
    """Copy between blocks of two sizes, as many channels at a time as lie together in both."""
    width = gcd(source, target)
    batch, channels, *spatial = sig.shape
    pieces = -(-channels // target) * target // width
    readable = -(-channels // source) * source // width

    def copy(n: PrimExpr, piece: PrimExpr, *rest: PrimExpr) -> Stmt:
        each, wide = target // width, source // width

        def put(lane: PrimExpr, value: PrimExpr) -> Stmt:
            at = (n, piece // each, *rest, piece % each * width + lane)
            return nest.write(result, value, *at)

        def moved(lane: PrimExpr) -> Stmt:
            at = (n, piece // wide, *rest, piece % wide * width + lane)
            return put(lane, nest.read(given, *at))

        # Lanes behind the last channel hold zeros already, where there are any.
        zero = tirx.const(0, sig.dtype)
        some = nest.vectorized(width, moved)
        none = nest.vectorized(width, lambda lane: put(lane, zero))
        return nest.branch(True if readable >= pieces else piece < readable, some, none)

    return parallel_grid((batch, pieces, *spatial), copy)


def _elementwise(
    sig: TensorSig, source: Layout, target: Layout, given: Buffer, result: Buffer
) -> Stmt:
    """Copy between any two layouts, element by element."""
    physical = target.physical(sig.shape)

    def copy(index: PrimExpr) -> Stmt:
        at = nest.unflatten(index, physical)
        logical = list(at)
        if target.block:
            logical = [at[0], at[1] * target.block + at[-1], *at[2:-1]]
        read = list(logical)
        if source.block:
            read = [logical[0], logical[1] // source.block, *logical[2:], logical[1] % source.block]
        value = nest.read(given, *read)
        if target.block and sig.shape[1] % target.block:
            zero = tirx.const(0, sig.dtype)
            value = tirx.if_then_else(logical[1] < sig.shape[1], value, zero)
        return nest.write(result, value, *at)

    return nest.parallel(prod(physical), copy)


class _Change:
    """Between row-major (N, C, S) and blocked (N, C / block, S, block), S the flat rest."""

    def __init__(
        self,
        sig: TensorSig,
        block: int,
        to_blocked: bool,
        given: Buffer,
        result: Buffer,
        side: int,
    ) -> None:
        self.block, self.to_blocked, self.side = block, to_blocked, side
        self.given, self.result = given, result
        self.dtype = sig.dtype
        self.batch, self.channels, *spatial = sig.shape
        self.spatial = tuple(spatial)
        self.positions = prod(spatial)

    def body(self) -> Stmt:
        full, rest = divmod(self.channels, self.block)
        tiles = self.positions // self.side if self.side else 0
        # Few images and blocks of channels: share the positions, too.
        pieces = max(1, min(tiles, -(-_TASKS // (self.batch * (full + bool(rest))))))
        split = nest.Split.of(tiles, -(-tiles // pieces)) if tiles else None

        def channels(n: PrimExpr, block: PrimExpr, piece: PrimExpr, valid: int) -> Stmt:
            parts: list[Stmt | None] = []
            if split is not None:
                parts.append(
                    split.part(
                        piece,
                        lambda start, count: nest.serial(
                            count, lambda t: self._tiles(n, block, (start + t) * self.side, valid)
                        ),
                    )
                )
            if tiles * self.side < self.positions:
                tail = self._tail(n, block, tiles * self.side, valid)
                last = (split.count if split else 1) - 1
                parts.append(nest.branch(piece.equal(last), tail) if last else tail)
            return nest.sequence(*parts)

        def task(n: PrimExpr, block: PrimExpr, piece: PrimExpr) -> Stmt:
            if not rest:
                return channels(n, block, piece, self.block)
            ragged = channels(n, nest.integer(full), piece, rest)
            if not full:
                return ragged
            return nest.branch(block < full, channels(n, block, piece, self.block), ragged)

        return parallel_grid((self.batch, full + bool(rest), split.count if split else 1), task)

    def _plain(self, n: PrimExpr, channel: PrimExpr, position: PrimExpr) -> list[PrimExpr]:
        return [n, channel, *nest.unflatten(position, self.spatial)]

    def _blocked(
        self, n: PrimExpr, block: PrimExpr, position: PrimExpr, lane: PrimExpr
    ) -> list[PrimExpr]:
        return [n, block, *nest.unflatten(position, self.spatial), lane]

    def _tail(self, n: PrimExpr, block: PrimExpr, start: int, valid: int) -> Stmt:
        """Positions from `start` on, one by one (or the channels, where those are contiguous)."""
        zero = tirx.const(0, self.dtype)

        def into_blocked(s: PrimExpr) -> Stmt:
            def copy(lane: PrimExpr) -> Stmt:
                value = nest.read(self.given, *self._plain(n, block * self.block + lane, s + start))
                return nest.write(self.result, value, *self._blocked(n, block, s + start, lane))

            def clear(lane: PrimExpr) -> Stmt:
                at = self._blocked(n, block, s + start, lane + valid)
                return nest.write(self.result, zero, *at)

            parts = [
                nest.vectorized(width, lambda x, at=at: copy(x + at))  # type: ignore[misc]
                for at, width in remainder(valid, 0)
            ]
            if valid < self.block:
                parts.append(nest.serial(self.block - valid, clear))
            return nest.sequence(*parts)

        def into_plain(c: PrimExpr, s: PrimExpr) -> Stmt:
            value = nest.read(self.given, *self._blocked(n, block, s + start, c))
            return nest.write(
                self.result, value, *self._plain(n, block * self.block + c, s + start)
            )

        count = self.positions - start
        if self.to_blocked:
            return nest.serial(count, into_blocked, "s")
        return nest.serial(valid, lambda c: nest.serial(count, lambda s: into_plain(c, s), "s"))

    def _tiles(self, n: PrimExpr, block: PrimExpr, start: PrimExpr, valid: int) -> Stmt:
        """All squares of a block at the positions from `start` on."""
        parts = [
            self._tile(n, block, start, first, min(max(valid - first, 0), self.side))
            for first in range(0, self.block, self.side)
        ]
        return nest.sequence(*parts)

    def _tile(
        self, n: PrimExpr, block: PrimExpr, start: PrimExpr, first: int, valid: int
    ) -> Stmt | None:
        """A square of channels, from `first` of the block on, × positions, transposed in registers.

        `valid` of the channels are some of the tensor's.
        """
        if not valid and not self.to_blocked:
            return None
        lanes = self.side
        # Both scratch squares become registers: all their indices are constants.
        before: Buffer = nest.buffer((lanes * lanes,), self.dtype, "before", "local")
        after: Buffer = nest.buffer((lanes * lanes,), self.dtype, "after", "local")
        zero = tirx.const(0, self.dtype)

        def plain(c: int, s: PrimExpr) -> list[PrimExpr]:
            return self._plain(n, block * self.block + (first + c), start + s)

        def blocked(s: int, lane: PrimExpr) -> list[PrimExpr]:
            return self._blocked(n, block, start + s, lane + first)

        index = plain if self.to_blocked else blocked
        load: list[Stmt] = []
        for i in range(lanes):
            missing = self.to_blocked and i >= valid
            load.append(
                nest.vectorized(
                    lanes,
                    lambda x, i=i, missing=missing: nest.write(  # type: ignore[misc]
                        before,
                        zero if missing else nest.read(self.given, *index(i, x)),
                        x + i * lanes,
                    ),
                )
            )
        index_out = blocked if self.to_blocked else plain
        store = [
            nest.vectorized(
                lanes,
                lambda x, i=i: nest.write(  # type: ignore[misc]
                    self.result, nest.read(after, x + i * lanes), *index_out(i, x)
                ),
            )
            for i in range(lanes if self.to_blocked else valid)
        ]
        transpose = transpose_square(before, after, self.dtype, lanes)
        return nest.sequence(nest.allocate(before, after), *load, *transpose, *store)


def transpose_square(before: Buffer, after: Buffer, dtype: str, lanes: int) -> list[Stmt]:
    """after[i, j] = before[j, i] for flat local squares of `lanes` × `lanes`, a power of two."""
    half = lanes // 2
    statements: list[Stmt] = []

    def at(row: int) -> list[PrimExpr]:
        return [tirx.Ramp(nest.integer(row * lanes), nest.integer(1), lanes)]

    def bind(value: PrimExpr) -> PrimExpr:
        var = tirx.Var("v", f"{dtype}x{lanes}")
        statements.append(tirx.Bind(var, value))
        return var

    low = [lane // 2 + (lanes if lane % 2 else 0) for lane in range(lanes)]
    orders = [[nest.integer(j + shift) for j in low] for shift in (0, half)]
    rows = [bind(tirx.BufferLoad(before, at(i))) for i in range(lanes)]
    for _ in range(lanes.bit_length() - 1):
        rows = [
            bind(tirx.Shuffle([rows[i], rows[i + half]], order))
            for i in range(half)
            for order in orders
        ]
    return [*statements, *[tirx.BufferStore(after, v, at(i)) for i, v in enumerate(rows)]]
