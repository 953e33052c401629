"""What tests have the GPU's process do; imported there."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import s_tir, te, tirx
from tvm.tirx.build import split_host_device_mods

import graphopt
from graphopt.codegen.cuda.module import cuda_module
from graphopt.codegen.cuda.toolchain import find_toolchain
from graphopt.codegen.device_kernel import device_kernel
from graphopt.codegen.device_program import device_functions, symbol
from graphopt.codegen.launch import launch_of
from graphopt.lowering.kernels import scheduled
from graphopt.target import TargetSpec
from schedules.interface import Layout, Workload
from schedules.registry import GPU_FAMILIES

Array = np.ndarray[Any, Any]
Edit = Callable[[str], str]

ARCHITECTURE = "sm_75"
_LIMITS = {"max_threads_per_block": 1024, "max_shared_memory_per_block": 49152}


def cuda_target(architecture: str = ARCHITECTURE) -> Any:
    host = {"kind": "llvm", "mtriple": "x86_64-linux-gnu"}
    spec = {"kind": "cuda", "arch": architecture, "thread_warp_size": 32, "host": host}
    return tvm.target.Target({**spec, **_LIMITS})


def lowered(function: Any) -> tuple[Any, Any]:
    """Host and device functions of a scheduled PrimFunc, by TVM's own pipeline."""
    target = cuda_target()
    with target:
        pipeline, host_passes, device_passes = tvm.tirx.get_tir_pipeline("s_tir")
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        module = pipeline(tirx.transform.BindTarget(target)(module))
        host, devices = split_host_device_mods(module)
        ((_, device),) = devices.items()
        return host_passes()(host), device_passes()(device)


class Edited:
    """The toolchain of this machine, given edited source."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit

    def fat_binary(self, source: str, architectures: Sequence[str]) -> bytes:
        return find_toolchain().fat_binary(self.edit(source), architectures)


def run_kernel(
    make: Callable[[], Any], arrays: Sequence[Array], edit: Edit | None = None
) -> list[Array]:
    """The arrays after a kernel has run on them; `edit` changes its source before."""
    host_functions, device_functions = lowered(make())
    target, toolchain = cuda_target(), Edited(edit) if edit else None
    code = cuda_module(device_functions, target, [ARCHITECTURE], toolchain)
    host = tvm.get_global_func("target.build.llvm")(host_functions, target.host)
    host.import_module(tvm.get_global_func("ffi.Module.load_from_bytes.cuda")(code))
    device = tvm.cuda(0)
    tensors = [tvm.runtime.tensor(array, device) for array in arrays]
    host["main"](*tensors)
    device.sync()
    return [tensor.numpy() for tensor in tensors]


def run_unchecked(make: Callable[[], Any], arrays: Sequence[Array], edit: Edit) -> list[Array]:
    """The same on an emulated GPU that lets threads access what they like."""
    os.environ["EMULATED_CHECKS"] = "0"
    try:
        return run_kernel(make, arrays, edit)
    finally:
        del os.environ["EMULATED_CHECKS"]


def launches(make: Callable[[], Any]) -> str:
    """How a kernel is launched, one line for each device function."""
    _, device = lowered(make())
    return "\n".join(str(launch_of(function)) for function in device.functions.values())


def run_model(
    model: bytes, feeds: Mapping[str, Array], target: str = f"cuda:{ARCHITECTURE}"
) -> dict[str, Array]:
    """The outputs of a model that is compiled and run on the GPU."""
    compiled = graphopt.compile(model, target=target, cache=False)
    found: dict[str, Array] = compiled.run(dict(feeds))
    return found


def kernels_of(model: bytes, target: str) -> list[str]:
    """The names of the kernels that a model compiles to, in order."""
    compiled = graphopt.compile(model, target=target, cache=False)
    return [call.candidate for call in compiled.report.calls]


def traced_launches(model: bytes, feeds: Mapping[str, Array]) -> list[str]:
    """What the emulated driver was asked to launch for one run."""
    compiled = graphopt.compile(model, target=f"cuda:{ARCHITECTURE}", cache=False)
    compiled.run(dict(feeds))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "launches")
        os.environ["EMULATED_TRACE"] = str(path)
        try:
            compiled.run(dict(feeds))
        finally:
            del os.environ["EMULATED_TRACE"]
        return path.read_text().splitlines()


def run_saved(model: bytes, feeds: Mapping[str, Array], target: str) -> dict[str, Array]:
    """The same through a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gopt")
        shapes = {name: array.shape for name, array in feeds.items()}
        graphopt.compile(model, target=target, shapes=shapes, cache=False).save(path)
        found: dict[str, Array] = graphopt.load(path).run(dict(feeds))
        return found


