"""LSTM and GRU: the whole sequence in one kernel.

A first pass computes what the gates take from the inputs, all time steps at once, as a packed
product. The second runs over time: the gates of a vector of hidden units lie side by side in the
packed weights, so that their sums stay in registers and the cell is updated there. Sequences of
one step share the hidden units among the workers instead.

Definitions (gate order, biases, linear_before_reset) are those of the ONNX operators. Error
against float64: at most 1e-5 absolute after 100 steps in float32 with weights within 1/√hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from schedules import nest
from schedules.epilogue import apply_epilogue, operand_layouts
from schedules.gemm import traffic
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    PrimExpr,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Buffer, Stmt
from schedules.product import STACK_LIMIT, accumulator_dtype, accumulator_lanes, cast, ceildiv
from schedules.recurrent_cells import GRU_H, Block, Cell, Inputs
from schedules.tile import Tile, accumulate, by_vectors, tallest


@dataclass(frozen=True)
class GatePanels:
    """Packs (gates · hidden, K) as (ceil(hidden / block), K, gates · block).

    The columns of a panel are `block` hidden units of each gate; units past the last are zero.
    """

    gates: int
    block: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        hidden, depth = array.shape[0] // self.gates, array.shape[1]
        panels = ceildiv(hidden, self.block)
        padded = np.zeros((self.gates, panels * self.block, depth), array.dtype)
        padded[:, :hidden] = array.reshape(self.gates, hidden, depth)
        split = padded.reshape(self.gates, panels, self.block, depth).transpose(1, 3, 0, 2)
        return np.ascontiguousarray(split.reshape(panels, depth, self.gates * self.block))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        panels = ceildiv(shape[0] // self.gates, self.block)
        return (panels, shape[1], self.gates * self.block)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """The candidate for an LSTM or GRU with constant weights."""
    op = workload.op
    if op.kind not in ("lstm", "gru") or not (op.constant[1] and op.constant[2]):
        return ()
    steps, batch, features = op.inputs[0].shape
    hidden, gates = int(op.attr("hidden")), 4 if op.kind == "lstm" else 3
    packing = GatePanels(gates, accumulator_lanes(workload, traits))
    plain = (PLAIN,) * (len(op.inputs) - 3)
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    flops = 2.0 * steps * batch * gates * hidden * (features + hidden)
    # The recurrence reads its weights at every step; with one row of batch that is all its time.
    workers = min(traits.threads, batch) if steps > 1 else traits.threads
    share = min(0.7, 0.35 + 0.1 * batch) * workers / traits.threads
    return (
        Candidate(
            name=f"{op.kind}.sequence",
            layouts=(PLAIN, packing, packing, *plain, *operands),
            output=PLAIN,
            cost=Cost(flops, traffic(workload), share, 2 if steps > 1 else 1),
            compute=partial(build, workload, traits),
            schedule=nest.as_written,
        ),
    )


@dataclass(frozen=True)
class Parameters:
    """The kernel's parameters and how results reach them."""

    workload: Workload
    x: Buffer
    w: Buffer
    h0: Buffer
    c0: Buffer | None
    operands: tuple[Buffer, ...]
    output: Buffer

    def emit(self, value: PrimExpr, *index: PrimExpr | int) -> Stmt:
        """Write `value` through the epilogue to element `index` of the output."""
        at = tuple(nest.integer(i) if isinstance(i, int) else i for i in index)
        reads = [nest.reader(o) for o in self.operands]
        own = cast(value, self.workload.op.output.dtype)
        return nest.write(self.output, apply_epilogue(self.workload, own, reads, PLAIN, at), *at)


def build(workload: Workload, traits: TargetTraits) -> PrimFunc:
    """The kernel."""
    op, lanes = workload.op, accumulator_lanes(workload, traits)
    steps, batch, features = op.inputs[0].shape
    hidden, lstm = int(op.attr("hidden")), op.kind == "lstm"
    gates, panels = 4 if lstm else 3, ceildiv(hidden, lanes)

    def plain(i: int, name: str) -> Buffer:
        return nest.buffer(op.inputs[i].shape, op.inputs[i].dtype, name)

    w = nest.buffer((panels, features, gates * lanes), op.inputs[1].dtype, "w")
    r = nest.buffer((panels, hidden, gates * lanes), op.inputs[2].dtype, "r")
    bias = plain(3, "bias")
    cell = Cell(
        gates,
        hidden,
        lanes,
        accumulator_dtype(workload),
        not lstm and bool(op.attr("linear_before_reset")),
        r,
        bias,
    )
    output = nest.buffer(workload.output.shape, workload.output.dtype, "output")
    to = Parameters(
        workload,
        plain(0, "x"),
        w,
        plain(4, "h0"),
        plain(5, "c0") if lstm else None,
        tuple(nest.operand_buffers(workload)),
        output,
    )
    if steps == 1:
        body = single_step(cell, to, batch, features)
    else:
        gx = nest.buffer((steps * batch, panels, gates * lanes), cell.dtype, "from_inputs")
        body = nest.sequence(
            nest.allocate(gx),
            input_pass(cell, to, gx, traits),
            time_pass(cell, to, gx, traits),
        )
    state = [to.h0] if to.c0 is None else [to.h0, to.c0]
    return nest.function([to.x, w, r, bias, *state, *to.operands, output], body)


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
    fair = ceildiv(batch, traits.threads)
    split = nest.Split.of(batch, min(fair, tallest(cell.gates, traits)))

    def rows_of(row: PrimExpr, rows: int) -> Stmt:
        small = rows * cell.hidden * np.dtype(cell.dtype).itemsize <= STACK_LIMIT // 4
        h, new, c, z, rh = (
            nest.buffer((rows, cell.hidden), cell.dtype, name, "local" if small else "global")
            for name in ("h", "new", "c", "z", "rh")
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

        def keep_in(target: Buffer) -> Any:
            return lambda value, i, j: nest.write(target, value, i, j)

        def step(t: PrimExpr) -> Stmt:
            time = steps - 1 - t if op.attr("reverse") else t

            def inputs(panel: PrimExpr) -> Inputs:
                return lambda gate, i, u, j: nest.read(
                    gx, time * batch + row + i, panel, u + gate * cell.lanes
                )

            def keep_h(value: PrimExpr, i: PrimExpr, j: PrimExpr) -> Stmt:
                return nest.sequence(nest.write(new, value, i, j), to.emit(value, time, row + i, j))

            def block(panel: PrimExpr, units: int) -> Block:
                return Block(row, rows, panel, units)

            old, cells, gate_z, gate_rh = (nest.reader(s) for s in (h, c, z, rh))
            if to.c0 is not None:
                parts = [
                    cell.each_panel(
                        lambda p, n: cell.lstm(
                            block(p, n), inputs(p), old, cells, keep_h, keep_in(c)
                        )
                    )
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
            return nest.sequence(*parts, copy(new, h, 0))

        def last(source: Buffer, index: int) -> Stmt:
            return nest.serial(
                rows,
                lambda i: by_vectors(
                    cell.hidden,
                    cell.lanes,
                    lambda j: to.emit(nest.read(source, i, j), index, row + i, j),
                ),
            )

        lstm = to.c0 is not None
        halves = not lstm and not cell.reset_after
        return nest.sequence(
            nest.allocate(h, new),
            nest.allocate(c) if lstm else None,
            nest.allocate(z, rh) if halves else None,
            copy(to.h0, h, row),
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
