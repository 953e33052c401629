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
from schedules.epilogue import operand_layouts
from schedules.gemm import traffic
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    PrimFunc,
    TargetTraits,
    Workload,
)
from schedules.nest import Buffer
from schedules.product import accumulator_dtype, accumulator_lanes, ceildiv
from schedules.recurrent_cells import Cell
from schedules.recurrent_nests import Parameters, input_pass, single_step, time_pass


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
