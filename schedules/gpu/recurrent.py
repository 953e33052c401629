"""LSTM, GRU and RNN on a device: a thread for each hidden unit.

What gates take from the inputs is computed first, for all steps at once, by a thread for each
(step, row of the batch, unit). Then one block of threads takes a row of the batch through time,
with its state in shared memory and a barrier behind each step, as one launch: the persistent
kernel of Diamos et al., "Persistent RNNs: stashing recurrent weights on-chip" (2016), with weights
in the cache instead of registers. Weights are packed so that neighbouring threads read neighbours.

Definitions and numerics are those of recurrent.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx

from schedules import nest
from schedules.epilogue import operand_layouts
from schedules.gemm import traffic
from schedules.gpu.elements import Index, each_element
from schedules.gpu.threads import barrier, grid
from schedules.gpu.tilings import ceildiv
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
from schedules.product import accumulator_dtype, cast
from schedules.recurrent_cells import CHAINS, GATES, Block, Cell, Rules, State
from schedules.recurrent_steps import Memory, Parameters, last_state, phases
from schedules.tile import Tile, accumulate

_THREADS = 512
_STATES = 5  # of Memory, in shared memory
_EFFICIENCY = 0.1  # memory-bound: each step reads all recurrent weights


@dataclass(frozen=True)
class UnitColumns:
    """Packs (gates · hidden, K) as (K, hidden, gates)."""

    gates: int

    def pack(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See the class."""
        split = array.reshape(self.gates, -1, array.shape[1])
        return np.ascontiguousarray(split.transpose(2, 1, 0))

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of pack()'s result."""
        return (shape[1], shape[0] // self.gates, self.gates)


@dataclass(frozen=True)
class _Cell(Cell):
    """Panels of one unit; weights as UnitColumns packs them, or as they are in the model."""

    def sums(
        self, at: Block, left: State, depth: int, weights: Buffer, first: int, result: Buffer
    ) -> Stmt:
        packed = len(weights.ty.shape) == 3

        def weight(k: PrimExpr, j: PrimExpr) -> PrimExpr:
            gate = j + first
            if packed:
                return cast(nest.read(weights, k, at.panel, gate), self.dtype)
            return cast(nest.read(weights, gate * self.hidden + at.panel, k), self.dtype)

        gates = int(result.ty.shape[1])
        chains = max(1, min(CHAINS // gates, depth))
        return accumulate(Tile(1, gates, 1), depth, left, weight, self.dtype, result, chains)


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate for sequences of several steps, where threads are threads."""
    op, gpu = workload.op, traits.gpu
    if op.kind not in GATES or gpu is None or gpu.loops or dict(op.attrs).get("quantized_state"):
        return ()
    steps, batch, features = op.inputs[0].shape
    hidden, gates = int(op.attr("hidden")), GATES[op.kind]
    size = np.dtype(accumulator_dtype(workload)).itemsize
    if steps < 2 or not features or _STATES * hidden * size > gpu.shared_bytes:
        return ()
    packings = [UnitColumns(gates) if constant else PLAIN for constant in op.constant[1:3]]
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    flops = 2.0 * steps * batch * gates * hidden * (features + hidden)
    return (
        Candidate(
            name=f"gpu.{op.kind}.sequence",
            layouts=(PLAIN, *packings, *[PLAIN] * (len(op.inputs) - 3), *operands),
            output=PLAIN,
            cost=Cost(flops, traffic(workload), _EFFICIENCY, 2),
            compute=partial(_compute, workload, traits),
            schedule=nest.as_written,
        ),
    )


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    op, attrs = workload.op, dict(workload.op.attrs)
    hidden, gates = int(op.attr("hidden")), GATES[op.kind]
    names = ["x", "w", "r", "bias", "h0"]
    names += ["c0"] if op.kind == "lstm" else []
    names += [name for name in ("lengths", "peepholes") if attrs.get(name)]
    buffers = {}
    for index, (name, sig) in enumerate(zip(names, op.inputs, strict=True)):
        constant = name in ("w", "r") and op.constant[index]
        shape = UnitColumns(gates).packed_shape(sig.shape) if constant else sig.shape
        buffers[name] = nest.buffer(shape, sig.dtype, name)
    dtype, peepholes = accumulator_dtype(workload), buffers.get("peepholes")
    cell = _Cell(Rules.of(op), hidden, 1, dtype, buffers["r"], buffers["bias"], peepholes)
    to = Parameters(
        workload,
        buffers["x"],
        buffers["w"],
        buffers["h0"],
        buffers.get("c0"),
        buffers.get("lengths"),
        False,
        tuple(nest.operand_buffers(workload)),
        nest.buffer(workload.output.shape, workload.output.dtype, "output"),
    )
    steps, batch, _ = op.inputs[0].shape
    gx = nest.buffer((steps * batch, hidden, gates), dtype, "from_inputs")
    body = nest.sequence(
        nest.allocate(gx), _input_pass(cell, to, gx, traits), _time_pass(cell, to, gx, traits)
    )
    return nest.function([*buffers.values(), *to.operands, to.output], body)


def _input_pass(cell: Cell, to: Parameters, gx: Buffer, traits: TargetTraits) -> Stmt:
    """gx[step · batch, unit, gate] = x · wᵀ + biases."""
    steps, batch, features = to.workload.op.inputs[0].shape

    def one(index: Index) -> Stmt:
        row, unit = index
        result = nest.buffer((1, cell.gates), cell.dtype, "sums", "local")

        def load(i: PrimExpr, k: PrimExpr) -> PrimExpr:
            return cast(nest.read(to.x, *nest.unflatten(row, (steps, batch)), k), cell.dtype)

        def store(gate: int) -> Stmt:
            value = nest.read(result, 0, gate) + cell.bias_of(gate, unit)
            return nest.write(gx, value, row, unit, gate)

        return nest.sequence(
            nest.allocate(result),
            cell.sums(Block(row, 1, unit, 1), load, features, to.w, 0, result),
            *[store(gate) for gate in range(cell.gates)],
        )

    return each_element((steps * batch, cell.hidden), traits, one)


def _time_pass(cell: Cell, to: Parameters, gx: Buffer, traits: TargetTraits) -> Stmt:
    """The recurrence: a block for each row of the batch."""
    assert traits.gpu is not None
    steps, batch, _ = to.workload.op.inputs[0].shape
    threads = min(_THREADS, traits.gpu.max_threads, 32 * ceildiv(cell.hidden, 32))
    names = ("h", "new", "c", "z", "rh")
    h, new, c, z, rh = (nest.buffer((1, cell.hidden), cell.dtype, name, "shared") for name in names)
    used = [h, new]
    used += [c] if to.c0 is not None else []
    used += [z, rh] if cell.rules.kind == "gru" and not cell.reset_after else []
    memory = Memory(h, h, new, c, z, rh)

    def row_of(row: PrimExpr, thread: PrimExpr) -> Stmt:
        def units(body: Callable[[PrimExpr], Stmt]) -> Stmt:
            """body of each unit of this thread, then a barrier."""

            def turn(number: PrimExpr) -> Stmt:
                unit = number * threads + thread
                stmt = body(unit)
                if cell.hidden % threads == 0:
                    return stmt
                return tirx.IfThenElse(unit < cell.hidden, stmt, None)

            turns = nest.serial(ceildiv(cell.hidden, threads), turn, "turn")
            return nest.sequence(turns, barrier())

        def load(unit: PrimExpr) -> Stmt:
            states = [(h, to.h0)] + ([(c, to.c0)] if to.c0 is not None else [])
            return nest.sequence(
                *[
                    nest.write(target, cast(nest.read(source, row, unit), cell.dtype), 0, unit)
                    for target, source in states
                ]
            )

        def step(t: PrimExpr) -> Stmt:
            parts = phases(cell, to, gx, t, row, 1, memory)
            return nest.sequence(
                *[units(partial(_alone, part)) for part in parts],
                units(lambda unit: nest.write(h, nest.read(new, 0, unit), 0, unit)),
            )

        def last(unit: PrimExpr) -> Stmt:
            return nest.sequence(
                *[
                    to.emit(
                        last_state(to, row, nest.read(state, 0, unit)), steps + number, row, unit
                    )
                    for number, state in enumerate((h, c) if to.c0 is not None else (h,))
                ]
            )

        return nest.sequence(
            nest.allocate(*used), units(load), nest.serial(steps, step, "t"), units(last)
        )

    return grid(batch, threads, row_of)


def _alone(part: Callable[[PrimExpr, int], Stmt], unit: PrimExpr) -> Stmt:
    return part(unit, 1)
