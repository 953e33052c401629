"""Kernels for CPUs on a device: loops in place of vectors, parallel iterations in place of workers.

Any kernel between row-major tensors will do. Its loop nests are launched one after the other, each
iteration of a parallel loop as one thread (graphopt/codegen/device_kernel.py). That is right for
all of them, and fast where the parallel loop is long and its iterations touch little memory.
"""

from __future__ import annotations

from dataclasses import replace

from schedules.interface import (
    PLAIN,
    Candidate,
    Family,
    Layout,
    TargetTraits,
    Workload,
)

_TASKS_PER_UNIT = 8
_MOST_TASKS = 256
_SHARE = 0.05
"""Of a CPU kernel's efficiency: kernels that were made for devices are to be preferred."""


def on_device(family: Family) -> Family:
    """`family`, which makes kernels for CPUs, as a family for devices."""

    def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
        found = family(workload, as_processor(traits))
        return tuple(_renamed(c) for c in found if _is_plain(c))

    return candidates


def _renamed(candidate: Candidate) -> Candidate:
    slower = replace(candidate.cost, efficiency=candidate.cost.efficiency * _SHARE)
    return replace(candidate, name=f"loops.{candidate.name}", cost=slower, decisions=(), space=None)


def as_processor(traits: TargetTraits) -> TargetTraits:
    """A CPU with as many workers as the device can keep busy."""
    assert traits.gpu is not None
    tasks = min(_MOST_TASKS, _TASKS_PER_UNIT * traits.gpu.units)
    return TargetTraits(arch="", vector_bytes=16, vector_registers=32, threads=tasks)


def _is_plain(candidate: Candidate) -> bool:
    """Whether its activations lie row-major."""
    layouts = (layout for layout in candidate.layouts if isinstance(layout, Layout))
    return candidate.output == PLAIN and all(layout == PLAIN for layout in layouts)
