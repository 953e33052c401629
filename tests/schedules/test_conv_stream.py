"""Fetching weights ahead: the tiles that share weights together fetch all of the next ones."""

from __future__ import annotations

from typing import Any

import conv_harness as ch
import harness
import pytest
from tvm import tirx

from schedules import conv_direct, conv_pointwise, conv_stream, conv_winograd, nest
from schedules.interface import Family, Workload


def value(expr: Any, known: dict[Any, int]) -> int:
    """An index of sums and products, given the values of loop variables."""
    if isinstance(expr, tirx.Var):
        return known[expr]
    if isinstance(expr, (tirx.Add, tirx.Mul)):
        a, b = value(expr.a, known), value(expr.b, known)
        return a + b if isinstance(expr, tirx.Add) else a * b
    return int(expr)


def fetched(stmt: Any, found: set[int], known: dict[Any, int]) -> None:
    """Adds the offsets into the source that `stmt` fetches, by walking its loops."""
    if isinstance(stmt, tirx.SeqStmt):
        for child in stmt.seq:
            fetched(child, found, known)
    elif isinstance(stmt, tirx.For):
        for i in range(int(stmt.extent)):
            fetched(stmt.body, found, {**known, stmt.loop_var: i})
    elif isinstance(stmt, tirx.Evaluate) and "prefetch" in str(stmt):
        (address,) = (a for a in stmt.value.args if "address_of" in str(a))
        found.add(value(address.args[0].indices[0], known))


@pytest.mark.parametrize("shares", [1, 2, 5, 14, 40])
@pytest.mark.parametrize(("steps", "width", "blocks"), [(16, 32, 4), (8, 16, 9), (4, 64, 3)])
def test_all_lines_of_the_next_weights_are_fetched(
    shares: int, steps: int, width: int, blocks: int
) -> None:
    source = nest.buffer((1 << 20,), "float32", "weights")
    found: set[int] = set()
    for share in range(shares):
        stream = conv_stream.Stream(source, (0,), shares, nest.integer(share), blocks)
        for block in range(blocks):
            nothing = tirx.Evaluate(0)
            loops = conv_stream.streamed(
                steps, lambda i, _=nothing: _, width, stream, nest.integer(block)
            )
            fetched(loops, found, {})
    lines = {offset // conv_stream.LINE for offset in found}
    assert lines >= set(range(steps * width * blocks // conv_stream.LINE))


@pytest.mark.parametrize(
    ("family", "workload", "streams"),
    [
        (conv_pointwise.candidates, ch.conv((1, 512, 7, 7), 512, 1), True),
        (conv_direct.candidates, ch.conv((1, 256, 14, 14), 256, 1, 2), True),
        (conv_direct.candidates, ch.conv((1, 256, 7, 7), 256, 3), True),
        (conv_winograd.candidates, ch.conv((1, 64, 7, 7), 64, 3), True),
        (conv_direct.candidates, ch.conv((1, 3, 64, 64), 32, 3, 2), False),
    ],
)
def test_layers_whose_weights_dominate_fetch_them_ahead(
    family: Family, workload: Workload, streams: bool
) -> None:
    for candidate in family(workload, harness.AVX512):
        assert ("llvm.prefetch" in str(candidate.compute())) == streams
