"""Lowers a device's kernels and builds the program of them; the counterpart of jobs.py."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from graphopt.codegen.device_demands import EXTENSIONS, demands, element_types
from graphopt.codegen.device_kernel import DeviceKernel, device_kernel
from graphopt.codegen.device_needs import DeviceNeeds
from graphopt.codegen.device_program import DeviceTarget, build, build_code
from graphopt.codegen.jobs import Code
from graphopt.codegen.plan import Plan
from graphopt.errors import DeviceError


class DeviceJobs:
    """The kernels of a program; one run of the device's compiler makes the code of all of them."""

    def __init__(self, target: DeviceTarget) -> None:
        self._target = target
        self._kernels: dict[str, DeviceKernel] = {}

    def __enter__(self) -> DeviceJobs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def add(self, name: str, function: Any) -> None:
        """Lower the kernel `name`, a scheduled block-form PrimFunc.

        Raises:
            DeviceError: the device cannot compute with an element type of the kernel's.
        """
        target = self._target
        kernel = device_kernel(function, target.device, target.limits)
        missing = sorted(element_types(kernel) & set(target.lacking))
        if missing:
            names = " and ".join(f"{each} ({EXTENSIONS[each]})" for each in missing)
            raise DeviceError(
                "lowering",
                f"{target.name} cannot compute with {names}.",
                hint="compile the model for another device, or convert it to float32.",
            )
        self._kernels[name] = kernel

    def kernel(self, name: str) -> DeviceKernel:
        """The kernel added as `name`."""
        return self._kernels[name]

    def module(self, plan: Plan, flush_subnormals: bool) -> Any:
        """As KernelJobs.module(); what becomes of subnormal numbers is up to the device."""
        return build(plan, self._kernels, self._target)

    def code(self, plan: Plan, flush_subnormals: bool) -> Code:
        """As KernelJobs.code(), with the kernels in `device`."""
        return build_code(plan, self._kernels, self._target)

    def needs(self) -> DeviceNeeds:
        """What the device of the program must offer."""
        return demands(self._kernels, self._target)
