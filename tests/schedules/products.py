"""Matmul workloads and their reference, shared by the tests of the matrix families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from harness import random_inputs, reference_epilogue, run_candidate, scheduled, serial_extents

from schedules.interface import Candidate, Epilogue, Op, Step, TargetTraits, TensorSig, Workload

Array = np.ndarray[Any, Any]
LIMIT = 1e-6  # relative to the largest Σ|a·b|, as schedules.gemm states


def matmul(
    a: tuple[int, ...],
    b: tuple[int, ...],
    *,
    transpose_b: bool = False,
    constant: bool = False,
    dtype: str = "float32",
    output: str | None = None,
    epilogue: Epilogue | None = None,
) -> Workload:
    columns = b[-2] if transpose_b else b[-1]
    shape = (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], columns)
    op = Op(
        "matmul",
        (TensorSig(a, dtype), TensorSig(b, dtype)),
        TensorSig(shape, output or dtype),
        (("transpose_b", transpose_b),),
        (False, constant),
    )
    return Workload(op, epilogue or Epilogue(dtype=output or dtype))


def bias_gelu_residual(shape: tuple[int, ...]) -> Epilogue:
    """y = gelu(x + bias) + residual, in the erf form."""
    return Epilogue(
        (TensorSig((*(1,) * (len(shape) - 1), shape[-1])), TensorSig(shape)),
        (
            Step("add", (0, 1)),
            Step("constant", (), (("value", 0.5**0.5), ("dtype", "float32"))),
            Step("multiply", (3, 4)),
            Step("erf", (5,)),
            Step("constant", (), (("value", 1.0), ("dtype", "float32"))),
            Step("add", (6, 7)),
            Step("multiply", (3, 8)),
            Step("constant", (), (("value", 0.5), ("dtype", "float32"))),
            Step("multiply", (9, 10)),
            Step("add", (11, 2)),
        ),
        constant=(True, False),
    )


def product(workload: Workload, inputs: Sequence[Array]) -> tuple[Array, float]:
    """The matmul in float64 and the largest Σ|a·b|."""
    a, b = (x.astype(np.float64) for x in inputs[:2])
    if workload.op.attr("transpose_b"):
        b = b.swapaxes(-1, -2)
    return a @ b, float((np.abs(a) @ np.abs(b)).max())


def check(candidate: Candidate, workload: Workload, traits: TargetTraits, seed: int = 0) -> None:
    """Assert the limit, and that all of the kernel is shared among the workers."""
    inputs = random_inputs(workload, seed)
    value, scale = product(workload, inputs)
    rest = [x.astype(np.float64) for x in inputs[2:]]
    expected = reference_epilogue(workload.epilogue, value, rest, workload.output.shape)
    actual = run_candidate(candidate, workload, inputs, traits)
    assert np.all(np.isfinite(actual))
    assert np.abs(actual - expected).max() <= LIMIT * max(scale, 1.0), candidate.name
    assert not serial_extents(scheduled(candidate))
