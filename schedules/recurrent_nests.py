"""The loop nests of recurrent kernels: products of the inputs, the pass over time, one step."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from schedules import nest
from schedules.interface import PrimExpr, TargetTraits
from schedules.nest import Buffer, Stmt
from schedules.product import STACK_LIMIT, cast, ceildiv
from schedules.recurrent_cells import GRU_H, Block, Cell, Inputs
from schedules.recurrent_parts import quantize_row
from schedules.recurrent_steps import Memory, Parameters, last_state, phases
from schedules.tile import Tile, accumulate, by_vectors, tallest


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

        memory = Memory(h, taken, new, c, z, rh)

        def step(t: PrimExpr) -> Stmt:
            parts = map(cell.each_panel, phases(cell, to, gx, t, row, rows, memory))
            return nest.sequence(*parts, copy(new, h, 0), quantize())

        def last(source: Buffer, index: int) -> Stmt:
            def body(i: PrimExpr, j: PrimExpr) -> Stmt:
                value = last_state(to, row + i, nest.read(source, i, j))
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
