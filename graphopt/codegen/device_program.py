"""Builds a program for a device: its kernels in one module, and the host code that launches them.

The module exports two packed functions:

    run(table)                 launches all kernels of the plan, in order
    part(table, begin, end)    launches those of plan.calls[begin:end] only, to time them

Both return when everything has been enqueued. `table` points to an array of 8-byte handles, one for
each of plan.buffers, in their order: what the device's runtime takes for memory in a launch (a
device pointer for CUDA; for OpenCL an object that stands for a whole buffer, or for a part of one).
Generated code never computes with handles and allocates nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import s_tir, tirx

from graphopt.codegen.cuda.module import cuda_module, serialized
from graphopt.codegen.cuda.source import signatures
from graphopt.codegen.device_intrinsics import with_extrema
from graphopt.codegen.device_kernel import DeviceKernel, Launch, LaunchLimits
from graphopt.codegen.executable import entry_module, linked_object
from graphopt.codegen.jobs import Code
from graphopt.codegen.kernel import pointer, sequence
from graphopt.codegen.opencl_words import with_words
from graphopt.codegen.plan import Plan

Stmt = Any

RUN, PART = EXPORTED = ("run", "part")


@dataclass(frozen=True)
class DeviceTarget:
    """What a program for a device is compiled for.

    Attributes:
        device: the device's tvm Target. host: one of kind llvm, of the code that launches kernels.
        name: of the device that is preferred when the program is run; "" for none.
        architectures: of CUDA, what to make machine code for ("sm_80"); later ones get PTX.
        limits: of a launch.
        alignment: in bytes, of the plan's buffers in the arena.
        lacking: element types that the device cannot compute with ("float16").
    """

    device: Any
    host: Any
    name: str
    architectures: tuple[str, ...]
    limits: LaunchLimits
    alignment: int
    lacking: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """ "opencl" or "cuda"."""
        return str(self.device.kind.name)


def symbol(kernel: str, index: int) -> str:
    """The device function of launch `index` of a kernel."""
    return f"graphopt_{kernel}_{index}"


def build(plan: Plan, kernels: Mapping[str, DeviceKernel], target: DeviceTarget) -> Any:
    """Compile a plan's kernels and its launches to one tvm runtime Module, to run right away.

    Args:
        kernels: kernel name → lowered kernel, for every name that plan.calls uses.
    """
    module = host_module(plan, kernels, target.host)
    if kernels:
        load = tvm.get_global_func(f"ffi.Module.load_from_bytes.{target.kind}")
        module.import_module(load(device_code(kernels, target)))
    return module


def build_code(plan: Plan, kernels: Mapping[str, DeviceKernel], target: DeviceTarget) -> Code:
    """The same as files are made of; arguments as for build()."""
    launcher = linked_object(_host_functions(plan, kernels), target.host, EXPORTED)
    return Code((launcher,), device_code(kernels, target))


def device_functions(kernels: Mapping[str, DeviceKernel], target: Any) -> Any:
    """The device functions of all kernels, lowered, as an IRModule for the tvm Target."""
    functions = {
        tvm.ir.GlobalVar(name): _device_function(launch, name, target)
        for kernel, lowered in kernels.items()
        for index, launch in enumerate(lowered.launches)
        for name in [symbol(kernel, index)]
    }
    passes = [
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
        tirx.transform.LowerIntrin(),
        s_tir.transform.InferFragment(),  # tells the code generator what tensor cores work on
    ]
    with target:
        lowered = tvm.ir.transform.Sequential(passes)(tvm.IRModule(functions))
    return tvm.IRModule(
        {name: each.with_body(with_extrema(each.body)) for name, each in lowered.functions_items()}
    )


def device_code(kernels: Mapping[str, DeviceKernel], target: DeviceTarget) -> bytes:
    """The device functions as `ffi.Module.load_from_bytes.<kind>` reads them; b"" for none."""
    if not kernels:
        return b""
    functions = device_functions(kernels, target.device)
    if target.kind == "cuda":
        return cuda_module(functions, target.device, target.architectures)
    with target.device:
        module = tvm.get_global_func("target.build.opencl")(functions, target.device)
    source = with_words(str(module.inspect_source("cl")))
    return serialized("cl", signatures(functions), source.encode())


def host_module(plan: Plan, kernels: Mapping[str, DeviceKernel], host: Any) -> Any:
    """`run` and `part` as a tvm runtime Module, which looks kernels up in modules it imports."""
    return entry_module(_host_functions(plan, kernels), host, EXPORTED)


def _device_function(launch: Launch, name: str, target: Any) -> Any:
    function = tirx.PrimFunc(list(launch.parameters), launch.body, ret_type=None)
    return function.with_attr(
        {
            "global_symbol": name,
            "target": target,
            "calling_conv": 2,  # a kernel that is launched
            "tirx.is_global_func": True,
            "tirx.noalias": True,
            "tirx.kernel_launch_params": [tag for tag, _ in launch.extents],
        }
    )


def _host_functions(plan: Plan, kernels: Mapping[str, DeviceKernel]) -> dict[Any, Any]:
    part = tvm.ir.GlobalVar(PART)
    return {
        part: _part(plan, kernels),
        tvm.ir.GlobalVar(RUN): _run(plan, kernels),
    }


def _run(plan: Plan, kernels: Mapping[str, DeviceKernel]) -> Any:
    table = _table()
    handles = _Handles(plan, table)
    body = [_launches(handles, plan, kernels, index) for index in range(len(plan.calls))]
    return _entry([table], handles, body)


def _part(plan: Plan, kernels: Mapping[str, DeviceKernel]) -> Any:
    table = _table()
    begin, end = tirx.Var("begin", "int64"), tirx.Var("end", "int64")
    handles = _Handles(plan, table)
    body = []
    for index in range(len(plan.calls)):
        wanted = tirx.all(begin <= index, end > index)
        body.append(tirx.IfThenElse(wanted, _launches(handles, plan, kernels, index), None))
    return _entry([table, begin, end], handles, body)


def _table() -> Any:
    return tirx.Var("table", "handle")


class _Handles:
    """Reads the handles of a plan's buffers from the table."""

    def __init__(self, plan: Plan, table: Any) -> None:
        self._words = tirx.Var("words", pointer("int64"))
        self._buffer = tirx.decl_buffer(
            (max(1, len(plan.buffers)),), "int64", "handles", layout=None
        )
        self.declarations = [
            tirx.Bind(self._words, tirx.reinterpret(pointer("int64"), table)),
            tirx.DeclBuffer(self._buffer, data=self._words),
        ]

    def __getitem__(self, index: int) -> Any:
        return tirx.reinterpret("handle", tirx.BufferLoad(self._buffer, [index]))


def _launches(
    handles: _Handles, plan: Plan, kernels: Mapping[str, DeviceKernel], index: int
) -> Stmt:
    """The launches of plan.calls[index]."""
    call = plan.calls[index]
    return sequence(
        [
            tirx.Evaluate(
                tirx.call_packed(
                    symbol(call.kernel, number),
                    *[handles[call.args[argument]] for argument in launch.arguments],
                    *[tirx.const(extent, "int64") for _, extent in launch.extents],
                )
            )
            for number, launch in enumerate(kernels[call.kernel].launches)
        ]
    )


def _entry(parameters: list[Any], handles: _Handles, body: list[Stmt]) -> Any:
    nest = sequence([*handles.declarations, *body])
    # Without these attributes a later pass cannot tell where memory lives.
    nest = tirx.AttrStmt("default", "device_type", tirx.const(1, "int32"), nest)
    nest = tirx.AttrStmt("default", "device_id", tirx.const(0, "int32"), nest)
    return tirx.PrimFunc(parameters, nest, ret_type=None)
