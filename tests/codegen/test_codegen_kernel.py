"""Kernels: the signature, the division of parallel loops, barriers, workspaces."""

from __future__ import annotations

import pytest
import tvm
from tvm import s_tir, te, tirx

from graphopt.codegen.kernel import STACK_BYTES, lower, to_kernel

TARGET = tvm.target.Target({"kind": "llvm"})


def two_stages(inner: str, elements: int = 4096):
    """out[i] = sum of a row of 2 * x, with the doubled row kept in `inner` scope."""
    x = te.placeholder((8, elements), name="x")
    doubled = te.compute((8, elements), lambda i, j: x[i, j] * 2.0, name="doubled")
    k = te.reduce_axis((0, elements), name="k")
    out = te.compute((8,), lambda i: te.sum(doubled[i, k], axis=k), name="out")
    sch = s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([x, out])}))
    block, producer = sch.get_sblock("out", "main"), sch.get_sblock("doubled", "main")
    loop = sch.get_loops(block)[0]
    if inner == "root":
        sch.parallel(sch.get_loops(producer)[0])
        sch.parallel(sch.get_loops(block)[0])
        return sch.mod["main"]
    sch.parallel(loop)
    sch.compute_at(producer, loop)
    if inner == "local":
        sch.set_scope(producer, 0, "local")
    return sch.mod["main"]


def parameters(kernel):
    return [param.name for param in kernel.function.params]


def test_the_signature_is_pointers_then_the_team():
    kernel = to_kernel(lower(two_stages("local", 64), TARGET))
    assert parameters(kernel)[-3:] == ["task_id", "num_tasks", "barrier"]
    assert len(parameters(kernel)) == 5
    assert kernel.workspaces == ()


def test_a_shared_intermediate_becomes_a_workspace_behind_a_barrier():
    kernel = to_kernel(lower(two_stages("root"), TARGET))
    assert [(w.nbytes, w.shared) for w in kernel.workspaces] == [(8 * 4096 * 4, True)]
    assert kernel.function.script().count("graphopt_barrier") == 1


@pytest.mark.parametrize("elements", [STACK_BYTES // 4 + 16])
def test_large_scratch_is_taken_from_the_workspace_once_per_worker(elements):
    kernel = to_kernel(lower(two_stages("global", elements), TARGET))
    assert [w.shared for w in kernel.workspaces] == [False]
    assert kernel.workspaces[0].nbytes >= elements * 4
    assert kernel.workspaces[0].nbytes % 64 == 0


def test_small_scratch_stays_on_the_stack():
    assert to_kernel(lower(two_stages("global", 64), TARGET)).workspaces == ()


def test_a_nest_without_parallel_loop_is_for_the_first_worker():
    x = te.placeholder((16,), name="x")
    y = te.compute((16,), lambda i: x[i] + 1.0, name="y")
    sch = s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([x, y])}))
    kernel = to_kernel(lower(sch.mod["main"], TARGET))
    assert "if task_id == 0" in kernel.function.script()


def test_parallel_loops_lose_their_kind():
    script = to_kernel(lower(two_stages("local", 64), TARGET)).function.script()
    assert "T.parallel" not in script
    assert "num_tasks" in script


def test_no_function_of_a_kernel_is_packed():
    kernel = to_kernel(lower(two_stages("local", 64), TARGET))
    assert "global_symbol" not in kernel.function.attrs
    assert isinstance(kernel.function, tirx.PrimFunc)
