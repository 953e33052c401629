"""Groups without an anchor: scalar programs over broadcast operands.

One loop nest over the output; axes that all operands have or broadcast alike become one loop, so
that the innermost loop runs over contiguous memory and needs no division per element.
Limits: those of the scalar functions (scalar_math.py).
"""

from __future__ import annotations

from functools import partial

from tvm import te

from schedules.epilogue import operand_layouts, operand_placeholders, output_stage
from schedules.interface import (
    PLAIN,
    Candidate,
    Cost,
    Layout,
    PrimFunc,
    Schedule,
    TargetTraits,
    Workload,
    channel_layouts,
)
from schedules.vectorise import mergeable_groups, parallel_vectors, vector_lanes

_BLOCKED = ("float16", "float32", "float64", "uint8", "int8")
"""Types of feature maps."""


def candidates(workload: Workload, traits: TargetTraits) -> tuple[Candidate, ...]:
    """Row-major, and blocked by channels for feature maps."""
    if workload.op.kind != "elementwise":
        return ()
    layouts: tuple[Layout, ...] = (PLAIN,)
    output = workload.output
    if len(output.shape) >= 3 and output.shape[1] > 1 and output.dtype in _BLOCKED:
        dtypes = [sig.dtype for sig in (output, *workload.inputs) if sig.shape == output.shape]
        layouts += channel_layouts(output.shape[1], dtypes, traits)
    return tuple(_candidate(workload, layout, traits) for layout in layouts)


def _candidate(workload: Workload, layout: Layout, traits: TargetTraits) -> Candidate:
    output = workload.output
    return Candidate(
        name="elementwise" + (f".c{layout.block}" if layout.block else ""),
        layouts=operand_layouts(workload.epilogue, output, layout),
        output=layout,
        cost=Cost(
            flops=float(output.elements * max(1, len(workload.epilogue.steps))),
            bytes=float(output.nbytes + sum(sig.nbytes for sig in workload.inputs)),
            efficiency=0.3,
        ),
        compute=partial(_compute, workload, layout),
        schedule=partial(_schedule, workload, layout, traits),
    )


def _compute(workload: Workload, layout: Layout) -> PrimFunc:
    operands = operand_placeholders(workload, layout)
    return te.create_prim_func([*operands, output_stage(workload, None, operands, layout)])


def _schedule(workload: Workload, layout: Layout, traits: TargetTraits, sch: Schedule) -> None:
    schedule_output(sch, workload, layout, traits)


def schedule_output(
    sch: Schedule, workload: Workload, layout: Layout, traits: TargetTraits
) -> None:
    """Schedule the stage "output" as a nest of its own, given the operands' broadcasts."""
    parallel_vectors(
        sch,
        sch.get_sblock("output", "main"),
        output_groups(workload, layout),
        vector_lanes(traits, [workload.output.dtype, *(s.dtype for s in workload.inputs)]),
    )


def output_groups(workload: Workload, layout: Layout) -> list[int]:
    """Groups of the output's physical axes that are contiguous for all operands."""
    output = workload.output
    epilogue = workload.epilogue
    shapes = []
    where = operand_layouts(epilogue, output, layout)
    for sig, at in zip(epilogue.operands, where, strict=True):
        physical = at.physical(sig.shape)
        shapes.append(physical if at == layout else (*physical, 1))
    return mergeable_groups(shapes, layout.physical(output.shape))
