"""Max and average pooling on a device: a thread for each output, which visits its window's taps.

Neighbouring threads read neighbouring windows of a row, so that what they have in common comes from
the cache.

Numerics: as pooling.py, whose windows these are.
"""

from __future__ import annotations

from functools import partial

from schedules.gpu.elements import each_element
from schedules.gpu.generic import as_processor
from schedules.interface import PLAIN, Candidate, PrimFunc, TargetTraits, Workload
from schedules.pooling import Pool
from schedules.vectors import candidate


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """One candidate where threads are threads."""
    op, gpu = workload.op, traits.gpu
    if op.kind not in ("max_pool2d", "avg_pool2d") or gpu is None or gpu.loops:
        return ()
    if not op.output.elements:
        return ()
    kernel = op.attr("kernel")
    taps = float(kernel[0] * kernel[1])
    compute = partial(_compute, workload, traits)
    return (candidate(f"gpu.{op.kind}", workload, (PLAIN,), PLAIN, compute, taps),)


def _compute(workload: Workload, traits: TargetTraits) -> PrimFunc:
    pool = Pool(workload, PLAIN, as_processor(traits))
    shape = workload.output.shape
    return pool.frame.function(each_element(shape, traits, lambda index: pool.one(*index)))
