"""A program of one kernel, called often enough and on weights far enough away to be like a network.

Between two runs of a network, the weights of a layer leave the nearer caches, while its inputs have
just been written. So a measured program calls its kernel on several copies of the weights in turn,
and on one set of activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.codegen.executable import build
from graphopt.codegen.kernel import Kernel, lower, to_kernel
from graphopt.codegen.plan import Buffer, Call, Plan, TensorSpec
from graphopt.lowering.kernels import scheduled
from graphopt.lowering.memory import align
from graphopt.lowering.prices import is_serial
from graphopt.lowering.weights import aligned_empty, blocked
from graphopt.runtime.session import Session
from schedules.interface import Candidate, Layout, Packing, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]

FAR_BYTES = 64 << 20
"""Copies of the weights together take as much as this, so that they come from far away."""
MAX_COPIES = 12


@dataclass(frozen=True)
class Measured:
    """A kernel that is ready to be timed.

    copies: calls in one run. output: makes the logical output of what a run returns.
    """

    session: Session
    inputs: dict[str, Array]
    copies: int
    layout: Layout
    shape: tuple[int, ...]

    def run(self) -> Array:
        """The logical output of one run."""
        return unblocked(self.session.run(self.inputs)["y"], self.layout, self.shape)

    def seconds(self, repeats: int) -> float:
        """Time of one call: the mean of the faster half of `repeats` runs."""
        profile = self.session.profile(self.inputs, repeats)
        return sum(row.seconds for row in profile.rows) / self.copies


def make_program(
    workload: Workload,
    candidate: Candidate,
    arrays: list[Array],
    traits: TargetTraits,
    target: Any,
    arch: str,
) -> Measured:
    """Build the candidate's program for logical input `arrays`, machine code included."""
    kernel = to_kernel(lower(scheduled(candidate), target))
    packed = [
        _packed(array, layout) for array, layout in zip(arrays, candidate.layouts, strict=True)
    ]
    weight_bytes = sum(align(a.nbytes) for a, c in _with(packed, workload.constant) if c)
    copies = max(1, min(MAX_COPIES, FAR_BYTES // weight_bytes)) if weight_bytes else 1
    plan = _plan(workload, candidate, kernel, packed, copies, traits)
    weights = aligned_empty(plan.weight_bytes)
    for buffer, array in _weight_places(plan, workload, packed):
        weights[buffer.offset : buffer.offset + array.nbytes] = array.reshape(-1).view(np.uint8)
    module = build(plan, {"kernel": kernel}, target, arch)
    module["run"]  # makes the machine code
    inputs = {
        f"x{i}": _copied(array)
        for i, (array, constant) in enumerate(_with(packed, workload.constant))
        if not constant
    }
    session = Session(plan, module, weights)
    return Measured(session, inputs, copies, candidate.output, workload.output.shape)


def unblocked(array: Array, layout: Layout, shape: tuple[int, ...]) -> Array:
    """The logical tensor of `shape` that `array` holds in `layout`."""
    if not layout.block:
        return array
    moved = np.moveaxis(array, -1, 2)
    joined = moved.reshape(moved.shape[0], moved.shape[1] * layout.block, *shape[2:])
    part: Array = joined[:, : shape[1]]
    return part


def _plan(
    workload: Workload,
    candidate: Candidate,
    kernel: Kernel,
    packed: list[Array],
    copies: int,
    traits: TargetTraits,
) -> Plan:
    serial = is_serial(candidate.cost, traits)
    specs: list[TensorSpec] = []
    buffers: list[Buffer] = []
    arguments: list[int] = []  # of the kernel: indices into buffers
    offset = 0
    weights: list[tuple[int, int]] = []  # argument, bytes
    for i, (array, constant) in enumerate(_with(packed, workload.constant)):
        if constant:
            weights.append((len(arguments), array.nbytes))
            arguments.append(-1)
            continue
        buffers.append(Buffer("input", len(specs), array.nbytes))
        specs.append(TensorSpec(f"x{i}", array.dtype.name, array.shape))
        arguments.append(len(buffers) - 1)
    sig = TensorSig(candidate.output.physical(workload.output.shape), workload.output.dtype)
    buffers.append(Buffer("output", 0, sig.nbytes))
    arguments.append(len(buffers) - 1)
    arena = 0
    for workspace in kernel.workspaces:
        nbytes = align(workspace.nbytes * (1 if workspace.shared or serial else traits.threads))
        buffers.append(Buffer("arena", arena, nbytes))
        arguments.append(len(buffers) - 1)
        arena += nbytes
    calls = []
    for copy in range(copies):
        mine = list(arguments)
        for place, nbytes in weights:
            buffers.append(Buffer("weight", offset, nbytes))
            mine[place] = len(buffers) - 1
            offset += align(nbytes)
        calls.append(Call(f"{copy}", "kernel", tuple(mine), (), serial, 0.0, 0.0))
    output = TensorSpec("y", sig.dtype, sig.shape)
    return Plan(
        tuple(specs), (output,), tuple(buffers), tuple(calls), arena, offset, traits.threads
    )


def _weight_places(
    plan: Plan, workload: Workload, packed: list[Array]
) -> list[tuple[Buffer, Array]]:
    return [
        (plan.buffers[call.args[i]], array)
        for call in plan.calls
        for i, (array, constant) in enumerate(_with(packed, workload.constant))
        if constant
    ]


def _with(packed: list[Array], constant: tuple[bool, ...]) -> list[tuple[Array, bool]]:
    return list(zip(packed, constant, strict=True))


def _packed(array: Array, layout: Layout | Packing) -> Array:
    if isinstance(layout, Layout):
        return blocked(array, layout)
    return np.ascontiguousarray(layout.pack(array))


def _copied(array: Array) -> Array:
    """The array at an aligned address, where runs read it in place."""
    memory: Array = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory
