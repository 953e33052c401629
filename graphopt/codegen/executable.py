"""Builds the machine code of a program: kernels and control flow, in one LLVM module or several.

Kernels and control flow call one another by name, so a linker can join them however they were
divided. No kernel is private to a module: LLVM would put each one that is called once into its
caller, and spend as long on that one function as on all kernels.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

from graphopt.codegen.kernel import Kernel
from graphopt.codegen.plan import Plan
from graphopt.codegen.team import control_functions, kernel_symbol, with_synchronisation

EXPORTED = ("run", "serve")


def build(
    plan: Plan,
    kernels: Mapping[str, Kernel],
    target: Any,
    arch: str,
    flush_subnormals: bool = True,
) -> Any:
    """Compile a plan's kernels and its control flow to one tvm runtime Module.

    The module exports the packed functions `run(ctx)` and `serve(ctx, task_id)`; it is compiled
    to machine code when a function is first looked up or when it is written to an object file.

    Args:
        kernels: kernel name → lowered kernel, for every name that plan.calls uses.
        target: a tvm Target of kind llvm.
        arch: LLVM's name of the architecture.
        flush_subnormals: subnormal numbers count as zero while the program runs.
    """
    functions = _kernel_functions(kernels, target, arch)
    functions |= _entries(control_functions(plan, arch, flush_subnormals), target, EXPORTED)
    return _llvm_module(functions, target)


def kernel_object(kernels: Mapping[str, Kernel], target: Any, arch: str) -> bytes:
    """An object file with these kernels; may run in several threads at once."""
    return _object_code(_llvm_module(_kernel_functions(kernels, target, arch), target))


def control_object(plan: Plan, target: Any, arch: str, flush_subnormals: bool = True) -> bytes:
    """An object file with `run` and `serve`, which calls the kernels that plan.calls name."""
    functions = control_functions(plan, arch, flush_subnormals)
    return linked_object(functions, target, EXPORTED)


def c_control_object(
    plan: Plan, target: Any, arch: str, symbols: Mapping[str, str], flush_subnormals: bool = True
) -> bytes:
    """An object file with C functions: void run(void *ctx), int32_t serve(void *ctx, int32_t task).

    Args:
        symbols: "run", and "serve" where it is wanted → the name it gets.
    """
    functions = control_functions(plan, arch, flush_subnormals)
    lowered = _lowered(
        {var: function.with_attr("target", target) for var, function in functions.items()},
        target,
        entries=False,
    )
    named = {
        var: function.with_attr("global_symbol", symbols[var.name_hint])
        if var.name_hint in symbols
        else function
        for var, function in lowered.items()
        if var.name_hint in symbols or var.name_hint == "team"
    }
    return _object_code(_llvm_module(named, target))


def linked_object(functions: Mapping[Any, Any], target: Any, exported: Sequence[str]) -> bytes:
    """An object file with functions that call kernels; those named are packed functions in it."""
    return _object_code(_llvm_module(_entries(functions, target, exported), target))


def entry_module(functions: Mapping[Any, Any], target: Any, exported: Sequence[str]) -> Any:
    """The same as a module in memory."""
    return _llvm_module(_entries(functions, target, exported), target)


def _kernel_functions(kernels: Mapping[str, Kernel], target: Any, arch: str) -> dict[Any, Any]:
    functions: dict[Any, Any] = {}
    for name, kernel in kernels.items():
        # Once per module is enough.
        function = kernel.function if functions else with_synchronisation(kernel.function, arch)
        functions[tvm.ir.GlobalVar(name)] = function.with_attr("target", target)
    lowered = _lowered(functions, target, entries=False)
    # Only now, so that no packed function is made of it.
    return {
        var: function.with_attr("global_symbol", kernel_symbol(var.name_hint))
        for var, function in lowered.items()
    }


def _entries(functions: Mapping[Any, Any], target: Any, exported: Sequence[str]) -> dict[Any, Any]:
    bound = {}
    for var, function in functions.items():
        bound[var] = function.with_attr("target", target)
        if var.name_hint in exported:
            bound[var] = bound[var].with_attr("global_symbol", var.name_hint)
    return _lowered(bound, target, entries=True)


def _lowered(functions: Mapping[Any, Any], target: Any, entries: bool) -> dict[Any, Any]:
    passes = [tirx.transform.BindTarget(target.with_host(target))]
    if entries:
        passes += [
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.MakePackedAPI(),
            tirx.transform.LowerTVMBuiltin(),
        ]
    passes += [
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
        tirx.transform.LowerIntrin(),
    ]
    with target:
        module = tvm.ir.transform.Sequential(passes)(tvm.IRModule(dict(functions)))
    return dict(module.functions.items())


def _llvm_module(functions: Mapping[Any, Any], target: Any) -> Any:
    with target:
        return tvm.get_global_func("target.build.llvm")(tvm.IRModule(dict(functions)), target)


def _object_code(module: Any) -> bytes:
    """The module's object file; OSError if there is nowhere to write it."""
    try:
        memory = os.memfd_create("graphopt-object", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = Path(folder, "program.o")
            module.write_to_file(str(path), "o")
            return path.read_bytes()
    # LLVM ends the process when a disk is full, so it writes to memory.
    with os.fdopen(memory, "rb") as file:
        module.write_to_file(f"/proc/self/fd/{memory}", "o")
        file.seek(0)
        return file.read()
