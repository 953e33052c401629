"""Blocks, threads, shared memory and barriers: the parts of hand-written device kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import ir, tirx

from schedules import nest
from schedules.interface import PrimExpr
from schedules.nest import Buffer, Stmt

BLOCK, THREAD = "blockIdx.x", "threadIdx.x"


def grid(blocks: int, threads: int, body: Callable[[PrimExpr, PrimExpr], Stmt]) -> Stmt:
    """A nest of body(block, thread) run by `blocks` blocks of `threads` threads."""
    return _bound(BLOCK, blocks, lambda b: _bound(THREAD, threads, lambda t: body(b, t)))


def _bound(tag: str, extent: int, body: Callable[[PrimExpr], Stmt]) -> Stmt:
    name = tag.partition(".")[0]
    var = tirx.Var(name, "int32")
    axis = tirx.IterVar(ir.Range(0, extent), tirx.Var(name, "int32"), tirx.IterVar.ThreadIndex, tag)
    kind = tirx.ForKind.THREAD_BINDING
    return tirx.For(var, nest.integer(0), nest.integer(extent), kind, body(var), axis)


def shared(shape: Sequence[int], dtype: str, name: str) -> Buffer:
    """Memory of a block, to be allocated inside the grid."""
    return nest.buffer(shape, dtype, name, "shared")


def registers(shape: Sequence[int], dtype: str, name: str) -> Buffer:
    """Memory of a thread, to be allocated inside the grid."""
    return nest.buffer(shape, dtype, name, "local")


def barrier() -> Stmt:
    """All threads of a block get here before one goes on."""
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.tvm_storage_sync", "shared"))
