"""The loop nests of recurrent kernels: products of the inputs, the pass over time, one step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.epilogue import apply_epilogue
from schedules.interface import PLAIN, PrimExpr, TargetTraits, Workload
from schedules.nest import Buffer, Stmt
from schedules.product import STACK_LIMIT, cast, ceildiv
from schedules.recurrent_cells import GRU_H, Block, Cell, Inputs, State
from schedules.recurrent_parts import quantize_row
from schedules.scalar_values import like
from schedules.tile import Tile, accumulate, by_vectors, tallest


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


def input_pass(cell: Cell, to: Parameters, gx: Buffer, traits: TargetTraits) -> Stmt:
    """gx[step · batch, panel, gate · lanes] = x · wᵀ + biases, for all steps."""
    steps, batch, features = to.workload.op.inputs[0].shape
    split = nest.Split.of(steps * batch, tallest(cell.gates, traits))

    def tile(panel: PrimExpr, units: int, row: PrimExpr, rows: int) -> Stmt:
        result = nest.buffer((rows, cell.gates * cell.lanes), cell.dtype, "tile", "local")

        def load(i: PrimExpr, k: PrimExpr) -> PrimExpr:
            return cast(nest.read(to.x, *nest.unflatten(row + i, (steps, batch)), k), cell.dtype)

        def weight(k: PrimExpr, j: PrimExpr) -> PrimExpr:
            return cast(nest.read(to.w, panel, k, j), cell.dtype)

        def finish(gate: int) -> Stmt:
            def body(i: PrimExpr, u: PrimExpr, j: PrimExpr) -> Stmt:
                column = u + gate * cell.lanes
                value = nest.read(result, i, column) + cell.bias_of(gate, j)
                return nest.write(gx, value, row + i, panel, column)

            return cell.units(Block(row, rows, panel, units), body)

        return nest.sequence(
            nest.allocate(result),
            accumulate(
                Tile(rows, cell.gates, cell.lanes), features, load, weight, cell.dtype, result
            ),
            *[finish(gate) for gate in range(cell.gates)],
        )

    def task(t: PrimExpr) -> Stmt:
        panel, block = nest.unflatten(t, (cell.panels, split.count))
        return cell.one_panel(
            panel,
            lambda p, units: split.part(block, lambda row, rows: tile(p, units, row, rows)),
        )

    return nest.parallel(cell.panels * split.count, task)


def time_pass(cell: Cell, to: Parameters, gx: Buffer, traits: TargetTraits) -> Stmt:
    """The recurrence; the rows of the batch are independent and shared among the workers."""
    op = to.workload.op
    steps, batch, _ = op.inputs[0].shape
    lstm = to.c0 is not None
    halves = cell.rules.kind == "gru" and not cell.reset_after
    fair = ceildiv(batch, traits.threads)
    split = nest.Split.of(batch, min(fair, tallest(cell.gates, traits)))

    def rows_of(row: PrimExpr, rows: int) -> Stmt:
        small = rows * cell.hidden * np.dtype(cell.dtype).itemsize <= STACK_LIMIT // 4
        h, new, c, z, rh = (
            nest.buffer((rows, cell.hidden), cell.dtype, name, "local" if small else "global")
            for name in ("h", "new", "c", "z", "rh")
        )

        # What the recurrent product takes: the state, or the state in 8 bits.
        taken = h
        if to.quantized_state:
            taken = nest.buffer(
                (rows, cell.hidden), cell.dtype, "quantized", "local" if small else "global"
            )

        def copy(source: Buffer, target: Buffer, offset: PrimExpr | int) -> Stmt:
            return nest.serial(
                rows,
                lambda i: by_vectors(
                    cell.hidden,
                    cell.lanes,
                    lambda j: nest.write(
                        target, cast(nest.read(source, offset + i, j), cell.dtype), i, j
                    ),
                ),
            )

        def quantize() -> Stmt | None:
            if not to.quantized_state:
                return None
            return nest.serial(rows, lambda i: quantize_row(cell, h, taken, i))

        def step(t: PrimExpr) -> Stmt:
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
                kept = or_else(i, value, nest.read(h, i, j))
                return nest.sequence(
                    nest.write(new, kept, i, j),
                    to.emit(or_else(i, value, like(0, value)), time(i), row + i, j),
                )

            def keep_c(value: PrimExpr, i: PrimExpr, j: PrimExpr) -> Stmt:
                return nest.write(c, or_else(i, value, nest.read(c, i, j)), i, j)

            def keep_in(target: Buffer) -> Any:
                return lambda value, i, j: nest.write(target, value, i, j)

            def block(panel: PrimExpr, units: int) -> Block:
                return Block(row, rows, panel, units)

            old: State = nest.reader(taken)
            cells, gate_z, gate_rh = (nest.reader(s) for s in (c, z, rh))
            if lstm:
                parts = [
                    cell.each_panel(
                        lambda p, n: cell.lstm(block(p, n), inputs(p), old, cells, keep_h, keep_c)
                    )
                ]
            elif cell.rules.kind == "rnn":
                parts = [
                    cell.each_panel(lambda p, n: cell.rnn(block(p, n), inputs(p), old, keep_h))
                ]
            elif cell.reset_after:
                parts = [
                    cell.each_panel(
                        lambda p, n: cell.gru_after(block(p, n), inputs(p), old, keep_h)
                    )
                ]
            else:
                parts = [
                    cell.each_panel(
                        lambda p, n: cell.gru_gates(
                            block(p, n), inputs(p), old, keep_in(z), keep_in(rh)
                        )
                    ),
                    cell.each_panel(
                        lambda p, n: cell.gru_before(
                            block(p, n), inputs(p), old, gate_z, gate_rh, keep_h
                        )
                    ),
                ]
            return nest.sequence(*parts, copy(new, h, 0), quantize())

        def last(source: Buffer, index: int) -> Stmt:
            def body(i: PrimExpr, j: PrimExpr) -> Stmt:
                value = nest.read(source, i, j)
                if to.lengths is not None:  # a row without steps has no last state
                    value = tirx.Select(to.length(row + i) > 0, value, like(0, value))
                return to.emit(value, index, row + i, j)

            return nest.serial(
                rows, lambda i: by_vectors(cell.hidden, cell.lanes, lambda j: body(i, j))
            )

        return nest.sequence(
            nest.allocate(h, new),
            nest.allocate(taken) if to.quantized_state else None,
            nest.allocate(c) if lstm else None,
            nest.allocate(z, rh) if halves else None,
            copy(to.h0, h, row),
            quantize(),
            copy(to.c0, c, row) if lstm else None,
            nest.serial(steps, step, name="t"),
            last(h, steps),
            last(c, steps + 1) if lstm else None,
        )

    return nest.parallel(split.count, lambda block: split.part(block, rows_of))


def single_step(cell: Cell, to: Parameters, batch: int, features: int) -> Stmt:
    """One time step; panels of hidden units and rows of the batch are shared among the workers."""
    split = nest.Split.of(batch, max(1, 12 // cell.gates))

    def tasks(body: Any) -> Stmt:
        def task(t: PrimExpr) -> Stmt:
            panel, block = nest.unflatten(t, (cell.panels, split.count))
            return cell.one_panel(
                panel,
                lambda p, units: split.part(
                    block, lambda row, rows: body(Block(row, rows, p, units))
                ),
            )

        return nest.parallel(cell.panels * split.count, task)

    def with_inputs(at: Block, first: int, count: int, body: Any) -> Stmt:
        """`body` of an Inputs over x · wᵀ, computed before it."""
        taken = nest.buffer((at.rows, count * cell.lanes), cell.dtype, "taken", "local")

        def inputs(gate: int, i: PrimExpr, u: PrimExpr, j: PrimExpr) -> PrimExpr:
            return nest.read(taken, i, u + (gate - first) * cell.lanes) + cell.bias_of(gate, j)

        def left(i: PrimExpr, k: PrimExpr) -> PrimExpr:
            return cast(nest.read(to.x, 0, at.row + i, k), cell.dtype)

        return nest.sequence(
            nest.allocate(taken),
            cell.sums(at, left, features, to.w, first, taken),
            body(inputs),
        )

    def rows_of(source: Buffer, at: Block) -> Any:
        return lambda i, j: cast(nest.read(source, at.row + i, j), cell.dtype)

    def keep_in(target: Buffer, at: Block) -> Any:
        return lambda value, i, j: nest.write(target, value, at.row + i, j)

    def keep_h(at: Block) -> Any:
        return lambda value, i, j: nest.sequence(
            to.emit(value, 0, at.row + i, j), to.emit(value, 1, at.row + i, j)
        )

    if to.c0 is not None:

        def lstm(at: Block, inputs: Inputs) -> Stmt:
            return cell.lstm(
                at,
                inputs,
                rows_of(to.h0, at),
                rows_of(to.c0, at),
                keep_h(at),
                lambda value, i, j: to.emit(value, 2, at.row + i, j),
            )

        return tasks(lambda at: with_inputs(at, 0, 4, partial(lstm, at)))
    if cell.rules.kind == "rnn":
        return tasks(
            lambda at: with_inputs(
                at,
                0,
                1,
                lambda inputs: cell.rnn(at, inputs, rows_of(to.h0, at), keep_h(at)),
            )
        )
    if cell.reset_after:
        return tasks(
            lambda at: with_inputs(
                at,
                0,
                3,
                lambda inputs: cell.gru_after(at, inputs, rows_of(to.h0, at), keep_h(at)),
            )
        )
    z = nest.buffer((batch, cell.hidden), cell.dtype, "z")
    rh = nest.buffer((batch, cell.hidden), cell.dtype, "rh")
    return nest.sequence(
        nest.allocate(z, rh),
        tasks(
            lambda at: with_inputs(
                at,
                0,
                2,
                lambda inputs: cell.gru_gates(
                    at, inputs, rows_of(to.h0, at), keep_in(z, at), keep_in(rh, at)
                ),
            )
        ),
        tasks(
            lambda at: with_inputs(
                at,
                GRU_H,
                1,
                lambda inputs: cell.gru_before(
                    at, inputs, rows_of(to.h0, at), rows_of(z, at), rows_of(rh, at), keep_h(at)
                ),
            )
        ),
    )
