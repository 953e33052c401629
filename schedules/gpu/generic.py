"""Kernels for CPUs on a device, so that it can compute whatever a CPU can.

Any kernel between row-major tensors will do. One that is a computation without loops yet gets a
thread for each element of its results. One that was written as loops keeps them: its nests are
launched one after the other, each iteration of a parallel loop as one thread
(graphopt/codegen/device_kernel.py). That is right for all of them, and fast where the parallel loop
is long and its iterations touch little memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod

from schedules.generic import attempt, block_kinds, inline_elementwise, root_blocks
from schedules.interface import (
    PLAIN,
    Candidate,
    Family,
    GpuTraits,
    Layout,
    Schedule,
    TargetTraits,
    Workload,
)
from schedules.nest import as_written
from schedules.vectorise import extent, fuse

_TASKS_PER_UNIT = 8
_MOST_TASKS = 256
_THREADS = 128
_SHARE = 0.05
"""Of a CPU kernel's efficiency: kernels that were made for devices are to be preferred."""


def on_device(family: Family) -> Family:
    """`family`, which makes kernels for CPUs, as a family for devices."""

    def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
        found = family(workload, as_processor(traits))
        return tuple(_adapted(c, traits) for c in found if _is_plain(c))

    return candidates


def as_processor(traits: TargetTraits) -> TargetTraits:
    """A CPU with as many workers as the device can keep busy."""
    assert traits.gpu is not None
    tasks = min(_MOST_TASKS, _TASKS_PER_UNIT * traits.gpu.units)
    return TargetTraits(arch="", vector_bytes=16, vector_registers=32, threads=tasks)


def _adapted(candidate: Candidate, traits: TargetTraits) -> Candidate:
    assert traits.gpu is not None
    if candidate.schedule is as_written:
        slower = replace(candidate.cost, efficiency=candidate.cost.efficiency * _SHARE)
        name, cost, schedule = f"loops.{candidate.name}", slower, candidate.schedule
    else:
        name, cost = f"threads.{candidate.name}", candidate.cost
        schedule = partial(thread_schedule, gpu=traits.gpu)
    return replace(candidate, name=name, cost=cost, schedule=schedule, decisions=(), space=None)


def _is_plain(candidate: Candidate) -> bool:
    """Whether its activations lie row-major."""
    layouts = (layout for layout in candidate.layouts if isinstance(layout, Layout))
    return candidate.output == PLAIN and all(layout == PLAIN for layout in layouts)


def thread_schedule(sch: Schedule, gpu: GpuTraits) -> None:
    """Schedule "main" of `sch` with a thread for each element of every stage; never fails.

    Elementwise stages are computed where they are used. Neighbouring threads take neighbouring
    elements; a thread does the whole of a reduction. What cannot be bound to threads is left as it
    is, for one thread.
    """
    inline_elementwise(sch)
    for block in root_blocks(sch):
        attempt(partial(_bind, sch, block, gpu))


def _bind(sch: Schedule, block: object, gpu: GpuTraits) -> None:
    kinds = block_kinds(sch, block)
    loops = list(sch.get_loops(block))
    spatial = 0
    while spatial < min(len(kinds), len(loops)) and kinds[spatial]:
        spatial += 1
    if not spatial or len(kinds) != len(loops):
        return
    count = prod(extent(sch, loop) for loop in loops[:spatial])
    threads = max(1, min(_THREADS, gpu.max_threads, count))
    if -(-count // threads) > gpu.max_blocks:
        return
    blocks, inner = sch.split(fuse(sch, loops[:spatial]), [None, threads])
    sch.bind(blocks, "blockIdx.x")
    sch.bind(inner, "threadIdx.x")
