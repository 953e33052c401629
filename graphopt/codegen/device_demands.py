"""Reads from a program's lowered kernels what a device must offer to run them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from graphopt.codegen.device_kernel import DeviceKernel
from graphopt.codegen.device_needs import OPENCL, DeviceNeeds
from graphopt.codegen.device_program import DeviceTarget
from graphopt.codegen.kernel import nbytes

EXTENSIONS = {"float16": "cl_khr_fp16", "float64": "cl_khr_fp64"}
"""What OpenCL code needs that computes with these types."""


def demands(kernels: Mapping[str, DeviceKernel], target: DeviceTarget) -> DeviceNeeds:
    """What a device must offer to run these kernels, compiled for `target`."""
    launches = [launch for kernel in kernels.values() for launch in kernel.launches]
    groups = [
        prod(extent for tag, extent in launch.extents if tag.startswith("threadIdx"))
        for launch in launches
    ]
    types = {each for kernel in kernels.values() for each in element_types(kernel)}
    extensions = {EXTENSIONS[each] for each in types if each in EXTENSIONS}
    return DeviceNeeds(
        kind=target.kind,
        name=target.name,
        work_group=max(groups, default=1),
        local_bytes=max((_local_bytes(launch.body) for launch in launches), default=0),
        alignment=target.alignment,
        extensions=tuple(sorted(extensions)) if target.kind == OPENCL else (),
        architectures=target.architectures,
    )


def element_types(kernel: DeviceKernel) -> set[str]:
    """The element types of what a kernel reads, converts to or stores: "float16", …"""
    types: set[str] = set()

    def computed(node: Any) -> None:
        types.add(str(node.ty.dtype).split("x")[0])

    def stored(node: Any) -> None:
        computed(node.value)

    for launch in kernel.launches:
        visits = [(ir.TensorLoad, computed), (tirx.Cast, computed), (tirx.BufferStore, stored)]
        tvm_ffi.structural_walk(launch.body, visits)
    return types


def _local_bytes(body: Any) -> int:
    """Memory that the threads of a block share."""
    sizes: list[int] = []

    def allocated(node: Any) -> None:
        if node.buffer.scope().startswith("shared"):
            sizes.append(nbytes(node.buffer))

    tvm_ffi.structural_walk(body, (tirx.AllocBuffer, allocated))
    return sum(sizes)
