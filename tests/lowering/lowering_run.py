"""Lowers and runs small graphs on this machine's CPU."""

from __future__ import annotations

from graphopt.codegen.executable import build
from graphopt.codegen.jobs import KernelJobs
from graphopt.lowering.lower import LoweringOptions, lower_choice, pose
from graphopt.lowering.prices import unadvised
from graphopt.lowering.weights import WeightPool
from graphopt.runtime.session import Session
from graphopt.target import TargetSpec

TARGET = TargetSpec.parse("cpu")


def lowered(graph, threads=2, advisor=unadvised, **options):
    """(what lowering emitted, the pool of packed constants)."""
    problem = pose(graph, TARGET.traits(threads), LoweringOptions(**options), advisor)
    pool = WeightPool()
    with KernelJobs(TARGET.tvm_target(threads), TARGET.arch, machine_code=False) as jobs:
        found = lower_choice(problem, problem.choice(), jobs, pool)
    return found.emitted, pool


def run(graph, inputs, threads=2):
    """(outputs by name, what lowering emitted)."""
    emitted, pool = lowered(graph, threads)
    module = build(emitted.plan, emitted.kernels, TARGET.tvm_target(threads), TARGET.arch)
    with Session(emitted.plan, module, pool.block(), threads) as session:
        return session.run(inputs), emitted
