"""CUDA source of lowered device functions, written by TVM's code generator."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.ir import PointerType

HANDLE = "handle"
"""The type of a kernel's argument that points to memory of the device."""

# TVM hands source to its CUDA runtime where that is loaded, which compiles it in its own way. This
# variable makes it keep the source; it is read each time, so it is set for as long as a call takes.
_KEEP_SOURCE = "TVM_COMPILE_FORCE_FALLBACK"
_environment = threading.Lock()


@dataclass(frozen=True)
class Signature:
    """A kernel as its caller sees it.

    arguments: HANDLE or the name of a scalar's type, one each. launch: what is passed behind them,
    as "blockIdx.x" or "threadIdx.y".
    """

    name: str
    arguments: tuple[str, ...]
    launch: tuple[str, ...]


@dataclass(frozen=True)
class CudaSource:
    """CUDA C++ and the kernels that it defines."""

    text: str
    kernels: tuple[Signature, ...]


def cuda_source(functions: Any, target: Any) -> CudaSource:
    """The source of device functions.

    Args:
        functions: an IRModule of lowered device functions, which TVM's pipeline has split from
            their callers.
        target: a tvm Target of kind cuda.
    """
    with _source_kept():
        module = tvm.get_global_func("target.build.cuda")(functions, target)
    return CudaSource(str(module.inspect_source("cuda")), signatures(functions))


def signatures(functions: Any) -> tuple[Signature, ...]:
    """Those of an IRModule of lowered device functions, by name."""
    return tuple(
        Signature(
            str(function.attrs["global_symbol"]),
            tuple(_argument(parameter.ty) for parameter in function.params),
            tuple(str(tag) for tag in function.attrs["tirx.kernel_launch_params"]),
        )
        for _, function in sorted(functions.functions.items(), key=lambda item: item[0].name_hint)
    )


def _argument(kind: Any) -> str:
    return HANDLE if isinstance(kind, PointerType) else str(kind.dtype)


@contextmanager
def _source_kept() -> Iterator[None]:
    with _environment:
        before = os.environ.get(_KEEP_SOURCE)
        os.environ[_KEEP_SOURCE] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_KEEP_SOURCE]
            else:
                os.environ[_KEEP_SOURCE] = before
