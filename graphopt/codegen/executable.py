"""Builds the machine code of a program: kernels and control flow in one LLVM module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import tirx

from graphopt.codegen.kernel import Kernel
from graphopt.codegen.plan import Plan
from graphopt.codegen.team import control_functions

EXPORTED = ("run", "serve")


def build(
    plan: Plan,
    kernels: Mapping[str, Kernel],
    target: Any,
    arch: str,
    flush_subnormals: bool = True,
) -> Any:
    """Compile a plan's kernels and its control flow to a tvm runtime Module.

    The module exports the packed functions `run(ctx)` and `serve(ctx, task_id)`; it is compiled
    to machine code when a function is first looked up or when it is written to an object file.

    Args:
        kernels: kernel name → lowered kernel, for every name that plan.calls uses.
        target: a tvm Target of kind llvm.
        arch: LLVM's name of the architecture.
        flush_subnormals: subnormal numbers count as zero while the program runs.
    """
    names = {name: tvm.ir.GlobalVar(name) for name in kernels}
    functions = {names[name]: kernel.function for name, kernel in kernels.items()}
    functions |= control_functions(plan, names, arch, flush_subnormals)
    module = tvm.IRModule({var: _bind(var, func, target) for var, func in functions.items()})
    passes = [
        tirx.transform.BindTarget(target.with_host(target)),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
        tirx.transform.LowerIntrin(),
    ]
    with target:
        module = tvm.ir.transform.Sequential(passes)(module)
        return tvm.get_global_func("target.build.llvm")(module, target)


def _bind(var: Any, function: Any, target: Any) -> Any:
    function = function.with_attr("target", target)
    if var.name_hint in EXPORTED:
        return function.with_attr("global_symbol", var.name_hint)
    return function
