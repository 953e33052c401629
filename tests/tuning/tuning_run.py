"""Small workloads and records for the tests of the tuner."""

from __future__ import annotations

from typing import Any

from graphopt.target import TargetSpec
from graphopt.tuning.records import Record
from schedules.interface import Decisions, Epilogue, Op, Step, TensorSig, Workload

TARGET = TargetSpec.parse("cpu")
KEY = TARGET.key(1)


def conv(channels: int = 16, size: int = 14, filters: int = 32, after: bool = True) -> Workload:
    """A 3×3 convolution, with a bias and a ReLU unless not `after`."""
    out = TensorSig((1, filters, size, size))
    attrs = (("strides", (1, 1)), ("padding", (1,) * 4), ("dilation", (1, 1)), ("groups", 1))
    inputs = (TensorSig((1, channels, size, size)), TensorSig((filters, channels, 3, 3)))
    op = Op("conv2d", inputs, out, attrs, (False, True))
    if not after:
        return Workload(op)
    bias = TensorSig((1, filters, 1, 1))
    steps = (Step("add", (0, 1)), Step("relu", (2,)))
    return Workload(op, Epilogue((bias,), steps, constant=(True,)))


def record(
    workload: Workload | None = None,
    candidate: str = "conv2d.lines",
    decisions: Decisions = (("filters", 2), ("vectors", 1)),
    ratio: float = 2.0,
    **more: Any,
) -> Record:
    """A record of a kernel that works, unless `more` says otherwise."""
    values: dict[str, Any] = {
        "target": KEY,
        "tvm": "0",
        "schedules": 1,
        "workload": workload or conv(),
        "candidate": candidate,
        "decisions": decisions,
        "status": "ok",
        "seconds": ratio * 1e-3,
        "ratio": ratio,
        "when": 1.0,
    }
    return Record(**(values | more))