def run_candidate(workload: Workload, name: str, arrays: Sequence[Array]) -> Array:
    """The output of the kernel that the candidate `name` is, for logical inputs."""
    target = TargetSpec.parse(f"cuda:{ARCHITECTURE}")
    offered = [c for family in GPU_FAMILIES for c in family(workload, target.traits(1))]
    (candidate,) = (each for each in offered if each.name == name)
    device_target = target.device_target()
    kernel = device_kernel(scheduled(candidate), device_target.device, device_target.limits)
    functions = device_functions({"kernel": kernel}, device_target.device)
    code = cuda_module(functions, device_target.device, [ARCHITECTURE])
    module = tvm.get_global_func("ffi.Module.load_from_bytes.cuda")(code)
    device = tvm.cuda(0)
    packed = [
        array if isinstance(layout, Layout) else layout.pack(array)
        for array, layout in zip(arrays, candidate.layouts, strict=True)
    ]
    output = np.full(workload.output.shape, np.nan, workload.output.dtype)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array), device) for array in packed]
    tensors.append(tvm.runtime.tensor(output, device))
    for index, launch in enumerate(kernel.launches):
        pointers = [ctypes.c_void_p(tensors[place].data_ptr()) for place in launch.arguments]
        module[symbol("kernel", index)](*pointers, *[extent for _, extent in launch.extents])
    device.sync()
    found: Array = tensors[-1].numpy()
    return found


# Kernels. Bound to threads by hand, so that each has what its test is about.


def reversal(dynamic: bool = False) -> Any:
    """y[i] = 2 x[127 − i] + 1 for 128 elements, exchanged in blocks of 64 through shared memory."""
    x = te.placeholder((128,), "float32", "x")
    doubled = te.compute((128,), lambda i: x[i] * 2.0, "doubled")
    y = te.compute((128,), lambda i: doubled[127 - i] + 1.0, "y")
    sch = s_tir.Schedule(te.create_prim_func([x, y]))
    first, second = sch.get_sblock("doubled"), sch.get_sblock("y")
    block, thread = sch.split(*sch.get_loops(second), [None, 64])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.compute_at(first, block)
    sch.set_scope(first, 0, "shared.dyn" if dynamic else "shared")
    sch.bind(sch.get_loops(first)[-1], "threadIdx.x")
    return sch.mod["main"]


def dynamic_reversal() -> Any:
    """The same through shared memory of dynamic size."""
    return reversal(dynamic=True)


def row_sums() -> Any:
    """y[i] = Σ x[i, j] for 5 rows of 100 floats: 64 threads a row, exchanged by warp shuffles."""
    return _row_sums("float32")


def half_row_sums() -> Any:
    """The same for halves, whose sums are floats."""
    return _row_sums("float16")


def _row_sums(dtype: str) -> Any:
    x = te.placeholder((5, 100), dtype, "x")
    j = te.reduce_axis((0, 100), "j")
    total = te.compute((5,), lambda i: te.sum(x[i, j].astype("float32"), j), "total")
    y = te.compute((5,), lambda i: total[i].astype(dtype), "y")
    sch = s_tir.Schedule(te.create_prim_func([x, y]))
    sums = sch.get_sblock("total")
    row, column = sch.get_loops(sums)
    _, thread = sch.split(column, [None, 64])
    sch.bind(row, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    sch.set_scope(sums, 0, "shared")
    last = sch.get_sblock("y")
    sch.reverse_compute_at(last, row)
    return sch.mod["main"]


def byte_products() -> Any:
    """y[i, j] = Σ a[i, k] b[j, k] of bytes (32 × 16 each): four products at a time by __dp4a."""
    a, b = (te.placeholder((32, 4), "int32", name) for name in "ab")
    k = te.reduce_axis((0, 4), "k")

    def four(i: Any, j: Any, k: Any) -> Any:
        return tirx.call_pure_extern("int32", "__dp4a", a[i, k], b[j, k], tirx.const(0, "int32"))

    y = te.compute((32, 32), lambda i, j: te.sum(four(i, j, k), k), "y")
    sch = s_tir.Schedule(te.create_prim_func([a, b, y]))
    products = sch.get_sblock("y")
    i, j, _ = sch.get_loops(products)
    sch.bind(i, "blockIdx.x")
    sch.bind(j, "threadIdx.x")
    return sch.mod["main"]


def halved_exponentials() -> Any:
    """y = exp(x / 2) for 96 halves."""
    x = te.placeholder((96,), "float16", "x")
    y = te.compute((96,), lambda i: te.exp(x[i] * tirx.const(0.5, "float16")), "y")
    sch = s_tir.Schedule(te.create_prim_func([x, y]))
    block, thread = sch.split(*sch.get_loops(sch.get_sblock("y")), [None, 32])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    return sch.mod["main"]
