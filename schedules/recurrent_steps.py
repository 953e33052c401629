"""A step of time of recurrent kernels, whoever computes which hidden units of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue
from schedules.interface import PLAIN, PrimExpr, Workload
from schedules.nest import Buffer, Stmt
from schedules.product import cast
from schedules.recurrent_cells import Block, Cell, Inputs, State
from schedules.scalar_values import like


@dataclass(frozen=True)
class Parameters:
    """The kernel's parameters and how results reach them.

    lengths: steps of each row of the batch, int32; the steps past them give zeros and leave the
    states alone. Lengths outside 0 … steps count as the nearer of the two, because a kernel cannot
    refuse them. `quantized_state`: the recurrent product takes the state in 8 bits.
    """

    workload: Workload
    x: Buffer
    w: Buffer
    h0: Buffer
    c0: Buffer | None
    lengths: Buffer | None
    quantized_state: bool
    operands: tuple[Buffer, ...]
    output: Buffer

    def emit(self, value: PrimExpr, *index: PrimExpr | int) -> Stmt:
        """Write `value` through the epilogue to element `index` of the output."""
        at = tuple(nest.integer(i) if isinstance(i, int) else i for i in index)
        reads = [nest.reader(o) for o in self.operands]
        own = cast(value, self.workload.op.output.dtype)
        return nest.write(self.output, apply_epilogue(self.workload, own, reads, PLAIN, at), *at)

    def length(self, row: PrimExpr) -> PrimExpr:
        """Steps of a row of the batch."""
        steps = nest.integer(self.workload.op.inputs[0].shape[0])
        if self.lengths is None:
            return steps
        return tirx.max(tirx.min(nest.read(self.lengths, row), steps), nest.integer(0))


@dataclass(frozen=True)
class Memory:
    """States of a block of rows, [rows, hidden] each.

    h: the hidden state; taken: what of it the recurrent product takes; new: the next one. c: the
    cell state of an LSTM. z, rh: gates of a GRU that resets before the product.
    """

    h: Buffer
    taken: Buffer
    new: Buffer
    c: Buffer
    z: Buffer
    rh: Buffer


Phase = Callable[[PrimExpr, int], Stmt]
"""(panel, number of its units) → what is computed of them."""


def last_state(to: Parameters, row: PrimExpr, value: PrimExpr) -> PrimExpr:
    """A state after the last step; a row of the batch without steps has none."""
    if to.lengths is None:
        return value
    return tirx.Select(to.length(row) > 0, value, like(0, value))


def phases(
    cell: Cell, to: Parameters, gx: Buffer, t: PrimExpr, row: PrimExpr, rows: int, memory: Memory
) -> list[Phase]:
    """Step t of `rows` rows of the batch from `row` on: what is computed of each panel.

    A phase reads what the one before has made of all panels. The last one makes memory.new.
    """
    op = to.workload.op
    batch = op.inputs[0].shape[1]

    def runs(i: PrimExpr) -> PrimExpr:
        return t < to.length(row + i)

    def time(i: PrimExpr) -> PrimExpr:
        if not op.attr("reverse"):
            return t
        back = to.length(row + i) - 1 - t
        return back if to.lengths is None else tirx.Select(runs(i), back, t)

    def or_else(i: PrimExpr, value: PrimExpr, other: PrimExpr) -> PrimExpr:
        return value if to.lengths is None else tirx.Select(runs(i), value, other)

    def inputs(panel: PrimExpr) -> Inputs:
        return lambda gate, i, u, j: nest.read(
            gx, time(i) * batch + row + i, panel, u + gate * cell.lanes
        )

    def keep_h(value: PrimExpr, i: PrimExpr, j: PrimExpr) -> Stmt:
        kept = or_else(i, value, nest.read(memory.h, i, j))
        return nest.sequence(
            nest.write(memory.new, kept, i, j),
            to.emit(or_else(i, value, like(0, value)), time(i), row + i, j),
        )

    def keep_c(value: PrimExpr, i: PrimExpr, j: PrimExpr) -> Stmt:
        return nest.write(memory.c, or_else(i, value, nest.read(memory.c, i, j)), i, j)

    def keep_in(target: Buffer) -> Any:
        return lambda value, i, j: nest.write(target, value, i, j)

    def block(panel: PrimExpr, units: int) -> Block:
        return Block(row, rows, panel, units)

    old: State = nest.reader(memory.taken)
    cells, gate_z, gate_rh = (nest.reader(each) for each in (memory.c, memory.z, memory.rh))
    if cell.rules.kind == "lstm":
        return [lambda p, n: cell.lstm(block(p, n), inputs(p), old, cells, keep_h, keep_c)]
    if cell.rules.kind == "rnn":
        return [lambda p, n: cell.rnn(block(p, n), inputs(p), old, keep_h)]
    if cell.reset_after:
        return [lambda p, n: cell.gru_after(block(p, n), inputs(p), old, keep_h)]
    keep_z, keep_rh = keep_in(memory.z), keep_in(memory.rh)
    return [
        lambda p, n: cell.gru_gates(block(p, n), inputs(p), old, keep_z, keep_rh),
        lambda p, n: cell.gru_before(block(p, n), inputs(p), old, gate_z, gate_rh, keep_h),
    ]
