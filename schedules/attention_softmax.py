"""The softmax of a row of attention scores in a worker's scratch."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from schedules import nest
from schedules.interface import PrimExpr, Step
from schedules.nest import Buffer, Stmt
from schedules.scalar import evaluate
from schedules.tile import fold


def exponentials(
    scores: Buffer,
    share: Buffer,
    slot: PrimExpr,
    row: PrimExpr,
    keys: int,
    lanes: int,
    dtype: str,
) -> Stmt:
    """scores[slot, row] becomes exp(score − max); share[row] becomes 1 / their sum."""
    most = nest.buffer((lanes,), dtype, "most", "local")
    total = nest.buffer((lanes,), dtype, "total", "local")
    top = nest.buffer((1,), dtype, "top", "local")

    def by_lane(body: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
        """`body` of (lane, key) for all keys."""
        whole, rest = divmod(keys, lanes)
        parts = []
        if whole:
            parts.append(
                nest.serial(
                    whole,
                    lambda t: nest.vectorized(lanes, lambda x: body(x, t * lanes + x)),
                    name="t",
                )
            )
        if rest:
            parts.append(nest.vectorized(rest, lambda x: body(x, whole * lanes + x)))
        return nest.sequence(*parts)

    def exponential(x: PrimExpr, t: PrimExpr) -> Stmt:
        value = nest.read(scores, slot, row, t) - nest.read(top, 0)
        return nest.write(scores, evaluate(Step("exp", (0,)), [value]), slot, row, t)

    lowest = tirx.const(float("-inf"), dtype)
    return nest.sequence(
        nest.allocate(most, total, top),
        nest.vectorized(lanes, lambda x: nest.write(most, lowest, x)),
        by_lane(
            lambda x, t: nest.write(
                most, tirx.max(nest.read(most, x), nest.read(scores, slot, row, t)), x
            )
        ),
        fold(most, (), lanes, tirx.max),
        nest.write(top, nest.read(most, 0), 0),
        by_lane(exponential),
        nest.vectorized(lanes, lambda x: nest.write(total, tirx.const(0, dtype), x)),
        by_lane(
            lambda x, t: nest.write(total, nest.read(total, x) + nest.read(scores, slot, row, t), x)
        ),
        fold(total, (), lanes, lambda a, b: a + b),
        nest.write(share, tirx.const(1, dtype) / nest.read(total, 0), row),
    )
