"""Kernels made in threads: the same object files every time, errors with their kernel's name."""

from __future__ import annotations

import threading

import pytest
from tvm import te

from graphopt.codegen.jobs import BATCH, KernelJobs
from graphopt.codegen.plan import Buffer, Call, Plan, TensorSpec
from graphopt.target import TargetSpec

TARGET = TargetSpec.parse("cpu")
COUNT = 3 * BATCH + 1


def scaling(factor: int):
    """A PrimFunc for y = factor · x, 64 elements."""
    x = te.placeholder((64,), name="x")
    return te.create_prim_func([x, te.compute((64,), lambda i: x[i] * float(factor), name="y")])


def jobs() -> KernelJobs:
    return KernelJobs(TARGET.tvm_target(2), TARGET.arch, machine_code=True)


def objects() -> tuple[bytes, ...]:
    names = [f"k{index}" for index in range(COUNT)]
    spec = TensorSpec("x", "float32", (64,))
    plan = Plan(
        inputs=(spec,),
        outputs=(TensorSpec("y", "float32", (64,)),),
        buffers=(Buffer("input", 0, 256), Buffer("output", 0, 256)),
        calls=tuple(Call(name, name, (0, 1), ("n",), True, 64.0, 512.0) for name in names),
        arena_bytes=0,
        weight_bytes=0,
        threads=2,
    )
    with jobs() as making:
        for index, name in enumerate(names):
            making.add(name, scaling(index))
        assert making.kernel(names[-1]).workspaces == ()
        return making.code(plan, True).objects


def test_the_same_kernels_give_the_same_object_files():
    first = objects()
    assert len(first) == 1 + -(-COUNT // BATCH)
    assert all(len(code) > 500 for code in first)
    assert all(objects() == first for _ in range(4))


def test_one_kernel_that_cannot_be_lowered_fails_alone():
    with jobs() as making:
        making.add("good", scaling(2))
        making.add("bad", None)
        making.add("fine", scaling(3))
        with pytest.raises(AttributeError):
            making.kernel("bad")
        assert making.kernel("good").function is not None
        assert making.kernel("fine").function is not None


def test_no_thread_outlives_the_compilation():
    objects()
    assert not [t for t in threading.enumerate() if t.name.startswith("graphopt-compile")]
