"""Programs for other processes: the memory they are given. tests/tuning has them run elsewhere."""

from __future__ import annotations

import numpy as np

from graphopt.codegen.plan import Buffer, Call, Plan, TensorSpec
from graphopt.codegen.remote import Footprint, flat_inputs


def plan() -> Plan:
    specs = (TensorSpec("a", "float32", (3,)), TensorSpec("b", "int64", (17,)))
    buffers = (
        Buffer("input", 0, 12),
        Buffer("input", 1, 136),
        Buffer("output", 0, 4),
        Buffer("arena", 64, 128),
        Buffer("weight", 0, 64),
    )
    calls = (Call("0", "kernel", (0, 1, 2, 3, 4), (), False, 0.0, 0.0),)
    output = (TensorSpec("y", "float32", (1,)),)
    return Plan(specs, output, buffers, calls, 192, 64, 2)


def test_everything_starts_at_a_cache_line() -> None:
    found = Footprint.of(plan())
    assert found.input_bytes == 64 + 192
    assert found.output_bytes == 64
    assert (found.weight_bytes, found.arena_bytes, found.calls) == (64, 192, 1)
    assert found.control_bytes % 64 == 0


def test_inputs_lie_one_after_another() -> None:
    a, b = np.float32([1, 2, 3]), np.arange(17)
    flat = flat_inputs(plan(), {"b": b, "a": a})
    assert flat.nbytes == Footprint.of(plan()).input_bytes
    assert np.array_equal(flat[:12].view(np.float32), a)
    assert np.array_equal(flat[64 : 64 + 136].view(np.int64), b)
    assert not flat[12:64].any()
