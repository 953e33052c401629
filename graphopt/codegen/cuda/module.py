"""Device code for NVIDIA GPUs as TVM's CUDA runtime loads it: machine code and signatures."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from tvm_ffi import dtype as to_dtype

from graphopt.codegen.cuda.source import HANDLE, Signature, cuda_source
from graphopt.codegen.cuda.toolchain import Toolchain, find_toolchain, machine_code
from graphopt.codegen.launch import Limits, check_limits, launch_of

KIND = "cuda"
"""TVM's name of such modules: `ffi.Module.load_from_bytes.cuda` takes what cuda_module() gives."""

LIMITS = Limits(threads=1024, shared_bytes=48 << 10)
"""What every GPU launches without being asked for more."""

_OPAQUE_POINTER = struct.pack("<BBH", 3, 64, 1)  # DLPack's code, bits and lanes


def cuda_module(
    functions: Any,
    target: Any,
    architectures: Sequence[str],
    toolchain: Toolchain | None = None,
) -> bytes:
    """Compile lowered device functions.

    Args:
        functions, target: as cuda_source() takes them.
        architectures: what to make machine code for ("sm_80"); later ones get PTX.
        toolchain: find_toolchain()'s by default.
    Returns:
        a serialised module of TVM's CUDA runtime.
    Raises:
        CompileError: there is no compiler, or it failed, or a kernel is larger than LIMITS. Source
            is never embedded in place of machine code.
    """
    launches = {
        str(function.attrs["global_symbol"]): launch_of(function)
        for function in functions.functions.values()
    }
    check_limits(launches, LIMITS, "a GPU")
    source = cuda_source(functions, target)
    code = machine_code(source.text, architectures, toolchain or find_toolchain())
    # The runtime hands code to the driver as it is; the name only says that it is not source.
    return serialized("cubin", source.kernels, code)


def serialized(form: str, kernels: Sequence[Signature], code: bytes) -> bytes:
    """TVM's form of a module: format, signatures by name, code; strings with their length first."""
    parts = [_text(form), _count(len(kernels))]
    parts += [_text(kernel.name) + _signature(kernel) for kernel in kernels]
    return b"".join(parts) + _count(len(code)) + code


def _signature(kernel: Signature) -> bytes:
    types = b"".join(_type(name) for name in kernel.arguments)
    launch = b"".join(_text(tag) for tag in kernel.launch)
    ordinary = struct.pack("<i", 0) * len(kernel.arguments)  # none of them is a tensor map
    arguments = _count(len(kernel.arguments))
    counted = (arguments + types, _count(len(kernel.launch)) + launch, arguments + ordinary)
    return _text(kernel.name) + b"".join(counted)


def _type(name: str) -> bytes:
    if name == HANDLE:
        return _OPAQUE_POINTER
    dtype = to_dtype(name)
    return struct.pack("<BBH", dtype.type_code, dtype.bits, dtype.lanes)


def _text(text: str) -> bytes:
    data = text.encode()
    return _count(len(data)) + data


def _count(number: int) -> bytes:
    return struct.pack("<Q", number)
