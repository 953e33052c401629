"""Records for tests of logs: a matrix product of a size of choice and one knob."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graphopt.tuning.records import Record
from schedules.interface import Epilogue, Op, Step, TensorSig, Workload

KEY = "x86_64-avx2-l1.32k-l2.1024k-t2"
OTHER = "x86_64-avx512-l1.32k-l2.1024k-t2"


def workload(size: int = 8) -> Workload:
    op = Op(
        "matmul",
        (TensorSig((size, 16)), TensorSig((16, 4))),
        TensorSig((size, 4)),
        (("transpose", False), ("scale", 0.5)),
        (False, True),
    )
    steps = (Step("add", (0, 1)), Step("clip", (2,), (("min", 0.0), ("max", 6.0))))
    return Workload(op, Epilogue((TensorSig((1, 4)),), steps, "float32", (True,)))


def record(tile: int = 4, size: int = 8, **changes: Any) -> Record:
    """A kernel that works and takes `tile` times as long as the reference one."""
    made = Record(
        target=KEY,
        tvm="0.27.0",
        schedules=1,
        workload=workload(size),
        candidate="matmul.packed",
        decisions=(("tile", tile), ("unroll", 1)),
        status="ok",
        seconds=tile / 1e5,
        ratio=float(tile),
        error=1e-7,
        features=(1.0, 2.5),
        when=1.7e9 + tile,
    )
    return replace(made, **changes)


def failure(tile: int = 4, size: int = 8, **changes: Any) -> Record:
    """A kernel that does not work."""
    fields = {"status": "timeout", "seconds": 0.0, "ratio": 0.0, "error": 0.0, "reason": "slow"}
    return record(tile, size, **{**fields, **changes})
