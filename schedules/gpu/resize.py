"""Interpolated images on a device: a thread for each output, neighbours in a row side by side.

Positions and weights come from the tables of resize.py, which a launch before fills.

Numerics: as resize.py.
"""

from __future__ import annotations

from functools import partial

from schedules.gpu.elements import Index, each_element
from schedules.interface import PLAIN, Candidate, PrimFunc, TargetTraits, Workload
from schedules.nest import Stmt
from schedules.resize import Sampler
from schedules.vectors import candidate

_TAPS = {"nearest": 1.0, "linear": 4.0, "cubic": 16.0}


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate where threads are threads."""
    op, gpu = workload.op, traits.gpu
    if op.kind != "resize2d" or gpu is None or gpu.loops or not op.output.elements:
        return ()
    name, taps = f"gpu.resize2d.{op.attr('method')}", _TAPS[op.attr("method")]
    compute = partial(_compute, workload, traits)
    return (candidate(name, workload, (PLAIN,), PLAIN, compute, taps, 2),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    sampler = Sampler(workload, PLAIN)

    def element(index: Index) -> Stmt:
        return sampler.frame.finish(sampler.value(*index), index)

    return sampler.function(each_element(workload.output.shape, traits, element))
