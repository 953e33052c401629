"""Kernels of operators that only TVM defines: its PrimFunc under the generic schedule."""

from __future__ import annotations

from typing import Any

from schedules.generic import generic_schedule
from schedules.gpu.generic import thread_schedule
from schedules.interface import PLAIN, Candidate, Cost, TargetTraits, Workload


def legalised_candidate(workload: Workload, function: Any, traits: TargetTraits) -> Candidate:
    """The one candidate of a legalised operator: row-major in and out."""
    moved = sum(sig.nbytes for sig in workload.inputs)
    moved += sum(sig.nbytes for sig in workload.outputs)
    return Candidate(
        name=f"legalised.{workload.op.attr('name')}",
        layouts=(PLAIN,) * len(workload.inputs),
        output=PLAIN,
        cost=Cost(flops=float(moved), bytes=float(moved), efficiency=0.02),
        compute=lambda: function,
        schedule=lambda sch: (
            thread_schedule(sch, traits.gpu) if traits.gpu else generic_schedule(sch, traits)
        ),
    )
