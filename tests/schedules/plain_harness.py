"""Runs kernels with several outputs through the code generator that programs use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from harness import host_target
from tvm import s_tir

from schedules.interface import Epilogue, Family, Op, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]


def run_family(
    family: Family,
    kind: str,
    inputs: Sequence[Array],
    outputs: Sequence[tuple[tuple[int, ...], str]],
    traits: TargetTraits,
    **attrs: Any,
) -> list[Array]:
    """The outputs that the family's only candidate computes; each begins full of a marker."""
    sigs = [TensorSig(shape, dtype) for shape, dtype in outputs]
    op = Op(
        kind,
        tuple(TensorSig(a.shape, a.dtype.name) for a in inputs),
        sigs[0],
        tuple(sorted(attrs.items())),
        (False,) * len(inputs),
        tuple(sigs[1:]),
    )
    [candidate] = family(Workload(op, Epilogue(dtype=sigs[0].dtype)), traits)
    sch = s_tir.Schedule(tvm.IRModule({"main": candidate.compute()}))
    candidate.schedule(sch)
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        module = tvm.driver.build(
            tvm.IRModule({"main": sch.mod["main"]}), target=host_target(traits)
        )
    results = [tvm.runtime.tensor(np.full(s.shape, 99, s.dtype)) for s in sigs]
    module["main"](*[tvm.runtime.tensor(np.array(a, order="C")) for a in inputs], *results)
    return [r.numpy() for r in results]
