"""A schedule for any PrimFunc, such as TVM's legalisation makes: parallel where that is safe.

Elementwise producers are inlined; of every remaining block the leading data-parallel loops become
one parallel loop and a data-parallel innermost loop is vectorised; reductions stay serial. A
primitive that does not apply is left out: TVM's primitives change nothing when they refuse. Loops
that the function itself marks parallel (topi's scatter_nd) are not touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import ScheduleError

from schedules.interface import Schedule, TargetTraits
from schedules.vectorise import extent, split_vector

_log = logging.getLogger(__name__)

_REFUSALS = (ScheduleError, tvm.error.InternalError, ValueError, TypeError, RuntimeError)
_SMALLEST_PARALLEL = 2
_DATA_PARALLEL = tirx.IterVar.DataPar


def generic_schedule(sch: Schedule, traits: TargetTraits) -> None:
    """Schedule "main" of `sch` as well as its blocks allow; never fails."""
    inline_elementwise(sch)
    for block in root_blocks(sch):
        attempt(partial(_nest, sch, block, traits))


def inline_elementwise(sch: Schedule) -> None:
    """Compute elementwise blocks where they are used, unless several reductions would repeat
    them."""
    for block in root_blocks(sch):
        attempt(partial(_inline, sch, block))


def block_kinds(sch: Schedule, block: Any) -> list[bool]:
    """For each axis of a block whether its iterations are independent; empty unless the axes are
    its loops, in order."""
    loops = list(sch.get_loops(block))
    if not _trivial(sch, block, loops):
        return []
    return [kind == _DATA_PARALLEL for kind in _kinds(sch, block)]


def attempt(step: Callable[[], None]) -> bool:
    """Whether `step` worked. What it refused is left as it was."""
    try:
        step()
    except _REFUSALS as refusal:
        _log.debug("generic schedule: %s", str(refusal).splitlines()[-1:])
        return False
    return True


def root_blocks(sch: Schedule) -> list[Any]:
    """The blocks right under the function's root."""
    try:
        return list(sch.get_child_blocks(sch.get_sblock("root", "main")))
    except _REFUSALS:
        return []


def _kinds(sch: Schedule, block: Any) -> list[int]:
    return [int(axis.iter_type) for axis in sch.get(block).iter_vars]


def _inline(sch: Schedule, block: Any) -> None:
    if any(kind != _DATA_PARALLEL for kind in _kinds(sch, block)):
        return
    consumers = sch.get_consumers(block)
    reduced = [any(kind != _DATA_PARALLEL for kind in _kinds(sch, c)) for c in consumers]
    if sum(reduced) <= 1:
        sch.compute_inline(block)


def _nest(sch: Schedule, block: Any, traits: TargetTraits) -> None:
    """One parallel loop outside, vectors inside."""
    loops = list(sch.get_loops(block))
    kinds = _kinds(sch, block)
    if not loops or len(loops) != len(kinds) or not _trivial(sch, block, loops):
        return
    if kinds[-1] == _DATA_PARALLEL and len(set(kinds)) == 1:
        innermost = loops.pop()
        if loops or extent(sch, innermost) < 2 * traits.lanes:
            attempt(lambda: _vectorise(sch, innermost, traits.lanes))
        else:
            # The only loop: its vectors are what the workers share.
            outer, inner = sch.split(innermost, [None, traits.lanes])
            divides = extent(sch, innermost_of(sch, block)) == traits.lanes
            if divides:
                attempt(lambda: sch.vectorize(inner))
            loops = [outer]
        kinds = kinds[: len(loops)]
    spatial = 0
    while spatial < len(loops) and kinds[spatial] == _DATA_PARALLEL:
        spatial += 1
    while spatial:
        if attempt(partial(_parallel, sch, loops[:spatial])):
            return
        spatial -= 1


def innermost_of(sch: Schedule, block: Any) -> Any:
    """The innermost loop around a block."""
    return sch.get_loops(block)[-1]


def _vectorise(sch: Schedule, loop: Any, lanes: int) -> None:
    split_vector(sch, loop, lanes)


def _parallel(sch: Schedule, loops: list[Any]) -> None:
    total = 1
    for loop in loops:
        total *= extent(sch, loop)
    fused = loops[0] if len(loops) == 1 else sch.fuse(*loops)
    if total >= _SMALLEST_PARALLEL:
        sch.parallel(fused)


def _trivial(sch: Schedule, block: Any, loops: list[Any]) -> bool:
    """Whether the block's axes are its loops, in order."""
    realize = _realize(sch, block)
    if realize is None:
        return False
    variables = [sch.get(loop).loop_var for loop in loops]
    values = list(realize.iter_values)
    return len(values) == len(variables) and all(
        isinstance(value, tirx.Var) and value.same_as(variable)
        for value, variable in zip(values, variables, strict=True)
    )


def _realize(sch: Schedule, block: Any) -> Any:
    """The statement that realizes a block right under the function's root."""
    wanted = sch.get(block)
    pending = [sch.mod["main"].body.block.body]
    while pending:
        statement = pending.pop()
        if isinstance(statement, s_tir.SBlockRealize):
            if statement.block.same_as(wanted):
                return statement
        elif isinstance(statement, tirx.SeqStmt):
            pending.extend(statement.seq)
        elif isinstance(statement, (tirx.For, tirx.AttrStmt)):
            pending.append(statement.body)
    return None
