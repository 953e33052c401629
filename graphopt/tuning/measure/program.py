"""A program of one kernel, called often enough and on weights far enough away to be like a network.

Between two runs of a network, the weights of a layer leave the nearer caches, while its inputs have
just been written. So a measured program calls its kernel on several copies of the weights in turn,
and on one set of activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from graphopt.codegen import device_program
from graphopt.codegen.device_demands import demands
from graphopt.codegen.device_kernel import DeviceKernel, device_kernel
from graphopt.codegen.device_program import DeviceTarget
from graphopt.codegen.executable import build
from graphopt.codegen.kernel import Kernel, lower, to_kernel
from graphopt.codegen.plan import Buffer, Call, Plan, TensorSpec
from graphopt.lowering.kernels import scheduled
from graphopt.lowering.memory import align
from graphopt.lowering.prices import is_serial
from graphopt.lowering.weights import aligned_empty, blocked
from graphopt.runtime.device import open_device
from graphopt.runtime.device_memory import largest_piece
from graphopt.runtime.device_session import DeviceSession
from graphopt.runtime.session import Session
from schedules.interface import Candidate, Layout, Packing, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]

FAR_BYTES = 64 << 20
"""Copies of the weights together take as much as this, so that they come from far away."""
MAX_COPIES = 12


@dataclass(frozen=True)
class Single:
    """A program of one kernel, before there is machine code.

    inputs: physical arrays by name. piece: uint8, the weights of one call, packed and aligned; each
    of the `copies` calls of a run has a copy. layout, shape: of the output.
    """

    plan: Plan
    kernel: Kernel | DeviceKernel
    inputs: Mapping[str, Array]
    piece: Array
    copies: int
    layout: Layout
    shape: tuple[int, ...]


class Measured(Protocol):
    """A program that is ready to be timed."""

    @property
    def copies(self) -> int:
        """Calls in one run."""
        ...

    def run(self) -> Array:
        """The logical output of one run."""
        ...

    def seconds(self, repeats: int) -> float:
        """Time of one call: the mean of the faster half of `repeats` runs."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A program in this process."""

    single: Single
    session: Session | DeviceSession

    @property
    def copies(self) -> int:
        """Calls in one run."""
        return self.single.copies

    def run(self) -> Array:
        """The logical output of one run."""
        found = self.session.run(self.single.inputs)["y"]
        return unblocked(found, self.single.layout, self.single.shape)

    def seconds(self, repeats: int) -> float:
        """Time of one call: the mean of the faster half of `repeats` runs."""
        profile = self.session.profile(self.single.inputs, repeats)
        return sum(row.seconds for row in profile.rows) / self.copies


def make_single(
    workload: Workload,
    candidate: Candidate,
    arrays: list[Array],
    traits: TargetTraits,
    target: Any,
) -> Single:
    """The candidate's program for logical input `arrays`.

    Args:
        target: a tvm Target of kind llvm, or the DeviceTarget of a device.
    """
    kernel: Kernel | DeviceKernel
    if isinstance(target, DeviceTarget):
        kernel = device_kernel(scheduled(candidate), target.device, target.limits)
    else:
        kernel = to_kernel(lower(scheduled(candidate), target))
    packed = [
        _packed(array, layout) for array, layout in zip(arrays, candidate.layouts, strict=True)
    ]
    weights = [array for array, constant in _with(packed, workload.constant) if constant]
    piece = np.zeros(sum(align(array.nbytes) for array in weights), np.uint8)
    offset = 0
    for array in weights:
        piece[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        offset += align(array.nbytes)
    copies = max(1, min(MAX_COPIES, FAR_BYTES // piece.nbytes)) if weights else 1
    plan = _plan(workload, candidate, kernel, packed, copies, traits)
    inputs = {
        f"x{i}": _copied(array)
        for i, (array, constant) in enumerate(_with(packed, workload.constant))
        if not constant
    }
    shape = workload.output.shape
    return Single(plan, kernel, inputs, piece, copies, candidate.output, shape)


def load(single: Single, target: Any, arch: str) -> Loaded:
    """Build the program and load it, machine code included."""
    weights = aligned_empty(single.plan.weight_bytes)
    weights.reshape(single.copies, -1)[...] = single.piece
    if isinstance(single.kernel, DeviceKernel):
        return Loaded(single, on_device(single.plan, {"kernel": single.kernel}, target, weights))
    module = build(single.plan, {"kernel": single.kernel}, target, arch)
    module["run"]  # makes the machine code
    return Loaded(single, Session(single.plan, module, weights))


def on_device(
    plan: Plan, kernels: Mapping[str, DeviceKernel], target: DeviceTarget, weights: Array
) -> DeviceSession:
    """A session of these kernels on a device of this machine."""
    device = open_device(demands(kernels, target), largest_piece(plan))
    return DeviceSession(plan, device_program.build(plan, kernels, target), weights, device)


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
    kernel: Kernel | DeviceKernel,
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
        size = workspace.nbytes * (1 if workspace.shared or serial else traits.threads)
        nbytes = align(size, traits.alignment)
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
