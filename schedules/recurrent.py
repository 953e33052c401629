"""LSTM, GRU and RNN: the whole sequence in one kernel.

A first pass computes what the gates take from the inputs, all time steps at once, as a packed
product. The second runs over time: the gates of a vector of hidden units lie side by side in the
packed weights, so that their sums stay in registers and the cell is updated there. Sequences of
one step share the hidden units among the workers instead. Weights that are only known at run time
are packed by the kernel itself before that.

Definitions (gate order, biases, linear_before_reset, activations, clip, peepholes) are those of the
ONNX operators; as in ONNX Runtime, clip does not bound what an LSTM's third activation takes. Error
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
from schedules.recurrent_cells import GATES, Cell, Rules
from schedules.recurrent_nests import input_pass, single_step, time_pass
from schedules.recurrent_parts import pack_weights
from schedules.recurrent_steps import Parameters


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
    """The candidate for an LSTM, GRU or RNN; it packs weights that are not constant itself."""
    op = workload.op
    if op.kind not in GATES:
        return ()
    steps, batch, features = op.inputs[0].shape
    hidden, gates = int(op.attr("hidden")), GATES[op.kind]
    constant = op.constant[1] and op.constant[2]
    packing = GatePanels(gates, accumulator_lanes(workload, traits)) if constant else PLAIN
    plain = (PLAIN,) * (len(op.inputs) - 3)
    operands = operand_layouts(workload.epilogue, workload.output, PLAIN)
    flops = 2.0 * steps * batch * gates * hidden * (features + hidden)
    # The recurrence reads its weights at every step; with one row of batch that is all its time.
    workers = min(traits.threads, batch) if steps > 1 else traits.threads
    share = min(0.7, 0.35 + 0.1 * batch) * workers / traits.threads
    passes = (2 if steps > 1 else 1) + (0 if constant else 2)
    return (
        Candidate(
            name=f"{op.kind}.sequence" if constant else f"{op.kind}.packing",
            layouts=(PLAIN, packing, packing, *plain, *operands),
            output=PLAIN,
            cost=Cost(flops, traffic(workload), share, passes),
            compute=partial(build, workload, traits, not constant),
            schedule=nest.as_written,
        ),
    )


def build(workload: Workload, traits: TargetTraits, packs: bool = False) -> PrimFunc:
    """The kernel; with `packs` it takes the weights row-major and packs them."""
    op, lanes = workload.op, accumulator_lanes(workload, traits)
    steps, batch, features = op.inputs[0].shape
    hidden, gates = int(op.attr("hidden")), GATES[op.kind]
    attrs, inputs = dict(op.attrs), iter(range(len(op.inputs)))

    def plain(name: str) -> Buffer:
        sig = op.inputs[next(inputs)]
        return nest.buffer(sig.shape, sig.dtype, name)

    def panels(source: Buffer) -> Buffer:
        shape = GatePanels(gates, lanes).packed_shape(tuple(int(n) for n in source.ty.shape))
        return nest.buffer(shape, str(source.dtype), f"packed_{source.name}")

    x, rows_w, rows_r, bias, h0 = (plain(name) for name in ("x", "w", "r", "bias", "h0"))
    c0 = plain("c0") if op.kind == "lstm" else None
    lengths = plain("lengths") if attrs.get("lengths") else None
    peepholes = plain("peepholes") if attrs.get("peepholes") else None
    w, r = panels(rows_w), panels(rows_r)
    cell = Cell(Rules.of(op), hidden, lanes, accumulator_dtype(workload), r, bias, peepholes)
    to = Parameters(
        workload,
        x,
        w,
        h0,
        c0,
        lengths,
        bool(attrs.get("quantized_state")),
        tuple(nest.operand_buffers(workload)),
        nest.buffer(workload.output.shape, workload.output.dtype, "output"),
    )
    packed = [nest.allocate(w, r), pack_weights(cell, rows_w, w), pack_weights(cell, rows_r, r)]
    if steps == 1 and lengths is None and not to.quantized_state:
        body = single_step(cell, to, batch, features)
    else:
        gx = nest.buffer((steps * batch, cell.panels, gates * lanes), cell.dtype, "from_inputs")
        body = nest.sequence(
            nest.allocate(gx),
            input_pass(cell, to, gx, traits),
            time_pass(cell, to, gx, traits),
        )
    weights = [rows_w, rows_r] if packs else [w, r]
    optional = [buffer for buffer in (c0, lengths, peepholes) if buffer is not None]
    return nest.function(
        [x, *weights, bias, h0, *optional, *to.operands, to.output],
        nest.sequence(*(packed if packs else ()), body),
    )
