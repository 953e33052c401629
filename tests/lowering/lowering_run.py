"""Lowers and runs small graphs on this machine's CPU."""

from __future__ import annotations

from graphopt.codegen.executable import build
from graphopt.codegen.jobs import KernelJobs
from graphopt.lowering.lower import LoweringOptions, lower_graph
from graphopt.lowering.weights import WeightPool
from graphopt.runtime.session import Session
from graphopt.target import TargetSpec

TARGET = TargetSpec.parse("cpu")


def lowered(graph, threads=2, **options):
    """(what lowering emitted, the pool of packed constants)."""
    pool = WeightPool()
    with KernelJobs(TARGET.tvm_target(threads), TARGET.arch, machine_code=False) as jobs:
        found = lower_graph(graph, TARGET.traits(threads), jobs, pool, LoweringOptions(**options))
    return found.emitted, pool


def run(graph, inputs, threads=2):
    """(outputs by name, what lowering emitted)."""
    emitted, pool = lowered(graph, threads)
    module = build(emitted.plan, emitted.kernels, TARGET.tvm_target(threads), TARGET.arch)
    with Session(emitted.plan, module, pool.block(), threads) as session:
        return session.run(inputs), emitted
