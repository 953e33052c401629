"""Lowers kernels and makes their machine code in threads while others are still being scheduled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from graphopt.codegen.executable import build, control_object, kernel_object
from graphopt.codegen.kernel import Kernel, lower, to_kernel
from graphopt.codegen.plan import Plan

BATCH = 4
"""Kernels per LLVM module, which costs some milliseconds by itself. Fixed, not chosen by load: the
same program must give the same object files."""

MAX_THREADS = 8


@dataclass(frozen=True)
class Code:
    """A program's machine code.

    objects: object files, which a linker joins to a shared library. device: a device's module as
    its save_to_bytes() gives it and `ffi.Module.load_from_bytes.<kind>` reads it; empty for a CPU.
    """

    objects: tuple[bytes, ...]
    device: bytes = b""


class KernelJobs:
    """Kernels in the making: add() returns at once, kernels() and objects() wait for the results.

    TVM's passes and LLVM run without Python's lock. They keep no state between threads except for
    LLVM's initialisation, which making the tvm Target has done before any job can start.
    """

    def __init__(self, target: Any, arch: str, machine_code: bool) -> None:
        """Args:
        target: the tvm Target of kind llvm.
        arch: LLVM's name of the architecture.
        machine_code: make object files; otherwise the kernels are only lowered.
        """
        self._target, self._arch, self._machine_code = target, arch, machine_code
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self._threads = ThreadPoolExecutor(min(cores, MAX_THREADS), "graphopt-compile")
        self._waiting: dict[str, Any] = {}
        self._kernels: dict[str, Future[Kernel]] = {}
        self._objects: list[Future[bytes]] = []

    def __enter__(self) -> KernelJobs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # No thread may outlive this: a process that forks later would inherit its locks.
        self._threads.shutdown(cancel_futures=True)

    def add(self, name: str, function: Any) -> None:
        """Start on the kernel `name`, a scheduled block-form PrimFunc."""
        self._waiting[name] = function
        self._kernels[name] = Future()
        if len(self._waiting) == BATCH:
            self._submit()

    def kernel(self, name: str) -> Kernel:
        """The kernel added as `name`, lowered; raises what went wrong when it was."""
        self._submit()
        return self._kernels[name].result()

    def module(self, plan: Plan, flush_subnormals: bool) -> Any:
        """The program as a tvm runtime Module, made in memory; arguments as for code()."""
        self._submit()
        kernels = {name: future.result() for name, future in self._kernels.items()}
        return build(plan, kernels, self._target, self._arch, flush_subnormals)

    def code(self, plan: Plan, flush_subnormals: bool) -> Code:
        """All kernels and the plan's control flow, as files of the program are made of them.

        Args:
            flush_subnormals: subnormal numbers count as zero while the program runs.
        """
        self._submit()
        control = control_object(plan, self._target, self._arch, flush_subnormals)
        return Code((control, *(future.result() for future in self._objects)))

    def needs(self) -> None:
        """A program for processors needs no device."""

    def _submit(self) -> None:
        if self._waiting:
            batch, self._waiting = self._waiting, {}
            self._objects.append(self._threads.submit(self._make, batch))

    def _make(self, batch: Mapping[str, Any]) -> bytes:
        made: dict[str, Kernel] = {}
        for name, function in batch.items():
            try:
                made[name] = to_kernel(lower(function, self._target))
            except Exception as error:
                self._kernels[name].set_exception(error)
            else:
                self._kernels[name].set_result(made[name])
        # A kernel that failed has ended the compilation by then.
        complete = self._machine_code and len(made) == len(batch)
        return kernel_object(made, self._target, self._arch) if complete else b""
